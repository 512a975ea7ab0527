"""Shuffled splits, read in windows: from a disk and from a bucket, by one host or several."""

import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from inf_jax.core.errors import UserError
from inf_jax.data.example_order import ExampleOrder
from inf_jax.data.layout import BatchLayout
from inf_jax.data.loader import Loader
from inf_jax.data.packing_plan import plan_packing
from inf_jax.data.records import Pair, PairExample
from inf_jax.data.sampler import assign_step
from inf_jax.data.tokenise import read_examples, tokenise_plan
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.data.tokenised.opening import open_tokenised
from inf_jax.data.tokenised.plans import CHECKSUMS, TokenisingPlan, plan_shards
from inf_jax.data.tokenised.records import encode_tokenised
from inf_jax.data.tokenised.shuffle import spread_by_length
from inf_jax.data.windows import WindowedOrder
from inf_jax.io import gcs as bucket
from inf_jax.io.storage import as_path
from inf_jax.io.tfrecord import CorruptRecordError
from tests.doubles.gcs_server import Object
from tests.inf_jax.data.small_split import TEXT, make_dataset

# aiohttp's advice on what gcsfs does
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
COUNT, PER_SHARD = 3000, 512
RECIPE = {"split": "train", "examples_per_shard": 4}
LIMIT = 1 << 24


def example(n):
    """One or two pairs, some with an instruction, some with negatives."""
    word = "rest and water help " * (n % 5 + 1)
    negatives = tuple(f"surgery {n} {m}" for m in range(n % 3))
    pairs = [Pair("Who is at risk?" if n % 2 else "", f"disease {n}", f"{word} {n}", negatives)]
    if n % 4:
        pairs.append(Pair("What helps?", f"disease {n}", f"children {n}"))
    return PairExample(f"train-{n}", tuple(pairs))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    examples = [example(n) for n in range(COUNT)]
    folder = tmp_path_factory.mktemp("windows") / "inf_ir" / "pairs" / "1.0.0"
    return make_dataset(folder, {"train": [examples[:700], examples[700:]]})


def plan(source, out_dir, tokenizer, *, shuffled=True):
    options = {"tokenizer": tokenizer, "text": TEXT, "examples_per_shard": PER_SHARD}
    found = plan_shards(source, "train", out_dir=out_dir, **options)
    return found.as_shuffled(shuffled)


def tokenised(source, out_dir, tokenizer, *, shuffled=True):
    return tokenise_plan(
        plan(source, out_dir, tokenizer, shuffled=shuffled),
        tokenizer=tokenizer,
        text=TEXT,
        progress=False,
    )


@pytest.fixture(scope="module")
def stored(source, tokenizer, tmp_path_factory):
    """The shuffled split on a disk."""
    return tokenised(source, tmp_path_factory.mktemp("tokens"), tokenizer)


@pytest.fixture(scope="module")
def remote(gcs, source, stored):
    """Text and tokens in gs://data, as `gcloud storage cp -r` uploads them."""
    gcs.make("data")
    for path in [*source.iterdir(), *stored.iterdir()]:
        folder = "inf_ir/pairs/1.0.0" if path.parent == source else f"tokenised/pairs/{stored.name}"
        gcs.buckets["data"].objects[f"{folder}/{path.name}"] = Object(path.read_bytes(), 1)
    return as_path("gs://data/tokenised/pairs") / stored.name


def loader(dataset, *, chunks=4, mine=None, batch_size=32, steps=100, **changes):
    shapes = {"row_tokens": 64, "texts_per_row": 8, "pairs_per_example": 2}
    layout = BatchLayout(batch_size=batch_size, chunks=chunks, **shapes | changes)
    return Loader(dataset, layout, seed=3, steps=steps, mine=mine)


def test_the_shuffled_split_holds_every_example_once(source, stored, tokenizer, tmp_path):
    dataset = open_tokenised(stored, limit=LIMIT)
    plain = TokenisedDataset(tokenised(source, tmp_path, tokenizer, shuffled=False))
    records, expected = dataset.read(range(COUNT)), plain.read(range(COUNT))
    assert {encode_tokenised(r) for r in records} == {encode_tokenised(r) for r in expected}
    place = {record.id: n for n, record in enumerate(expected)}
    order = np.array([place[record.id] for record in records])
    assert not np.array_equal(order, np.sort(order))
    every = np.arange(COUNT)
    for name in ("text_lengths", "part_lengths", "instruction_hashes", "negative_counts"):
        np.testing.assert_array_equal(getattr(dataset, name)[every], getattr(plain, name)[order])
    np.testing.assert_array_equal(dataset.siblings(every) % 2, plain.siblings(order) % 2)
    assert dataset.instructions == plain.instructions == (True, True)
    drawn = np.where(plain.negative_counts[order].reshape(-1, 1) > 1, [[0, 1]], -1)
    np.testing.assert_array_equal(
        dataset.negative_lengths(every, drawn), plain.negative_lengths(order, drawn)
    )
    for h in (0, 1):
        tokens = plain.text_lengths.sum(1) + plain.drawn_tokens(h)
        np.testing.assert_array_equal(dataset.tokens_of(every, negatives=h), tokens[order])
    for mine, theirs in zip(
        dataset.known_instructions(every), plain.known_instructions(order), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_shards_hold_all_lengths(stored):
    """The last one as well, which held the longest alone."""
    dataset = open_tokenised(stored, limit=LIMIT)
    assert dataset.shard_sizes.tolist() == [500] * 6
    sums = dataset.text_lengths[np.arange(COUNT)].sum(1).reshape(6, -1).sum(1)
    assert abs(sums / sums.mean() - 1).max() < 0.01


@pytest.mark.parametrize(("count", "sizes"), [(22, [4, 4, 4, 4, 3, 3]), (21, [4, 4, 4, 3, 3, 3])])
def test_shards_are_of_equal_size(count, sizes, tmp_path):
    plan = TokenisingPlan([(tmp_path, count)], tmp_path, [], RECIPE, "").as_shuffled(True)
    assert [size for _, size in plan.shards] == sizes


def test_stretches_of_a_shard_hold_all_lengths():
    tokens = np.random.default_rng(0).lognormal(4, 0.5, 8192).astype(int)
    order = spread_by_length(tokens, number=3)
    np.testing.assert_array_equal(np.sort(order), np.arange(8192))
    sums = tokens[order].reshape(-1, 64).sum(1)
    assert sums.std() / sums.mean() < 0.01  # of random ones 0.065
    assert not np.array_equal(order, spread_by_length(tokens, number=4))


@pytest.mark.parametrize("number", [4, 5])
@pytest.mark.parametrize(("total", "batch"), [(5000, 32), (5000, 24), (700, 640), (40_000, 4096)])
def test_an_epoch_holds_each_example_once(total, batch, number):
    sizes = np.array([256] * (total // 256) + [total % 256] * (total % 256 > 0))
    length = np.random.default_rng(0).integers(5, 200, total)

    def make(seed):
        options = {"seed": seed, "batch_size": batch, "order": number}
        return WindowedOrder(sizes, tokens=length.__getitem__, **options)

    order, steps = make(1), total // batch
    for epoch in range(2):
        seen = np.concatenate([order.examples(epoch * steps + n) for n in range(steps)])
        assert len(np.unique(seen)) == len(seen) == steps * batch
        windows = [order.window(epoch * steps + n) for n in range(steps)]
        assert all(epoch * steps + n in order.steps(w) for n, w in enumerate(windows))
        lanes = np.arange(order.lanes)
        for window in sorted({*windows}):
            stretches = [np.arange(*s) for s in order.stretches(window, lanes)]
            here = np.concatenate([order.examples(n) for n in order.steps(window)])
            np.testing.assert_array_equal(np.sort(np.concatenate(stretches)), np.sort(here))
    assert not np.array_equal(order.examples(0), order.examples(steps))
    assert not np.array_equal(order.examples(0), make(2).examples(0))
    np.testing.assert_array_equal(order.examples(3), make(1).examples(3))  # of (seed, step) alone


@pytest.mark.parametrize("sizes", [[100], [50, 50], [9] * 10 + [10]], ids=["one", "two", "many"])
def test_epochs_leave_out_all_examples_alike(sizes):
    """Before order 5 the last of a shard alone: of one shard always the same."""
    options = {"seed": 1, "batch_size": 32, "tokens": np.ones_like}
    order, left = WindowedOrder(np.array(sizes), **options), np.zeros(100, int)
    for epoch in range(500):
        seen = np.concatenate([order.examples(3 * epoch + n) for n in range(3)])
        left[np.setdiff1d(np.arange(100), seen)] += 1
    assert left.sum() == 4 * 500 and left.min() > 5 and left.max() < 40  # 20 on average


@pytest.mark.parametrize("chunks", [8, 64, 256], ids="{} chunks".format)
def test_chunks_are_equal_in_tokens(chunks):
    """And fill rows as a global order does; before, up to 13 % apart."""
    length = np.random.default_rng(0).lognormal(4, 0.5, 32 * 8192).astype(int).clip(6, 250)
    shards = [m[spread_by_length(length[m], number=n)] for n, m in enumerate(_shards_of(length))]
    length = length[np.concatenate(shards)]
    sizes = {"batch_size": 4096, "chunks": chunks, "pairs_per_example": 1}
    layout = BatchLayout(row_tokens=256, texts_per_row=32, **sizes)
    dataset = SimpleNamespace(text_lengths=np.stack([length // 4, length - length // 4], 1))
    dataset.negative_counts = None
    fills = {}
    for kind in ("global", "windows"):
        options, groups = {"seed": 0, "batch_size": 4096}, 1
        if kind == "global":
            order = ExampleOrder(length, **options)
        else:
            shard_sizes = np.full(32, 8192)
            order = WindowedOrder(shard_sizes, tokens=length.__getitem__, **options)
            groups = order.groups(chunks)
            assert groups == 8  # whose 512 pairs a host reads, however many hosts there are
        assigned = [
            assign_step(dataset, layout, order.examples(n), seed=0, step=n, groups=groups)
            for n in range(0, 64, 7)
        ]
        most = []
        for each in assigned:
            tokens = each.lengths.sum(1)[each.chunks].sum(1)
            most.append(tokens.max() / tokens.mean())
        fills[kind] = plan_packing(assigned.__getitem__, layout, steps=9, refit=True).fill
        assert max(most) < 1.01, kind
    assert fills["windows"] > fills["global"] - 0.01


def _shards_of(length):
    """Of each run of 32 by length a shard has one."""
    rows = np.argsort(length, kind="stable").reshape(-1, 32)
    return np.random.default_rng(1).permuted(rows, axis=1).T


def test_a_step_larger_than_the_data():
    with pytest.raises(UserError, match="step of 11 examples is larger than the data, 10"):
        WindowedOrder(np.array([10]), tokens=lambda e: e, seed=0, batch_size=11)


def equal(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "changes",
    [{}, {"instruction_negatives": 2, "pairs_per_example": 2}, {"negatives": 2}],
    ids=["pairs", "block I", "negatives"],
)
def test_hosts_and_bucket_give_the_batch_of_one_host(stored, remote, changes):
    whole = loader(open_tokenised(stored, limit=LIMIT), **changes)
    for step in (0, 41, 60):
        batch = whole.host_batch(step)
        for hosts in (2, 4):
            parts = [
                loader(
                    open_tokenised(remote if hosts == 4 else stored, limit=LIMIT),
                    mine=[*range(n * 4 // hosts, (n + 1) * 4 // hosts)],
                    **changes,
                ).host_batch(step)
                for n in range(hosts)
            ]
            equal(batch, jax.tree.map(lambda *x: np.concatenate(x), *parts))


def test_a_host_reads_its_share(gcs, remote):
    served = gcs.buckets["data"].served
    sizes = {"chunks": 8, "batch_size": 1024, "steps": 2}  # an epoch
    mine = loader(open_tokenised(remote, limit=LIMIT), mine=range(4, 8), **sizes)
    served.clear()
    for step in range(2):
        mine.host_batch(step)
    records = {name: count for name, count in served.items() if name.endswith(".tfrecord")}
    objects = gcs.buckets["data"].objects
    total = sum(len(objects[name].data) for name in objects if name.endswith("6.tfrecord"))
    share = total * 2048 / COUNT / 2
    assert 0.9 * share < sum(records.values()) < 1.3 * share


def test_a_damaged_object_is_named(gcs, remote, stored):
    objects = gcs.buckets["data"].objects
    name = next(name for name in objects if "tokens-00001" in name and name.endswith("tfrecord"))
    whole = objects[name]
    for place, message in (
        (40, "record 0 .*checksum"),
        (len(whole.data) - 30, "record 499 .*checksum"),
    ):
        data = bytearray(whole.data)
        data[place] ^= 1
        objects[name] = whole._replace(data=bytes(data))
        dataset = open_tokenised(remote, limit=LIMIT)
        with pytest.raises(CorruptRecordError, match=f"gs://data/.*tokens-00001.*{message}"):
            dataset.read(range(500, 1000))
    objects[name] = whole._replace(data=whole.data[:-100])
    with pytest.raises(UserError, match=r"gs://data/.*tokens-00001.*: it is cut"):
        open_tokenised(remote, limit=LIMIT).read([999])
    del objects[name]
    with pytest.raises(UserError, match=r"gs://data/.*tokens-00001.*no such object"):
        open_tokenised(remote, limit=LIMIT).read([600])
    objects[name] = whole
    assert len(open_tokenised(remote, limit=LIMIT).read([600])) == 1


def test_the_limit_is_said(stored):
    mine = loader(open_tokenised(stored, limit=1000))
    with pytest.raises(UserError, match=r"data.stage_mb=0: .* take 2 MiB: set data.stage_mb=2"):
        mine.host_batch(0)


def test_text_in_a_bucket_is_tokenised_there(gcs, remote, source, stored, tokenizer):
    """As on a disk, to the same bytes; a second start reads checksums and the manifest."""
    objects = gcs.buckets["data"].objects
    place = as_path("gs://data/inf_ir/pairs/1.0.0")
    written = tokenised(place, as_path("gs://data/again"), tokenizer)
    assert written.name == stored.name and CHECKSUMS in bucket.files_below(place)
    for path in stored.iterdir():
        assert objects[f"again/{stored.name}/{path.name}"].data == path.read_bytes(), path.name
    del objects[f"again/{stored.name}/manifest.json"]  # killed before the end
    served = gcs.buckets["data"].served
    served.clear()
    tokenised(place, as_path("gs://data/again"), tokenizer)
    assert f"again/{stored.name}/manifest.json" in objects
    served.clear()
    tokenised(place, as_path("gs://data/again"), tokenizer)
    assert not any(name.endswith((".tfrecord", ".npz", "of-00002")) for name in served)
    lost = stored.name + "/index-text-lengths.bin", stored.name + "/tokens-00002-of-00006.tfrecord"
    for name in lost:
        del objects[f"again/{name}"]
    tokenised(place, as_path("gs://data/again"), tokenizer)
    for name in lost:
        assert objects[f"again/{name}"].data == (stored.parent / name).read_bytes()
    assert [*read_examples(place, "train")] == [*read_examples(source, "train")]


def test_files_that_are_deleted_are_written_again(source, stored, tokenizer, tmp_path):
    """As messages on damaged ones say; nothing that is there is."""
    directory = tmp_path / stored.name
    shutil.copytree(stored, directory)
    for name in ("tokens-00003-of-00006.tfrecord", "index-block-crcs.bin"):
        (directory / name).unlink()
        kept = (directory / "tokens-00000-of-00006.tfrecord").stat().st_ino
        tokenised(source, tmp_path, tokenizer)
        assert (directory / name).read_bytes() == (stored / name).read_bytes()
        assert (directory / "tokens-00000-of-00006.tfrecord").stat().st_ino == kept
    (directory / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json: not JSON .*; delete it and tokenise"):
        tokenised(source, tmp_path, tokenizer)


def test_damaged_text_in_a_bucket_is_named(gcs, remote, source, tokenizer):
    """Not its copy, which is gone by then."""
    objects = gcs.buckets["data"].objects
    for path in source.iterdir():
        data = path.read_bytes()
        data = data[:-9] if path.name.endswith("1-of-00002") else data
        objects[f"inf_ir/cut/1.0.0/{path.name}"] = Object(data, 1)
    with pytest.raises(CorruptRecordError, match=r"^gs://data/inf_ir/cut/1.0.0/.*record 2299 "):
        tokenised(as_path("gs://data/inf_ir/cut/1.0.0"), as_path("gs://data/cut"), tokenizer)


def test_a_global_order_is_read_from_a_copy(gcs, remote, source, tokenizer):
    place = as_path("gs://data/inf_ir/pairs/1.0.0")
    written = tokenised(place, as_path("gs://data/global"), tokenizer, shuffled=False)
    dataset = open_tokenised(written, limit=LIMIT)
    assert [record.id for record in dataset.read([7, 2999])] == ["train-7", "train-2999"]
    with pytest.raises(UserError, match=r"reads all of the split, 2 MiB.*data\.stage_mb=0"):
        open_tokenised(written, limit=1000)
