"""Commands whose output nobody reads any more, with real pipes and terminals."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Prints until its reader has gone and longer, then does its work.
COMMAND = """
import os, sys
from pathlib import Path
from inf_jax.core.errors import UserError, main_guard
with main_guard():
    stream = getattr(sys, sys.argv[1])
    print("first", file=stream, flush=True)
    sys.stdin.readline()
    for _ in range(3):
        print("x" * 100_000, file=stream, flush=True)
        os.write(stream.fileno(), b"from a library")
    Path(sys.argv[2]).write_text("whole")
    if sys.argv[3:]:
        raise UserError("wrong")
"""


def start(*arguments, **streams):
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | (
        streams
    )
    return subprocess.Popen([sys.executable, "-c", COMMAND, *map(str, arguments)], **streams)


@pytest.mark.parametrize(
    ("name", "more", "code"), [("stdout", (), 0), ("stderr", (), 0), ("stdout", ("fails",), 1)]
)
def test_a_command_goes_on_when_its_reader_ends(tmp_path, name, more, code):
    with start(name, tmp_path / "file", *more, cwd=ROOT) as process:
        read = getattr(process, name)
        assert read.readline() == b"first\n"
        read.close()  # as head does
        process.stdin.close()
        other = process.stderr if name == "stdout" else process.stdout
        assert other.read() == (b"error: wrong\n" if more else b"")
    assert process.returncode == code
    assert (tmp_path / "file").read_text() == "whole"


def test_a_command_goes_on_when_its_terminal_closes(tmp_path):
    ours, theirs = pty.openpty()
    with start("stdout", tmp_path / "file", stdout=theirs, cwd=ROOT) as process:
        os.close(theirs)
        assert os.read(ours, 5) == b"first"
        os.close(ours)
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert (tmp_path / "file").read_text() == "whole"


def test_no_file_gets_the_number_of_closed_output(tmp_path):
    """`COMMAND >&- 2>&-`"""
    code = (
        "import os\n"
        "from inf_jax.core.errors import main_guard\n"
        "with main_guard(), open('file', 'w') as file:\n"
        "    print('to nobody')\n"
        "    os.write(1, b'to nobody'), os.write(2, b'to nobody')\n"
        "    file.write('whole')\n"
    )
    line = 'exec "$0" -c "$1" >&- 2>&-'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", line, sys.executable, code], cwd=tmp_path, env=environment)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "whole"


def test_help_for_a_reader_that_stops_early():
    command = [sys.executable, "-m", "inf_jax", "--help"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
