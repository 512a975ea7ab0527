"""The journal: append-only, one process, nothing lost at a kill, clear errors if damaged."""

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import pytest

from data_pipeline.llm.journal import ANSWER, UNKNOWN, UNPAID, Journal, Received, Sent
from inf_jax.core.errors import UserError

WRITER = textwrap.dedent(
    """
    import sys
    from data_pipeline.llm.journal import ANSWER, Journal, Received, Sent
    journal = Journal(sys.argv[1])
    print("ready", flush=True)
    while True:
        id = journal.new_id()
        journal.write([Sent(id, f"k{id}", "judge", "m", 0.5)])
        print("sent", id, flush=True)
        journal.write([Received(id, ANSWER, f"answer {id} " + "x" * (id * 37 % 3000), 3, 4, 0.01)])
        print("received", id, flush=True)
    """
)


def fill(path, count=50, size=500):
    journal = Journal(path)
    for n in range(count):
        sent = Sent(journal.new_id(), f"k{n}", "judge", "m", 0.5)
        text = random.Random(n).randbytes(size // 2).hex()
        journal.write([sent, Received(sent.id, ANSWER, text, 10, 20, 0.01)])
    journal.close()


def process(code, *arguments, **options):
    line = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True, **options)


def test_rows_are_read_back(tmp_path):
    journal = Journal(tmp_path / "deep" / "j")
    first, second, third = (
        Sent(journal.new_id(), key, "judge", "m", 0.5) for key in ("a", "a", "b")
    )
    journal.write([first, second, third, Received(first.id, UNPAID, "500")])
    journal.write([Received(second.id, ANSWER, "ünï\0code", 10, 20, 0.25)])
    assert journal.outcomes("a") == [(UNPAID, "500"), (ANSWER, "ünï\0code")]
    assert journal.outcomes("b") == journal.outcomes("c") == []
    assert journal.spent() == (0.25, 0.5)
    assert journal.mean_tokens("judge", "m") == (10, 20)
    assert journal.mean_tokens("judge", "other") is None
    journal.close()
    journal = Journal(tmp_path / "deep" / "j")
    assert (journal.run, journal.new_id()) == (2, 4)
    assert journal.outcomes("a")[1] == (ANSWER, "ünï\0code")
    usage = journal.usage()
    assert usage["stages"]["judge"]["failed"] == {"unpaid": 1, "in flight at a kill": 1}
    assert usage["in_flight_at_kills"] == 1 and usage["runs"] == 2
    assert (usage["usd"], usage["usd_unknown"]) == (0.25, 0.5)
    journal.close()


def test_unknown_outcomes_count_as_possibly_paid(tmp_path):
    journal = Journal(tmp_path / "j")
    sent = Sent(journal.new_id(), "a", "judge", "m", 0.5)
    journal.write([sent, Received(sent.id, UNKNOWN, "timeout")])
    assert journal.spent() == (0, 0.5)
    assert journal.usage()["stages"]["judge"]["usd_unknown"] == 0.5
    journal.close()


def test_batches(tmp_path):
    journal = Journal(tmp_path / "j")
    rows = [Sent(journal.new_id(), key, "judge", "m", 0.5, "b1") for key in "abc"]
    journal.write(rows, event=("b1", "planned", 3))
    journal.batch_event("b1", "uploaded", "file-1")
    journal.batch_event("b2", "planned", 1)
    journal.write([Received(rows[0].id, ANSWER, "{}")])
    assert journal.batches() == {"b1": {"planned": 3, "uploaded": "file-1"}, "b2": {"planned": 1}}
    assert journal.pending_in_batch("b1") == {"b": rows[1], "c": rows[2]}
    assert journal.usage()["in_flight_at_kills"] == 0  # batches are not lost at a kill
    journal.close()


@pytest.mark.parametrize("table", ["meta", "runs", "sent", "received", "batch_events"])
def test_nothing_can_be_changed_or_deleted(tmp_path, table):
    fill(tmp_path / "j", 3)
    journal = Journal(tmp_path / "j")
    journal.batch_event("b", "planned")
    journal.close()
    with sqlite3.connect(tmp_path / "j") as db:
        column = db.execute(f"SELECT name FROM pragma_table_info('{table}')").fetchall()[-1][0]
        for change in (f"DELETE FROM {table}", f"UPDATE {table} SET {column} = 0"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.execute(change)
    db.close()


def test_a_failing_write_writes_nothing(tmp_path):
    journal = Journal(tmp_path / "j")
    sent = Sent(journal.new_id(), "a", "judge", "m", 0.5)
    journal.write([sent])
    with pytest.raises(UserError):
        journal.write([Sent(journal.new_id(), "b", "judge", "m", 0.5), sent])
    assert journal.spent() == (0, 0.5)
    journal.write([Received(sent.id, ANSWER, "{}")])  # the journal is still usable
    journal.close()


def test_one_process_at_a_time(tmp_path):
    writer = process(WRITER, tmp_path / "j")
    writer.stdout.readline()
    with pytest.raises(UserError, match="another run is using this journal"):
        Journal(tmp_path / "j")
    writer.kill()
    writer.wait()
    writer.stdout.close()
    journal = Journal(tmp_path / "j")
    with pytest.raises(UserError, match="another run"):
        Journal(tmp_path / "j")
    journal.close()
    Journal(tmp_path / "j").close()


def test_kill_9_loses_no_written_row(tmp_path):
    path, chance, last = tmp_path / "j", random.Random(0), {}
    for _ in range(8):
        writer = process(WRITER, path)
        assert writer.stdout.readline() == "ready\n"
        lines = [writer.stdout.readline() for _ in range(chance.randrange(4, 60))]
        time.sleep(chance.random() * 0.005)
        writer.send_signal(signal.SIGKILL)
        for line in (*lines, *writer.stdout):  # everything printed except a cut line
            if line.endswith("\n"):
                what, number = line.split()
                last[what] = int(number)
        writer.wait()
        writer.stdout.close()
        journal = Journal(path)
        for number in range(1, last["received"] + 1):
            outcomes = journal.outcomes(f"k{number}")
            if outcomes:
                text = f"answer {number} " + "x" * (number * 37 % 3000)
                assert outcomes == [(ANSWER, text)]
        assert journal.outcomes(f"k{last['received']}")
        assert journal.new_id() > last["sent"]
        in_flight = journal.usage()["in_flight_at_kills"]
        assert in_flight <= journal.run // 2  # at most one per kill
        journal.close()


FULL = textwrap.dedent(
    """
    import resource, sys
    from data_pipeline.llm.journal import ANSWER, Journal, Received, Sent
    from inf_jax.core.errors import UserError
    journal = Journal(sys.argv[1])
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    written = 0
    try:
        while written < 1000:
            id = journal.new_id()
            journal.write([Sent(id, f"k{id}", "judge", "m", 0.5)])
            journal.write([Received(id, ANSWER, "x" * 2000)])
            written = id
    except UserError as error:
        print(written, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    id = journal.new_id()
    journal.write([Sent(id, f"k{id}", "judge", "m", 0.5), Received(id, ANSWER, "after")])
    print(id)
    """
)


def test_a_full_disk_is_reported_and_written_rows_stay(tmp_path):
    filler = process(FULL, tmp_path / "j")
    output = filler.communicate()[0]
    assert filler.returncode == 0
    written, _, message = output.splitlines()[0].partition(" ")
    assert "check the free space" in message and str(tmp_path) in message
    journal = Journal(tmp_path / "j")
    assert int(written) > 10
    for number in range(1, int(written) + 1):
        assert journal.outcomes(f"k{number}") == [(ANSWER, "x" * 2000)]
    assert journal.outcomes(f"k{output.splitlines()[1]}") == [(ANSWER, "after")]
    journal.close()


def test_a_full_disk_at_the_start(tmp_path):
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n" + (
        "from data_pipeline.llm.journal import Journal\n"
        "from inf_jax.core.errors import UserError\n"
        "try: Journal(sys.argv[1])\nexcept UserError as error: print(error)"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    output = process(code, tmp_path / "j").communicate()[0]
    assert "check the free space" in output


def everything(path):
    journal = Journal(path)
    try:
        return [journal.outcomes(f"k{n}") for n in range(50)] + [journal.usage(), journal.batches()]
    finally:
        journal.close()


def test_damage_is_reported_and_never_read_as_an_answer(tmp_path):
    whole = tmp_path / "whole"
    fill(whole)
    data, expected, found = whole.read_bytes(), everything(whole)[:50], 0
    assert not os.path.exists(f"{whole}-wal")
    chance = random.Random(1)
    for number in range(60):
        path = tmp_path / f"j{number}"
        start, size = chance.randrange(len(data)), chance.choice([1, 16, 5000])
        bad = chance.randbytes(size)
        path.write_bytes((data[:start] + bad + data[start + size :])[: len(data)])
        try:
            got = everything(path)[:50]
        except UserError as error:
            found += 1
            assert str(path) in str(error)
            assert "damaged" in str(error) or "another version" in str(error), error
        else:  # the damage hit free space or an unused index: what is read is right
            assert all(one in ([], true) for one, true in zip(got, expected, strict=True))
    assert found > 25


@pytest.mark.parametrize("size", [1, 100, 4095, 4096, 20_000])
def test_a_truncated_file(tmp_path, size):
    path = tmp_path / "j"
    fill(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"damaged or not a journal"):
        everything(path)


@pytest.mark.parametrize("data", [b"no database at all\n" * 99, b"\0" * 8192])
def test_not_a_database(tmp_path, data):
    (tmp_path / "j").write_bytes(data)
    with pytest.raises(UserError, match="damaged or not a journal"):
        Journal(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == data
    with pytest.raises(UserError, match="damaged or not a journal"):  # rather than: another run
        Journal(tmp_path / "j")


def test_another_database_and_another_version(tmp_path):
    with sqlite3.connect(tmp_path / "j") as db:
        db.execute("CREATE TABLE cats (name TEXT)")
    db.close()
    with pytest.raises(UserError, match="not a journal"):
        Journal(tmp_path / "j")
    with sqlite3.connect(tmp_path / "k") as db:
        db.execute("CREATE TABLE meta (name TEXT, value TEXT)")
        db.execute("INSERT INTO meta VALUES ('format', 'inf_jax journal 99')")
    db.close()
    with pytest.raises(UserError, match="another version"):
        Journal(tmp_path / "k")


def test_an_unwritable_path(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "j", "/proc/j", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            Journal(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory(tmp_path):
    fill(tmp_path / "j", 1)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="permission"):
            Journal(tmp_path / "j")
    finally:
        tmp_path.chmod(0o700)


def test_the_empty_file_of_a_run_killed_at_once(tmp_path):
    (tmp_path / "j").write_bytes(b"")
    Journal(tmp_path / "j").close()
