"""The factory's command as a user runs it: whole runs, reuse, cost, the review."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.llm import batch_api
from data_pipeline.stages.factory import STAGES
from tests.data_pipeline.commands.factory_runs import (
    KEY,
    ROOT,
    arguments_of,
    received,
    refused,
    rows,
    rows_dropped,
    run,
)


def test_a_run_makes_corpus_dataset_and_report(finished):
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
    every = rows(out_dir / "corpus" / "unfiltered.jsonl")  # those that were dropped as well
    assert [row for row in every if row["id"] in kept] == corpus
    assert {row["id"] for row in every} == {row["id"] for row in outcomes if row["example"]}
    assert len(every) > len(corpus)
    judged = [j for row in outcomes if row["id"] in kept for j in row["judgements"]]
    assert len(judged) == 9 * len(kept)
    assert (out_dir / "data" / "inf_ir" / "factory" / "1.0.0" / "dataset_info.json").exists()
    for name in ("audit.html", "DATA_CARD.md", "config.json", "command.txt"):
        assert (out_dir / name).stat().st_size
    assert "Judged relevant" in output and f"dataset: {out_dir}/data/inf_ir/factory" in output


def test_a_second_run_reuses_everything(finished, calm_server):
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


def test_a_dry_run_sends_nothing_and_prints_the_cost(tmp_path, calm_server):
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


def test_the_estimate_is_close_to_the_cost(tmp_path, calm_server):
    prices = [f"--config.{s}.price=(10.0,40.0)" for s in ("query", "generate", "judge")]
    first = [*prices, "--stages=pairs,generate,filter,judge", "--config.source.count=20"]
    run(tmp_path, calm_server.base_url, *first)
    # now the journal has the mean length of answers
    output = run(tmp_path, calm_server.base_url, *prices, "--config.source.count=60", "--dry-run")
    rows = {}
    for line in output.stdout.splitlines():
        cells = [cell.strip().replace(",", "") for cell in line.strip("│ ").split("│")]
        rows[cells[0]] = cells
    assert rows["generate"][2:4] == ["20", "40"]  # answered, requests left
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


def test_a_changed_judge_prompt_asks_only_the_judge(tmp_path, llm_server):
    server = llm_server()
    stages = "--stages=pairs,generate,filter,judge,corpus"
    run(tmp_path, server.base_url, stages)
    prompt = tmp_path / "strict.md"
    text = (ROOT / "data_pipeline" / "prompts" / "judge_v1.md").read_text()
    prompt.write_text(text.replace("If you hesitate", "If you hesitate at all"))
    before = _stages_of(server)
    output = run(tmp_path, server.base_url, stages, f"--config.judge.prompt={prompt}").stdout
    after = _stages_of(server)
    assert after["generate"] == before["generate"] and after["judge"] == 2 * before["judge"]
    assert "generate: reusing" in output and "judge: reusing" not in output
    # the answers to the old prompt are still in the journal
    run(tmp_path, server.base_url, stages)
    assert _stages_of(server) == after


def _stages_of(server) -> dict[str, int]:
    counts = {"generate": 0, "judge": 0}
    for each in server.stats()["requests"].values():
        counts[each["stage"]] += each["received"]
    return counts


def test_stages_run_one_by_one_give_the_same(tmp_path, calm_server, finished):
    for stage in STAGES[:-1]:
        run(tmp_path, calm_server.base_url, f"--stages={stage}")
    for name in ("outcomes.jsonl", "corpus/train.jsonl"):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()


def test_from_batches_to_single_requests(tmp_path, calm_server, monkeypatch):
    """Requests of a batch that was never uploaded are sent one by one."""
    monkeypatch.setattr(batch_api, "_RETRIES", 0)
    nowhere = "http://127.0.0.1:9/v1"
    batch = [f"--config.llm.{key}" for key in ("mode=batch", "give_up_s=0.1", "batch_poll_s=0.1")]
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
        "--config.judge_2.model=gpt-4o",  # the model of the server that disagrees
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


def test_a_human_review_is_applied(finished, tmp_path, calm_server):
    out_dir, _ = finished
    report = json.loads((out_dir / "report.json").read_text())
    first, *others = [row["id"] for row in rows(out_dir / "corpus" / "train.jsonl")]
    decisions = {first: {"verdict": "reject"}, others[0]: {"verdict": "accept"}}
    path = tmp_path / "review.json"
    path.write_text(json.dumps({"corpus": report["corpus"], "decisions": decisions}))
    arguments = ["--stages=corpus", f"--config.review.path={path}"]
    run(out_dir, calm_server.base_url, *arguments)
    assert [row["id"] for row in rows(out_dir / "corpus" / "train.jsonl")] == others
    path.write_text(json.dumps({"corpus": "0" * 16, "decisions": decisions}))
    error = refused(run(out_dir, calm_server.base_url, *arguments, check=False))
    assert "another corpus" in error
    run(out_dir, calm_server.base_url, "--stages=corpus")  # without the review, as before


def test_the_cap_leaves_complete_examples(tmp_path, calm_server, finished):
    prices = [f"--config.{s}.price=(40.0,160.0)" for s in ("query", "generate", "judge")]
    capped = run(tmp_path, calm_server.base_url, *prices, "--max-usd=4.5", check=False)
    assert "the cap of 4.5 USD is reached" in refused(capped)
    report = json.loads((tmp_path / "report.json").read_text())
    spent = report["usage"]["usd"] + report["usage"]["usd_unknown"]
    assert 0 < spent <= 4.5 and report["pairs"] == 20
    assert 0 < report["kept"] < 20
    stages = "--stages=pairs,generate,filter,judge,corpus"
    run(tmp_path, calm_server.base_url, *prices, "--max-usd=100", stages)
    corpus = Path("corpus", "train.jsonl")
    assert (tmp_path / corpus).read_bytes() == (finished[0] / corpus).read_bytes()


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry", "real"])
def test_a_run_does_not_import_jax(tmp_path, calm_server, dry_run):
    code = (
        "import sys; from data_pipeline.run import main; main(sys.argv); "
        "assert 'jax' not in sys.modules, 'jax was imported'"
    )
    arguments = [*arguments_of(tmp_path, calm_server.base_url), *(["--dry-run"] if dry_run else [])]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | {"OPENAI_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data").exists() != dry_run
