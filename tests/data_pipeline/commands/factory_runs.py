"""Runs of the factory's command on the shipped sample, in this process, for its tests."""

import contextlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import pytest

from data_pipeline.run import main

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
    llm = [f"--config.llm.base_url={base_url}", "--config.llm.key_env=OPENAI_API_KEY"]
    return [SAMPLE, f"--config.out_dir={out_dir}", *llm]


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
    """The one line of a run that ended with an error; a wrong command line ends with code 2."""
    assert done.code in (1, 2), done
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
