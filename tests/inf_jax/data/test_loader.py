"""The loader: a pure function of (seed, step); hosts share the work."""

import json
import shutil

import numpy as np
import pytest

from inf_jax.core.errors import UserError
from inf_jax.core.query_encoders import Attention
from inf_jax.data.loader import to_mesh
from inf_jax.data.records import pairs, text_hash
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.distributed.mesh import make_mesh
from inf_jax.io.tfrecord import CorruptRecordError
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer
from tests.inf_jax.data.batches import grid_texts, hash_of, make, texts_of


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
    assert sorted(texts_of(batch, loader.layout.pairs_per_chunk)) == sorted(expected)
    assert batch.valid.sum() == 18
    assert batch.valid.size == chunks * loader.layout.pairs_per_chunk
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
    whole = ids[..., 0] | ids[..., 1] << np.uint64(32)
    for pair, hashes in zip(texts_of(batch, loader.layout.pairs_per_chunk), whole, strict=True):
        np.testing.assert_array_equal(by_texts[pair], hashes)


def test_hosts_together_are_one_host(dataset):
    whole = make(dataset, chunks=4).host_batch(7)
    for shares in ([0, 1], [2, 3]), ([0, 3], [1, 2]):
        parts = [make(dataset, chunks=4, mine=mine).host_batch(7) for mine in shares]
        place = np.argsort(np.concatenate(shares))  # of each chunk in the shares put together
        for all_, first, second in zip(whole.texts, parts[0].texts, parts[1].texts, strict=True):
            np.testing.assert_array_equal(all_, np.concatenate([first, second])[place])
        passages = np.concatenate([p.ids.passage for p in parts])
        passages = passages.reshape(4, -1, 2)[place].reshape(-1, 2)
        np.testing.assert_array_equal(whole.ids.passage, passages)


def test_separate_towers_have_a_grid_each(dataset):
    loader = make(dataset, towers="separate")
    queries, passages = loader.host_batch(0).texts
    assert (queries.tokens.shape[1], passages.tokens.shape[1]) == loader.plan.rows
    assert loader.plan.rows[0] < loader.plan.rows[1]
    assert queries.slots.shape[1] == passages.slots.shape[1] == loader.layout.pairs_per_chunk


def test_prefetch_gives_the_same_batches_in_order(dataset):
    loader = make(dataset, chunks=8)
    got = list(loader.batches(3, 7, to_device=to_mesh(make_mesh()), prefetch=3))
    assert len(got) == 4
    for step, batch in enumerate(got, 3):
        np.testing.assert_array_equal(batch.texts.tokens, loader.host_batch(step).texts.tokens)
        assert len(batch.texts.tokens.sharding.device_set) == 8


def test_a_damaged_record_stops_the_iteration_and_is_named(dataset, tmp_path):
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


@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_attention_has_instruction_and_query_apart(dataset, examples, tiny_model_dir, towers):
    loader = make(
        dataset,
        chunks=4,
        towers=towers,
        query_encoder=Attention(),
        instruction_negatives=0,
    )
    tokenizer = load_tokenizer(tiny_model_dir)
    limits = TextConfig(max_passage_tokens=16)
    batch, n = loader.host_batch(2), loader.layout.pairs_per_chunk
    grids = [batch.texts] if towers == "shared" else batch.texts
    texts, ids = grid_texts(grids[0])
    assert ids.shape == (4, 3 * n if towers == "shared" else 2 * n)
    mine = [examples[r.id] for r in dataset.read(loader.example_indices(2))]
    rows = np.flatnonzero(batch.valid)
    assert len(rows) == 18
    for row in rows:
        chunk, j = divmod(row, n)
        pair = pairs(mine[ids[chunk, n + j] // 2 // 3])[ids[chunk, n + j] // 2 % 3]
        for column, part in ((j, pair.instruction), (n + j, pair.query)):
            expected = tokenizer.passages([part], limits)[0]
            assert texts[ids[chunk, column]] == tuple(expected.tolist())
        assert hash_of(batch.ids.instruction[row]) == text_hash(pair.instruction)
        # every other row of the chunk gives an instruction, its own and empty slots do not count
        mates = hash_of(batch.ids.instruction[chunk * n : chunk * n + n])
        filled = batch.valid[chunk * n : chunk * n + n]
        own = mates[j]
        np.testing.assert_array_equal(
            hash_of(batch.negatives.ids[row]), np.where(filled, mates, own)
        )
        np.testing.assert_array_equal(batch.negatives.valid[row], filled & (np.arange(n) != j))
        # the poison is a chunk-mate: examples are dealt whole
        sibling = ids[chunk, n + j] // 2 + (1, -1, 0)[ids[chunk, n + j] // 2 % 3]
        assert sibling in ids[chunk, n : 2 * n][filled] // 2
    assert batch.negatives.poison is None
    assert not batch.negatives.valid[~batch.valid].any()


def test_texts_that_cannot_be_spliced_are_refused(dataset, tmp_path):
    copy = tmp_path / "copy"  # of a dataset whose tokenizer merges over the border
    shutil.copytree(dataset.directory, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["composition"] = {"checked": 180, "crossed": 3, "alone": 2}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    merged = TokenisedDataset(copy)
    assert make(merged).host_batch(0).negatives is None
    assert make(merged, instruction_negatives=0).host_batch(0).negatives.ids.shape == (18, 1, 2)
    with pytest.raises(UserError, match=r"data\.query_template=.*\(3 of 180.*at 0 \(block I"):
        make(merged, instruction_negatives=1)
    with pytest.raises(UserError, match=r"\(2 of 180 checked differ\).*query_encoder=\"joint\""):
        make(merged, query_encoder=Attention())
    with pytest.raises(UserError, match="none is sampled; set it to 0"):
        make(dataset, query_encoder=Attention(), instruction_negatives=1)


def test_impossible_layouts(dataset):
    with pytest.raises(UserError, match=r"train\.batch_size=18 gives fewer pairs than there are"):
        make(dataset, chunks=32)
    with pytest.raises(UserError, match=r"raise data\.row_tokens"):
        make(dataset, row_tokens=8)
