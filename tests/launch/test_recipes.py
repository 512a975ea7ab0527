"""launch/ablate.py --recipes on the tiny model: seeds, an average, resuming, intervals."""

import json
import math
import shlex
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from inf_jax.config.defaults import defaults
from inf_jax.config.resume import as_saved
from inf_jax.core.errors import UserError
from launch.bench.ablation import main
from launch.bench.cells import Cell, CellFailedError, check_unchanged
from launch.bench.recipes import make_trials, parse_recipe, tasks
from launch.bench.recipes_report import interval, summarise
from tests.inf_jax.processes import write_config


@pytest.fixture
def recipes(tiny_config, tmp_path, monkeypatch, capsys):
    """Runs `ablate.py --recipes ...` in this process, without the commands that it starts: `calls`
    are those, with (base, trained) p-MRR as the scores. Returns (exit code, output)."""
    path = write_config(tiny_config, tmp_path / "config.py")
    calls, failing = [], set()

    def command(cell, name, *more):
        calls.append((cell.directory.relative_to(tiny_config.out_dir), name, *more))
        if calls[-1][:2] in failing:
            raise CellFailedError(f"{name} ended with exit code 1")
        cell.directory.mkdir(parents=True, exist_ok=True)
        if name == "evaluate":
            config = as_saved(cell.config)
            set_here = [flag.partition("=") for flag in more if "base_from" not in flag]
            config["eval"] |= {key.removeprefix("--config.eval."): v for key, _, v in set_here}
            trained = {"p_mrr": 10.0 + len(calls), "ndcg@10": 50.0 + cell.config.seed}
            scores = {"base": {"p_mrr": 1.0, "ndcg@10": 2.0}, "trained": trained}
            scores |= {"step": cell.config.train.steps, "config": config}
            (cell.directory / "eval.json").write_text(json.dumps(scores))
        elif name == "average":  # as it leaves a directory, and refuses one with checkpoints
            out = Path(more[-1].removeprefix("--out="))
            (out / "checkpoints").mkdir(parents=True)
            (out / "command.txt").write_text(shlex.join(["python", "-m", "inf_jax.average", *more]))
        else:
            (cell.directory / "config.json").write_text(json.dumps(as_saved(cell.config)))

    monkeypatch.setattr("launch.bench.recipes.call", command)

    def call(*more: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ablate.py", f"--config={path}", *more])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    call.calls, call.failing = calls, failing
    return call


def test_two_recipes_one_of_which_fails_at_first(recipes, tiny_config):
    root = Path(tiny_config.out_dir, "recipes")
    names = ("--recipes", "plain:", "half: average=base,newest", "--seeds", "3", "--also", "other")
    plain, half = Path("recipes/plain-3"), Path("recipes/half-3")
    recipes.failing.add((half, "train"))

    code, out = recipes(*names)
    assert code == 1, out
    assert "[2/2] half, seed 3: FAILED\ntrain ended with exit code 1" in out
    assert "error: 1 of 2 trials failed: [2/2] half, seed 3" in out
    other = ("--config.eval.benchmark=", "--config.eval.source=other")
    scored = [(plain, "train"), (plain, "evaluate", *other), (plain, "evaluate")]
    assert recipes.calls == [*scored, (half, "train")]

    recipes.failing.clear()
    recipes.calls.clear()
    code, out = recipes(*names)
    assert code == 0, out
    assert "[1/2] plain, seed 3: already finished, reused" in out
    mixture, base = half / "average", f"--config.eval.base_from={root / 'plain-3' / 'eval'}"
    assert recipes.calls == [
        (half, "train"),
        (half, "average", "--of=base,newest", f"--out={root / 'half-3' / 'average'}"),
        (mixture, "evaluate", *other, f"{base}_other.json"),  # the base is measured once
        (mixture, "evaluate", f"{base}.json"),
    ]
    written = json.loads((root / "recipes.json").read_text())
    plain = written["sources"]["inf_ir"]["recipes"][0]
    assert plain["mean"]["p_mrr"] == [13.0, None]  # of one seed: no NaN, which is no JSON
    found = written["trials"]
    assert [trial["average"] for trial in found] == ["", "base,newest"]
    values = [
        [trial["scores"][source]["trained"]["p_mrr"] for source in ("inf_ir", "other")]
        for trial in found
    ]
    assert values == [[13.0, 12.0], [14.0, 13.0]]
    lines = (root / "recipes.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert rows[0] == ["recipe", "seeds", "p-MRR", "nDCG@10", "p-MRR, gain", "nDCG@10, gain"]
    assert rows[2:5] == [
        ["base", "", "1.0", "2.0", "", ""],
        ["plain", "1", "13.0", "53.0", "", ""],
        ["half", "1", "14.0", "53.0", "+1.0", "+0.0"],
    ]
    assert matplotlib.image.imread(root / "recipes.png").shape[1] == 2 * 1200

    code, out = recipes(*names, "--config.train.steps=3")
    assert code == 1
    assert "begun with other settings (train.steps was 4, is now 3)" in out


def test_an_average_that_was_made_is_scored_and_one_that_was_killed_is_made_again(
    recipes, tiny_config
):
    names = ("--recipes", "half: average=base,newest", "--seeds", "3")
    half = Path("recipes/half-3")
    evaluate = (half / "average", "evaluate")
    directory = Path(tiny_config.out_dir) / half / "average"
    recipes.failing.add(evaluate)
    assert recipes(*names)[0] == 1
    recipes.failing.clear()
    recipes.calls.clear()
    code, out = recipes(*names)
    assert code == 0, out
    assert [call[:2] for call in recipes.calls] == [(half, "train"), evaluate]

    for path in (directory / "command.txt", directory / "eval.json"):
        path.unlink()
    recipes.calls.clear()
    code, out = recipes(*names)
    assert code == 0, out
    assert [call[1] for call in recipes.calls] == ["train", "average", "evaluate"]


def test_an_average_of_another_mixture_is_not_taken_for_this_one(recipes):
    recipes("--recipes", "half: average=base,newest")
    recipes.calls.clear()
    code, out = recipes("--recipes", "half: average=base:2,newest")
    assert code == 1 and not recipes.calls
    assert "is the average base,newest, and recipe 'half' asks for base:2,newest" in out


def test_another_directory_of_the_same_name_is_scored_anew(recipes, tmp_path):
    first, second = tmp_path / "a" / "task", tmp_path / "b" / "task"
    first.mkdir(parents=True), second.mkdir(parents=True)
    names = ("--recipes", "plain:", "--also")
    assert recipes(*names, str(first))[0] == 0
    recipes.calls.clear()
    assert "already finished, reused" in recipes(*names, str(first))[1]
    assert recipes.calls == []
    assert recipes(*names, str(second))[0] == 0
    assert f"--config.eval.benchmark={second}" in recipes.calls[1]


def test_what_else_is_scored(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sub/nevir").mkdir(parents=True)
    Path("pubmedqa").mkdir()
    assert tasks(tiny_config, ["other", "sub/nevir", "pubmedqa", "other"]) == {
        "other": ["--config.eval.benchmark=", "--config.eval.source=other"],
        "nevir": ["--config.eval.benchmark=sub/nevir", "--config.eval.source="],
        "pubmedqa": ["--config.eval.benchmark=pubmedqa", "--config.eval.source="],
    }
    for also, message in [
        (["sub/none"], "sub/none: no such directory"),
        (["sub/nevir", "nevir"], "nevir is scored already"),
        (["inf_ir"], "inf_ir is scored already"),
    ]:
        with pytest.raises(UserError, match=message):
            tasks(tiny_config, also)
    with tiny_config.unlocked():
        tiny_config.eval.benchmark = "sub/nevir"
    with pytest.raises(UserError, match="nevir is scored already"):
        tasks(tiny_config, ["sub/nevir"])


def test_interval_is_student_s():
    values = [3.0, 5.5, 4.1]
    mean, half = interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose([mean - half, mean + half], expected, rtol=1e-12)
    mean, half = interval([2.0])
    assert mean == 2 and math.isnan(half)


def test_gains_are_paired_by_seed():
    def result(recipe, seed, value):
        trained = {"p_mrr": value, "ndcg@10": 2 * value}
        return {"recipe": recipe, "seed": seed, "scores": {"x": {"trained": trained}}}

    results = [result("a", 0, 10.0), result("a", 1, 30.0), result("a", 2, 99.0)]
    results += [result("b", 1, 35.0), result("b", 0, 14.0), result("c", 7, 1.0)]
    first, second, third = summarise(results, ["a", "b", "c", "d"], "x")
    assert first["gain"] == {} and first["seeds"] == [0, 1, 2]
    assert second["mean"]["p_mrr"][0] == 24.5
    assert second["gain"]["p_mrr"] == interval([4.0, 5.0])
    assert second["gain"]["ndcg@10"][0] == 9
    assert third["gain"] == {}  # no seed in common


def test_recipes_and_their_configs(tiny_config, tmp_path):
    path = write_config(tiny_config, tmp_path / "config.py")
    flags = [f"--config={path}", "--config.train.steps=7"]
    texts = ["today:", "wide (P): 'loss.objective=uni(P, IQ)' optim.lr=0.5 average=base:2,newest"]
    trials = make_trials(tiny_config, flags, texts, [4, 5])
    assert [(t.recipe.name, t.seed) for t in trials] == [
        *(("today", 4), ("wide (P)", 4), ("today", 5), ("wide (P)", 5))
    ]
    assert len({t.run.config.out_dir for t in trials}) == 4
    today, wide = trials[2:]
    assert today.run is today.scored and today.run.config.seed == 5
    assert wide.run.config.loss.objective == "uni(P, IQ)" and wide.run.config.optim.lr == 0.5
    assert wide.run.config.train.steps == 7 and wide.recipe.average == "base:2,newest"
    assert wide.scored.directory == wide.run.directory / "average"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a: b"], "'b' is not KEY=VALUE"),
        (["a: 'optim.lr=1"], "No closing quotation"),
        (["a: seed=3"], "the comparison sets seed; leave it out"),
        (["optim.lr=1"], "begin with a name"),
        (["a:", "A: optim.lr=1"], "two have one name"),
        (["a: optim.speed=1"], "optim.speed"),
    ],
)
def test_impossible_recipes(tiny_config, tmp_path, texts, message):
    path = write_config(tiny_config, tmp_path / "config.py")
    with pytest.raises(UserError, match=message):
        make_trials(tiny_config, [f"--config={path}"], texts, [0])
    assert parse_recipe("x:").flags == ()


def test_a_cell_begun_before_a_key_existed_goes_on(tmp_path):
    config = defaults()
    config.out_dir = str(tmp_path)
    cell = Cell("", "", [], config)
    saved = json.loads(json.dumps(as_saved(config)))
    del saved["loss"]["teacher"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    check_unchanged(cell)
    config.loss.teacher = "other"
    with pytest.raises(UserError, match=r"\(loss.teacher was '', is now 'other'\)"):
        check_unchanged(cell)
