"""The loader: a pure function of (seed, step), each example once an epoch, hosts share the work."""

import numpy as np
import pytest

from inf_jax import loader as loader_module
from inf_jax.config import ReadLog
from inf_jax.errors import UserError
from inf_jax.loader import WINDOW_STEPS, Loader, to_mesh
from inf_jax.mesh import make_mesh
from inf_jax.packing import fill
from inf_jax.run import load_model, tokenised_split
from inf_jax.tfrecord import CorruptRecordError
from inf_jax.tokenised import TokenisedDataset


@pytest.fixture(scope="module")
def dataset(tiny_model_dir, tiny_dataset_dir):
    from inf_jax.config import defaults

    config = defaults()
    config.data.dir = str(tiny_dataset_dir.parents[2])
    config.data.source = "inf_ir"
    config.data.max_query_tokens = 16
    config.data.max_passage_tokens = 32
    config.model.name = str(tiny_model_dir)
    log = ReadLog(config)
    return tokenised_split(log, load_model(log).tokenizer, "train")


def make(dataset, **changes):
    how = {
        "seed": 1,
        "batch_size": 6,
        "chunks": 2,
        "steps": 40,
        "row_tokens": 64,
        "texts_per_row": 8,
    }
    return Loader(dataset, **(how | changes))


def texts_of(batch, n):
    """The (query, passage) token tuples of a shared-tower batch's valid pairs, in order."""
    packed, found = batch.texts, []
    s = packed.text_ids.shape[-1]
    for c in range(packed.tokens.shape[0]):
        texts = []
        for slot in packed.slots[c]:
            row, place = divmod(int(slot), s)
            mine = packed.segments[c, row] == place + 1
            texts.append(tuple(packed.tokens[c, row][mine].tolist()))
        for j in range(n):
            if batch.valid[c * n + j]:
                found.append((texts[j], texts[n + j]))
    return found


def test_every_example_once_an_epoch_and_epochs_differ(dataset):
    loader = make(dataset)
    count = dataset.num_examples
    steps = WINDOW_STEPS * 10  # windows end on an epoch: 960 = 16 * 60 examples
    stream = np.concatenate([loader.example_indices(s) for s in range(steps)])
    assert len(stream) == steps * 6
    seen = np.bincount(stream, minlength=count)
    assert seen.min() == seen.max() == len(stream) // count
    assert not np.array_equal(stream[:count], stream[count : 2 * count])
    other = make(dataset, seed=2)
    assert not np.array_equal(loader.example_indices(0), other.example_indices(0))


def test_order_is_a_pure_function(dataset):
    a, b = make(dataset), make(dataset, chunks=4, steps=3)
    for step in (37, 2, 100, 0):  # any order of asking, any chunking
        np.testing.assert_array_equal(a.example_indices(step), b.example_indices(step))


@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_batch_holds_exactly_the_pairs_of_its_examples(dataset, chunks):
    loader = make(dataset, chunks=chunks)
    batch = loader.host_batch(3)
    expected = []
    for record in dataset.read(loader.example_indices(3)):
        texts = np.split(record.tokens, np.cumsum(record.lengths)[:-1])
        expected += [
            (tuple(texts[2 * k].tolist()), tuple(texts[2 * k + 1].tolist())) for k in range(3)
        ]
    assert sorted(texts_of(batch, loader.pairs_per_chunk)) == sorted(expected)
    assert batch.valid.sum() == 18
    assert batch.valid.size == chunks * loader.pairs_per_chunk
    assert batch.texts.tokens.shape == (chunks, loader.plan.rows[0], 64)


def test_hashes_follow_their_pairs(dataset):
    loader = make(dataset)
    batch = loader.host_batch(5)
    by_texts = {}
    for record in dataset.read(loader.example_indices(5)):
        texts = np.split(record.tokens, np.cumsum(record.lengths)[:-1])
        for k in range(3):
            key = tuple(texts[2 * k].tolist()), tuple(texts[2 * k + 1].tolist())
            by_texts[key] = record.hashes[k]
    ids = np.stack(batch.ids, 1)[batch.valid].astype(np.uint64)  # [b, 3, 2], low half first
    found = ids[..., 0] | ids[..., 1] << np.uint64(32)
    for pair, hashes in zip(texts_of(batch, loader.pairs_per_chunk), found, strict=True):
        np.testing.assert_array_equal(by_texts[pair], hashes)


def test_hosts_together_are_one_host(dataset):
    whole = make(dataset, chunks=4).host_batch(7)
    parts = [
        make(dataset, chunks=4, process_index=i, process_count=2).host_batch(7) for i in (0, 1)
    ]
    for all_, first, second in zip(whole.texts, parts[0].texts, parts[1].texts, strict=True):
        np.testing.assert_array_equal(all_, np.concatenate([first, second]))
    np.testing.assert_array_equal(whole.ids.passage, np.concatenate([p.ids.passage for p in parts]))


def test_separate_towers_have_a_grid_each(dataset):
    loader = make(dataset, towers="separate")
    queries, passages = loader.host_batch(0).texts
    assert (queries.tokens.shape[1], passages.tokens.shape[1]) == loader.plan.rows
    assert loader.plan.rows[0] < loader.plan.rows[1]
    assert queries.slots.shape[1] == passages.slots.shape[1] == loader.pairs_per_chunk


def test_plan_is_one_shape_for_all_steps_and_its_fill_is_true(dataset):
    loader = make(dataset)
    assert loader.plan.exact
    batches = [loader.host_batch(step) for step in range(40)]
    assert len({b.texts.tokens.shape for b in batches}) == 1
    assert np.mean([fill(b.texts) for b in batches]) == pytest.approx(loader.plan.fill)


def test_sampled_plan_falls_back_to_a_larger_shape(dataset, monkeypatch):
    monkeypatch.setattr(loader_module, "PLANNED_TEXTS", 0)
    monkeypatch.setattr(loader_module, "SAMPLED_STEPS", 1)
    monkeypatch.setattr(loader_module, "MARGIN", 0.5)  # far too little on purpose
    loader = make(dataset)
    exact = [make(dataset, chunks=2).host_batch(s) for s in (0, 1)]
    assert not loader.plan.exact
    for step, expected in enumerate(exact):
        batch = loader.host_batch(step)
        assert batch.texts.tokens.shape[1] > loader.plan.rows[0]
        n = loader.pairs_per_chunk
        assert sorted(texts_of(batch, n)) == sorted(texts_of(expected, n))  # nothing dropped


def test_prefetch_gives_the_same_batches_in_order(dataset):
    loader = make(dataset, chunks=8)
    got = list(loader.batches(3, 7, to_device=to_mesh(make_mesh()), prefetch=3))
    assert len(got) == 4
    for step, batch in enumerate(got, 3):
        np.testing.assert_array_equal(batch.texts.tokens, loader.host_batch(step).texts.tokens)
        assert len(batch.texts.tokens.sharding.device_set) == 8


def test_a_damaged_record_stops_the_iteration_and_is_named(dataset, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(dataset.directory, copy)
    shard = next(copy.glob("*.tfrecord"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    loader = make(TokenisedDataset(copy))
    with pytest.raises(CorruptRecordError) as error:
        for _ in loader.batches(0, 20, to_device=lambda b: b):
            pass
    assert str(shard) in str(error.value)
    assert error.value.record == pytest.approx(30, abs=5)  # the middle of 60


def test_absurd_arguments(dataset):
    with pytest.raises(UserError, match="3 chunks do not divide among 2 hosts"):
        make(dataset, chunks=3, process_count=2)
    with pytest.raises(UserError, match=r"train\.batch_size=6 gives fewer pairs than there are"):
        make(dataset, chunks=32)
    with pytest.raises(UserError, match=r"raise data\.row_tokens"):
        make(dataset, row_tokens=8)
