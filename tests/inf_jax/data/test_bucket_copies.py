"""What of a bucket's split is copied to TMPDIR: damage there and no room for the copy are named."""

import contextlib
import resource
import tempfile

import pytest

from inf_jax.core.errors import UserError
from inf_jax.data.tokenise import tokenise_plan
from inf_jax.data.tokenised.opening import open_tokenised
from inf_jax.data.tokenised.plans import plan_shards
from inf_jax.io.storage import as_path
from inf_jax.io.tfrecord import CorruptRecordError
from tests.doubles.gcs_server import Object
from tests.inf_jax.data.small_split import EXAMPLES, TEXT, make_dataset

# aiohttp's advice on what gcsfs does
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
LIMIT = 1 << 24


@pytest.fixture(scope="module")
def source(gcs, tmp_path_factory):
    """The text of a split in a bucket."""
    local = make_dataset(tmp_path_factory.mktemp("copies") / "1.0.0", {"train": [EXAMPLES]})
    objects = gcs.make("data").objects
    for path in local.iterdir():
        objects[f"inf_ir/pairs/1.0.0/{path.name}"] = Object(path.read_bytes(), 1)
    return as_path("gs://data/inf_ir/pairs/1.0.0")


@pytest.fixture(scope="module")
def written(source, tokenizer):
    """The directory of the split by its order: for windows, and global."""
    plan = plan_shards(source, "train", out_dir="gs://data/tokens", tokenizer=tokenizer, text=TEXT)
    options = {"tokenizer": tokenizer, "text": TEXT, "progress": False}
    return {n: tokenise_plan(plan.as_shuffled(n), **options) for n in (True, False)}


@pytest.mark.parametrize("suffix", [".tfrecord", ".index.npz"])
def test_damage_is_named_in_the_bucket_not_in_its_copy(gcs, written, suffix):
    objects, directory = gcs.buckets["data"].objects, written[False]
    name = next(n for n in objects if directory.name in n and n.endswith(suffix))
    whole = objects[name]
    objects[name] = whole._replace(data=whole.data[:-100])
    try:
        with pytest.raises(UserError, match=f"^gs://data/{name}.*; delete"):
            open_tokenised(directory, limit=LIMIT)
    finally:
        objects[name] = whole


@pytest.mark.parametrize("byte", [0, 7])
def test_a_damaged_length_in_a_window_is_named(gcs, written, byte):
    """The lowest byte of a record's length, and the highest: beyond int64."""
    objects, directory = gcs.buckets["data"].objects, written[True]
    name = next(n for n in objects if directory.name in n and n.endswith(".tfrecord"))
    whole = objects[name]
    damaged = bytearray(whole.data)
    damaged[byte] ^= 0xFF
    objects[name] = whole._replace(data=bytes(damaged))
    try:
        with pytest.raises(
            CorruptRecordError, match=f"^gs://data/{name}: record 0 .*of its length"
        ):
            open_tokenised(directory, limit=LIMIT).read([0])
    finally:
        objects[name] = whole


# TMPDIR is not there; no file in it can have a byte; none can have more than a few
ROOM = pytest.mark.parametrize("room", [None, 0, 20])


@contextlib.contextmanager
def little(room, directory):
    """A temporary directory with no room. It ends within the test: pytest's own output may go to a
    file."""
    before, was = resource.getrlimit(resource.RLIMIT_FSIZE), tempfile.tempdir
    tempfile.tempdir = str(directory / "absent" if room is None else directory)
    try:
        if room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        tempfile.tempdir = was


@ROOM
@pytest.mark.parametrize("windows", [True, False])
def test_no_room_for_a_copy_is_said(written, tmp_path, room, windows):
    message = r"^cannot write in .*; free some space .* TMPDIR"
    with pytest.raises(UserError, match=message), little(room, tmp_path):
        open_tokenised(written[windows], limit=LIMIT)


def test_no_directory_for_copies_at_all_is_said(written, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/absent"])
    with pytest.raises(UserError, match=r"^cannot write temporary files: No usable .* TMPDIR"):
        open_tokenised(written[False], limit=LIMIT)


@ROOM
def test_no_room_for_a_copy_of_the_text_is_said(source, tokenizer, tmp_path, room):
    options = {"tokenizer": tokenizer, "text": TEXT}
    plan = plan_shards(source, "train", out_dir="gs://data/not-written", **options)
    message = r"^cannot write in .*; free some space .* TMPDIR"
    with pytest.raises(UserError, match=message), little(room, tmp_path):
        tokenise_plan(plan, progress=False, **options)
