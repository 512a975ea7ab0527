"""Errors of the factory's command: one line each, and nothing that was paid for is lost."""

import os
import subprocess
import sys

import pytest

from tests.data_pipeline.commands.factory_runs import (
    KEY,
    ROOT,
    Done,
    arguments_of,
    received,
    refused,
    rows,
    rows_dropped,
    run,
)


def test_a_stage_without_input_says_what_to_run(tmp_path, calm_server):
    error = refused(run(tmp_path, calm_server.base_url, "--stages=judge", check=False))
    assert "filtered.jsonl is missing" in error and "--stages=filter" in error
    gap = "--stages=pairs,generate,judge"  # without the stage filter
    error = refused(run(tmp_path, calm_server.base_url, gap, check=False))
    assert "filtered.jsonl is missing" in error
    error = refused(run(tmp_path, calm_server.base_url, "--max-usd=nan", check=False))
    assert "--max-usd" in error and "nan" in error
    error = refused(run(tmp_path, calm_server.base_url, "--stages=cook", check=False))
    assert "--stages" in error and "cook" in error and "pairs," in error


def test_a_missing_or_damaged_corpus_is_made_again(tmp_path, calm_server, finished):
    stages = "--stages=pairs,generate,filter,judge,corpus"
    run(tmp_path, calm_server.base_url, stages)
    path = tmp_path / "corpus" / "train.jsonl"
    whole = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_bytes(whole[:100])):
        damage()
        run(tmp_path, calm_server.base_url, stages)
        assert path.read_bytes() == whole
    stale = ["--stages=build", "--config.filter.leak_words=5"]
    error = refused(run(tmp_path, calm_server.base_url, *stale, check=False))
    assert "outcomes.jsonl is missing, damaged or made with other settings" in error


def test_nothing_kept_says_why(tmp_path, llm_server):
    server = llm_server([{"kind": "refusal", "times": 10**6}])
    error = refused(run(tmp_path, server.base_url, "--config.source.count=3", check=False))
    assert "none of 3 pairs was kept: 3 generate:refusal" in error


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
def test_errors_are_one_line_and_leave_no_partial_files(
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


@pytest.mark.parametrize(
    ("kind", "flags"), [("bad_request", []), ("moderated", ["--retry-rejected"])]
)
def test_a_rejected_text_is_dropped_with_its_reason_and_asked_again(
    tmp_path, llm_server, kind, flags
):
    server, count = llm_server(), "--config.source.count=4"
    run(tmp_path, server.base_url, count, "--stages=pairs")
    query = rows(tmp_path / "pairs.jsonl")[0]["query"]
    rule = {"kind": kind, "contains": query[:40], "stage": "generate", "times": 10**6}
    server.set_faults([rule])
    stages = [count, "--stages=pairs,generate,filter,judge,corpus"]
    run(tmp_path, server.base_url, *stages)
    reason = "generate:moderated" if kind == "moderated" else "generate:rejected"
    assert [row["reasons"] for row in rows_dropped(tmp_path, "generate")] == [[reason]]
    server.set_faults("")
    before = received(server)
    run(tmp_path, server.base_url, *stages, *flags)
    assert not rows_dropped(tmp_path, "generate")
    assert received(server) - before <= 1 + 9  # this example and its table
    if flags:
        assert "generate: reusing" in run(tmp_path, server.base_url, *stages).stdout


def test_a_missing_extra_is_named():
    code = (
        "import runpy, sys; sys.modules['openai'] = None; "
        "runpy.run_module('data_pipeline.run', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    error = refused(Done(done.returncode, done.stdout, done.stderr))
    assert "openai" in error and "pip install 'inf_jax[pipeline]'" in error


def test_a_full_disk_is_reported_and_nothing_is_lost(tmp_path, calm_server, finished):
    """A limit on file sizes, in a process of its own, stands for the full disk."""
    stages = "--stages=pairs,generate,filter,judge,corpus"
    line = ["bash", "-c", 'ulimit -f 60 && exec "$@"', "-", sys.executable, "-m"]
    done = subprocess.run(
        [*line, "data_pipeline.run", stages, *arguments_of(tmp_path, calm_server.base_url)],
        cwd=ROOT,
        env=os.environ | {"OPENAI_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=900,
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
