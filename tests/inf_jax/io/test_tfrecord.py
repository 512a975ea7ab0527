"""TFRecord framing against constants and TensorFlow; damage of every byte is found and named."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_jax.core.errors import UserError
from inf_jax.io.tfrecord import (
    CorruptRecordError,
    Index,
    Reader,
    Writer,
    build_index,
    masked_crc32c,
    read_records,
)

ROOT = Path(__file__).parents[3]  # where the children find inf_jax
RECORDS = [b"", b"abc", bytes(range(20)), b"123456789"]
# a frame each: length, its masked CRC, data, its masked CRC; worked out with a bit-by-bit CRC-32C
# (polynomial 0x82F63B78) that gives RFC 3720's values
GOLDEN = {
    b"123456789": "0900000000000000 37f97139 313233343536373839 e5b08ac7",
    b"": "0000000000000000 29039807 d8ea82a2",
    bytes(range(32)): "2000000000000000 29eda950" + bytes(range(32)).hex() + "92781f95",
}


def write(path, records=RECORDS) -> Index:
    with Writer(path) as writer:
        for record in records:
            writer.write(record)
    return writer.index


def assert_same(a: Index, b: Index):
    for name, dtype in (("offsets", np.int64), ("lengths", np.int64), ("crcs", np.uint32)):
        assert getattr(a, name).dtype == getattr(b, name).dtype == dtype
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def sequential_error(path, *, count=None) -> CorruptRecordError:
    """The error of a full sequential read; what comes before it must be right."""
    good = 0
    with pytest.raises(CorruptRecordError) as caught:
        for data in read_records(path, count=count):
            assert data == RECORDS[good]
            good += 1
    assert caught.value.record == good
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    assert f"record {good} " in str(caught.value)
    return caught.value


def test_masked_crc_of_known_vectors():
    def unmasked(data):
        rotated = (masked_crc32c(data) - 0xA282EAD8) & 0xFFFFFFFF
        return (rotated << 15 | rotated >> 17) & 0xFFFFFFFF

    assert unmasked(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert unmasked(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert unmasked(b"\xff" * 32) == 0x62A8AB43
    assert unmasked(bytes(range(32))) == 0x46DD794E
    assert masked_crc32c((24).to_bytes(8, "little")) == 0x224B7FA3  # begins every tfevents file


def test_bytes_of_a_file(tmp_path):
    path = tmp_path / "file"
    index = write(path, list(GOLDEN))
    assert path.read_bytes() == bytes.fromhex("".join(GOLDEN.values()))
    assert index.offsets.tolist() == [0, 25, 41]
    assert index.lengths.tolist() == [9, 0, 32]
    assert index.crcs.tolist() == [0xC78AB0E5, 0xA282EAD8, 0x951F7892]
    assert_same(index, build_index(path, count=3))


def test_tensorflow_reads_ours_and_we_read_tensorflows(tmp_path):
    tf = pytest.importorskip("tensorflow")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write(ours)
    assert list(tf.data.TFRecordDataset(str(ours)).as_numpy_iterator()) == RECORDS
    with tf.io.TFRecordWriter(str(theirs)) as writer:
        for record in RECORDS:
            writer.write(record)
    assert theirs.read_bytes() == ours.read_bytes()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=8), st.randoms(use_true_random=False))
def test_round_trip(records, random):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        index = write(path, records)
        assert list(read_records(path, count=len(records))) == records
        assert_same(index, build_index(path))
        reader = pickle.loads(pickle.dumps(Reader(path, index)))
        assert len(reader) == len(records)
        for n in random.sample(range(len(records)), len(records)):
            assert reader.read(n) == records[n]


def test_any_bit_flip_is_detected(tmp_path):
    path = tmp_path / "file"
    index = write(path)
    whole = path.read_bytes()
    ends = index.offsets + index.lengths + 16
    assert ends[-1] == len(whole)
    for position in range(len(whole)):
        owner = int(np.searchsorted(ends, position, side="right"))
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            assert sequential_error(path).record == owner
            reader = Reader(path, index)
            for n, record in enumerate(RECORDS):
                if n != owner:
                    assert reader.read(n) == record
            with pytest.raises(CorruptRecordError) as caught:
                reader.read(owner)
            assert (caught.value.path, caught.value.record) == (path, owner)


def test_any_truncation_is_detected(tmp_path):
    path = tmp_path / "file"
    index = write(path)
    whole = path.read_bytes()
    ends = (index.offsets + index.lengths + 16).tolist()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        first_lost = sum(end <= size for end in ends)
        assert sequential_error(path, count=len(RECORDS)).record == first_lost
        if size in (0, *ends):  # a valid TFRecord file: only `count` can tell
            assert list(read_records(path)) == RECORDS[:first_lost]
        else:
            assert sequential_error(path).record == first_lost
            with pytest.raises(CorruptRecordError):
                build_index(path)
        with pytest.raises(CorruptRecordError) as caught:
            Reader(path, index)
        assert (caught.value.path, caught.value.record) == (path, first_lost)


def test_surplus_records_are_detected(tmp_path):
    path = tmp_path / "file"
    index = write(path)
    assert sequential_error(path, count=2).record == 2
    path.write_bytes(path.read_bytes() + b"\0")
    assert sequential_error(path).record == len(RECORDS)
    with pytest.raises(CorruptRecordError) as caught:
        Reader(path, index)
    assert caught.value.record == len(RECORDS)


def test_a_length_beyond_the_file_is_not_read(tmp_path):
    path = tmp_path / "file"
    header = (1 << 60).to_bytes(8, "little")  # with a right checksum: no memory for it is asked
    path.write_bytes(header + masked_crc32c(header).to_bytes(4, "little") + b"abc")
    assert "truncated" in sequential_error(path).reason


def test_the_index_of_another_file(tmp_path):
    write(tmp_path / "a", [b"same", b"size"])
    other = write(tmp_path / "b", [b"same", b"SIZE"])
    reader = Reader(tmp_path / "a", other)
    assert reader.read(0) == b"same"
    with pytest.raises(CorruptRecordError, match=r"record 1 .*not the record"):
        reader.read(1)
    shifted = write(tmp_path / "b", [b"sam", b"Ssize"])
    with pytest.raises(CorruptRecordError, match=r"record 0 .*length"):
        Reader(tmp_path / "a", shifted).read(0)


def test_missing_record_and_missing_file(tmp_path):
    reader = Reader(tmp_path / "file", write(tmp_path / "file"))
    for n in (-1, len(RECORDS)):
        with pytest.raises(IndexError, match="4 records"):
            reader.read(n)
    with pytest.raises(UserError, match=r"cannot read .*missing"):
        list(read_records(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"cannot read .*missing"):
        Reader(tmp_path / "missing", reader.index)


def test_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(CorruptRecordError("some/file", 7, "a reason")))
    assert (error.path, error.record, error.reason) == ("some/file", 7, "a reason")
    assert isinstance(error, UserError)


def test_an_error_in_the_block_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), Writer(tmp_path / "file") as writer:
        writer.write(b"abc")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("records", [100, 1000])  # fails at the final flush; fails at a write
def test_a_file_that_cannot_grow(tmp_path, records):
    script = (
        "import resource, sys\n"
        "from inf_jax.core.errors import main_guard\n"
        "from inf_jax.io.tfrecord import Writer\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "with main_guard(), Writer(sys.argv[1]) as writer:\n"
        "    for _ in range(int(sys.argv[2])):\n"
        "        writer.write(bytes(4096))\n"
    )
    path = tmp_path / "file"
    command = [sys.executable, "-c", script, path, str(records)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith(f"error: cannot write {path}: ")
    assert "free some space" in run.stderr
    assert os.listdir(tmp_path) == []


def test_a_killed_writer(tmp_path):
    path = tmp_path / "file"
    script = (
        "import sys, time\n"
        "from inf_jax.io.tfrecord import Writer\n"
        "with Writer(sys.argv[1]) as writer:\n"
        "    for _ in range(1000):\n"
        "        writer.write(bytes(4096))\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGKILL)
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith("file.partial-")
    assert partial.stat().st_size > 0
    write(path)
    assert os.listdir(tmp_path) == ["file"]
    assert list(read_records(path)) == RECORDS
