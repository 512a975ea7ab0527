"""`bench.py input`'s bucket: what is waited for, and the bytes that a host reads."""

import pytest

from launch.bench import input_bucket
from launch.bench.input_records import as_windows, write_records


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    directory = tmp_path_factory.mktemp("records")
    write_records(directory, 2000)
    as_windows(directory)
    return directory


def test_a_host_is_fed_from_windows(records, monkeypatch):
    monkeypatch.setattr(input_bucket, "STEP", 256)
    run = {"steps": 7, "seconds": 0.001}
    found = input_bucket.windows(records)({"place": "", "run": run})
    assert found["wait"] >= 0 and found["later"] >= 0 and 0.5 < found["fill"] < 1
    assert 0 < found["near"][0] < found["near"][1] < 0.1
    served = {"records": 2000, "index": 400}  # of two epochs
    rows = {"a disk": found, "the bucket": found | {"sent": served}}
    text = "\n".join(input_bucket.lines(rows, records=2000, size=8000))
    assert "1.000 times its share of the records" in text and "1.200 times" in text


def test_the_bucket_counts_what_it_sends(records, monkeypatch):
    ask = input_bucket.bucket(records)
    assert ask("environment")["STORAGE_EMULATOR_HOST"].startswith("http://127.0.0.1:")
    assert ask("sent") == {"records": 0, "index": 0}
