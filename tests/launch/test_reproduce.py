"""launch/reproduce.py: configs and cells of the paper's pack, its tables, and a run with tiny
models."""

import json
import sys

import pytest

from data_pipeline.sources import fields, inf_ir
from inf_jax.config.command_line import parse
from inf_jax.core.errors import UserError
from inf_jax.planning.model_shapes import model_shape
from launch.bench.paper import data, smoke
from launch.bench.paper.cells import CONFIG, Asked, grid, paper_config, questions
from launch.bench.paper.command_line import main
from launch.bench.paper.results import write_grid, write_questions
from tests.inf_jax.processes import WITHOUT_TORCH
from tests.xla_flags import quick_flags

BACKBONES = tuple(paper_config().BACKBONES)


def config_of(cell):
    flags = [f"--config.{key}" for key in cell.keys]
    return parse(["train", f"--config={CONFIG}:{cell.backbone}", *flags])


@pytest.mark.parametrize("name", BACKBONES)
def test_a_config_has_the_papers_numbers(name):
    config = parse(["train", f"--config={CONFIG}:{name}"])
    shape, _ = model_shape(config.model.name)
    assert (config.train.batch_size, config.train.steps) == (96, 2400)
    assert config.optim.lr == 5e-5 and config.optim.final_ratio == config.optim.weight_decay == 0
    assert config.loss.scale == pytest.approx(19.96008, abs=1e-5)
    assert (config.data.max_query_tokens, config.data.max_passage_tokens) == (256, 512)
    expected = "last" if shape.causal else {"modernbert-base": "cls"}.get(name, "mean")
    assert config.model.pooling == expected
    assert shape.width % config.mesh.fsdp == 0


def test_the_grid_has_every_backbone_and_loss():
    module = paper_config()
    cells = grid(BACKBONES, module.OBJECTIVES, [0])
    assert len(cells) == 9 * 12 == len({cell.run(0) for cell in cells})
    for cell in cells[:12]:
        loss = config_of(cell).loss
        assert loss.objective == cell.name
        assert loss.instruction_negatives == (5 if cell.name in WITH_DRAWN else 0)
    with pytest.raises(ValueError, match="one of e5-base-v2, e5-large-v2"):
        module.get_config("gpt")


WITH_DRAWN = (
    *("uni(I)", "uni(P,I)", "uni(I,IQ)", "uni(P,I,IQ)"),
    *("multi(P,I)", "multi(I,IQ)", "multi(P,I,IQ)"),
)


def test_questions_are_valid_runs_and_share_them():
    cells = questions("e5-base-v2", Asked(True, True, ("typos", "case")))
    assert len({(cell.question, cell.name) for cell in cells}) == len(cells)
    for cell in cells:
        config_of(cell)
    runs = {cell.run(seed) for cell in cells for seed in cell.seeds}
    assert len(runs) == 12 < sum(len(cell.seeds) for cell in cells)
    assert [c.name for c in cells if "negatives" in c.question] == [
        f"m = {m}" for m in (0, 1, 2, 4, 8)
    ]
    assert [c.noise for c in cells if c.noise] == ["typos,case"]
    without = next(c for c in cells if c.name == "without, the same rows")
    assert without.data == "without_instructions" and without.keys == cells[0].keys


def test_rows_of_promptriever_are_drawn_by_their_ids(tmp_path):
    rows = [
        {"query_id": f"q{n}", "only_query": "q", "only_instruction": "i" if n % 2 else ""}
        for n in range(40)
    ]
    for name, order in (("a", rows), ("b", rows[::-1])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in order))
    drawn = []
    for name in "ab":
        target = tmp_path / f"{name}-drawn.jsonl"
        assert data.instructed_rows(str(tmp_path / f"{name}.jsonl"), target, 7) == 7
        drawn.append({json.loads(line)["query_id"] for line in target.read_text().splitlines()})
    assert drawn[0] == drawn[1] and all(int(id[1:]) % 2 for id in drawn[0])
    assert data.instructed_rows(str(tmp_path / "a.jsonl"), tmp_path / "c.jsonl", 99) == 20
    (tmp_path / "d.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match=r"d.jsonl: no row has an instruction"):
        data.instructed_rows(str(tmp_path / "d.jsonl"), tmp_path / "e.jsonl", 1)


def test_rows_of_promptriever_are_known(tmp_path):
    source = smoke.data(tmp_path)
    rows = smoke.promptriever(source, tmp_path / "rows.jsonl")
    [first, *_] = fields.read(rows, fields=None)
    example = next(inf_ir.read(source))
    assert (first.query, first.instruction, first.passage, first.negatives) == (
        *(example.query_positive, example.instruction_positive, example.document_positive),
        (example.hard_negative_document_1,),
    )


def test_pairs_without_instructions_are_those_of_the_examples(tmp_path):
    source = smoke.data(tmp_path)
    examples = list(inf_ir.read(source))
    count = data.pairs_without_instructions(str(source), tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert count == len(rows) == 3 * len(examples) == 3 * 64
    assert rows[0] == {
        "query": examples[0].query_positive,
        "passage": examples[0].document_positive,
    }
    assert rows[2]["passage"] == examples[0].hard_negative_document_2


def scores(trained, base, interval=(1.0, 5.0)):
    value = trained - base
    return {
        "tasks": {
            "Core17": {
                "main": "p_mrr",
                "models": {
                    "seed0/export": {"scores": {"p_mrr": trained, "who/ndcg@10": 50.0}},
                    "e5": {"scores": {"p_mrr": base, "who/ndcg@10": 40.0}},
                },
                "differences": {"e5": {"p_mrr": [value, *interval]}},
            }
        }
    }


def test_tables(tmp_path):
    cells = grid(["e5-base-v2", "qwen2.5-1.5b"], ["uni(P)", "uni(P,I)"], [0])
    found = [scores(3.0, 0.0), scores(4.0, 0.0), scores(2.0, 1.0), scores(1.0, 1.0)]
    write_grid(
        tmp_path, [(c, {"scores": f, "step_s": 1.0}) for c, f in zip(cells, found, strict=True)]
    )
    tables = json.loads((tmp_path / "grid.json").read_text())
    assert tables[0]["rows"][0] == [
        *("e5-base-v2", "uni(P)", "Core17", "p_mrr", "0.0", "3.0", "+3.0 [+1.0, +5.0]")
    ]
    assert tables[1]["rows"] == [
        ["encoders", "1", "+4.0", "+9.0"],
        ["decoders", "1", "+1.0", "+4.2"],
    ]
    assert "| e5-base-v2   |    uni(P) |" in (tmp_path / "grid.md").read_text()
    assert (tmp_path / "grid.png").stat().st_size > 1000

    cells = questions("e5-base-v2", Asked(noises=("typos",)))
    found = {cell: scores(2.0, 1.0) for cell in cells}
    noisy = {"typos": {"scores": {"p_mrr": 1.5}, "loss": {"p_mrr": [0.5, 0.1, 0.9]}}}
    for cell in cells:
        found[cell]["tasks"]["Core17"]["models"]["seed0/export"]["noise"] = (
            noisy if cell.noise else {}
        )
    write_questions(tmp_path, [(c, {"scores": found[c], "step_s": 0.25}) for c in cells])
    tables = {t["title"]: t["rows"] for t in json.loads((tmp_path / "questions.json").read_text())}
    assert [row[0] for row in tables["joint or attention encoder"]] == ["joint", "attention"]
    assert tables["how many instruction negatives"][0][-1] == "0.25"
    noise = ["typos", "Core17", "p_mrr", "2.0", "1.5", "+0.5 [+0.1, +0.9]"]
    assert tables["noisy instructions"] == [noise]
    assert tables["by instruction type"] == [["who", "Core17", "ndcg@10", "40.0", "50.0", "+10.0"]]


def call(monkeypatch, capsys, *flags):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *flags])
    try:
        main()
        code = 0
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_missing_files_are_named_with_their_download(monkeypatch, capsys, tmp_path):
    code, out = call(monkeypatch, capsys, f"--out-dir={tmp_path}", f"--inf-ir={tmp_path}/none")
    assert code == 1 and "no such file; download it: hf download InF-IR/InF-IR" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--promptriever=rows",), "--promptriever would have no effect: there is no --questions"),
        (("--questions", "--seeds", "3"), "--seeds would have no effect: --questions has its own"),
        (("--smoke", "--inf-ir=x"), "--inf-ir would have no effect: --smoke has files of its own"),
    ],
)
def test_flags_without_effect(monkeypatch, capsys, tmp_path, flags, message):
    code, out = call(monkeypatch, capsys, f"--out-dir={tmp_path}", *flags)
    assert code == 2 and message in out


def test_smoke(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", quick_flags())
    monkeypatch.setenv("PYTHONPATH", str(WITHOUT_TORCH))
    flags = ("--smoke", f"--out-dir={tmp_path}", "--backbones", "e5-base-v2")
    code, out = call(monkeypatch, capsys, *flags)
    assert code == 0, out
    table, beside = json.loads((tmp_path / "grid.json").read_text())
    assert table["rows"][0][:4] == [*("e5-base-v2", "uni(P)", "benchmark_medquad", "p_mrr")]
    assert beside["rows"][0][0] == "encoders"
    code, out = call(monkeypatch, capsys, *flags)  # again: nothing is trained or scored
    assert code == 0 and "training" not in out and "scoring" not in out
    code, out = call(monkeypatch, capsys, *flags, "--config.train.steps=-1")
    assert code == 1 and "1 of 1 runs failed: e5-base-v2 uni(P)" in out
