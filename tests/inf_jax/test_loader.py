"""The loader: a pure function of (seed, step), each example once an epoch, hosts share the work."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.core.query_encoders import Attention
from inf_jax.data import negatives, packing_plan
from inf_jax.data.from_config import tokenised_split
from inf_jax.data.layout import BatchLayout
from inf_jax.data.loader import Loader, to_mesh
from inf_jax.data.records import pairs, text_hash
from inf_jax.data.sampler import WINDOW_STEPS
from inf_jax.data.tokenise import read_examples
from inf_jax.data.tokenised import TokenisedDataset
from inf_jax.distributed.mesh import make_mesh
from inf_jax.io.tfrecord import CorruptRecordError
from inf_jax.models.hf.backbone import load_model
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def dataset(tiny_model_dir, tiny_dataset_dir):
    from inf_jax.config.defaults import defaults

    config = defaults()
    config.data.dir = str(tiny_dataset_dir.parents[2])
    config.data.source = "inf_ir"
    config.data.max_query_tokens = 16
    config.data.max_passage_tokens = 32
    config.model.name = str(tiny_model_dir)
    log = run_config(config)
    return tokenised_split(log, load_model(log).tokenizer, "train")


@pytest.fixture(scope="module")
def examples(tiny_dataset_dir):
    """The text examples by id."""
    return {e.id: e for e in read_examples(tiny_dataset_dir, "train")}


def make(dataset, *, seed=1, steps=40, mine=None, **changes):
    shapes = {"batch_size": 6, "chunks": 2, "row_tokens": 64, "texts_per_row": 8}
    return Loader(dataset, BatchLayout(**shapes | changes), seed=seed, steps=steps, mine=mine)


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
    found = ids[..., 0] | ids[..., 1] << np.uint64(32)
    for pair, hashes in zip(texts_of(batch, loader.layout.pairs_per_chunk), found, strict=True):
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


def test_plan_is_one_shape_for_all_steps_and_its_fill_is_true(dataset):
    loader = make(dataset)
    assert loader.plan.exact
    batches = [loader.host_batch(step) for step in range(40)]
    assert len({b.texts.tokens.shape for b in batches}) == 1
    assert np.mean([(b.texts.segments > 0).mean() for b in batches]) == pytest.approx(
        loader.plan.fill
    )


def test_sampled_plan_falls_back_to_a_larger_shape(dataset, monkeypatch):
    monkeypatch.setattr(packing_plan, "PLANNED_TEXTS", 0)
    monkeypatch.setattr(packing_plan, "SAMPLED_STEPS", 1)
    monkeypatch.setattr(packing_plan, "MARGIN", 0.5)  # far too little on purpose
    loader = make(dataset)
    exact = [make(dataset, chunks=2).host_batch(s) for s in (0, 1)]
    assert not loader.plan.exact
    for step, expected in enumerate(exact):
        batch = loader.host_batch(step)
        assert batch.texts.tokens.shape[1] > loader.plan.rows[0]
        n = loader.layout.pairs_per_chunk
        assert sorted(texts_of(batch, n)) == sorted(texts_of(expected, n))  # nothing dropped


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


def grid_texts(packed):
    """The texts of a grid as {dropout id: tokens}, and each chunk's slots as dropout ids."""
    s = packed.text_ids.shape[-1]
    texts, ids = {}, np.full(packed.slots.shape, -1)
    for c, slots in enumerate(packed.slots):
        for k, slot in enumerate(slots.tolist()):
            row, place = divmod(slot, s)
            ids[c, k] = packed.text_ids[c, row, place]
            mine = packed.segments[c, row] == place + 1
            texts[int(ids[c, k])] = tuple(packed.tokens[c, row][mine].tolist())
    return texts, ids


def hash_of(ids):
    return ids[..., 0].astype(np.uint64) | ids[..., 1].astype(np.uint64) << np.uint64(32)


def by_pair(batch, n, m):
    """{pair's number: (its n_ik as (hash, tokens), its poison's number, its own hash)}."""
    texts, ids = grid_texts(batch.texts)
    of_row, found = ids[:, :n].ravel() // 2, {}
    drawn = ids[:, 2 * n :].reshape(-1, m)
    for row in np.flatnonzero(batch.valid):
        hashes = hash_of(batch.negatives.ids[row])
        sampled = [
            (int(hashes[1 + j]), texts[drawn[row, j]])
            for j in range(m)
            if batch.negatives.valid[row, 1 + j]
        ]
        place = row // n * n + batch.negatives.poison[row]
        poison = of_row[place] if batch.negatives.valid[row, 0] else None
        own = int(hash_of(batch.ids.instruction[row]))
        found[of_row[row]] = (sampled, poison, int(hashes[0]), own)
    return found


def test_the_drawn_texts_are_the_query_under_other_instructions(dataset, examples, tiny_model_dir):
    loader, m = make(dataset, instruction_negatives=2), 2
    tokenizer = load_tokenizer(tiny_model_dir)
    text = TextConfig(max_query_tokens=16, max_passage_tokens=32)
    instructions = {
        text_hash(e.instruction_positive): e.instruction_positive for e in examples.values()
    }
    for step in (0, 5, 21):
        found = by_pair(loader.host_batch(step), loader.layout.pairs_per_chunk, m)
        assert len(found) == 18
        for pair, (sampled, poison, poison_hash, own) in found.items():
            example = examples[dataset.read([loader.example_indices(step)[pair // 3]])[0].id]
            query = pairs(example)[pair % 3].query
            hashes = [h for h, _ in sampled]
            assert own == text_hash(pairs(example)[pair % 3].instruction)
            # four instructions in all: own, poison's, and the two that are left
            assert poison == {0: pair + 1, 1: pair - 1, 2: None}[pair % 3]
            assert len({own, poison_hash, *hashes}) == (4 if pair % 3 < 2 else 3)
            assert len(sampled) == m
            for digest, tokens in sampled:
                expected = tokenizer.queries([(query, instructions[digest])], text)[0]
                assert tokens == tuple(expected.tolist())
            if poison is not None:
                sibling = pairs(example)[poison % 3]
                assert poison_hash == text_hash(sibling.instruction) != own
                assert sibling.query == query


def test_limits_cut_the_drawn_texts_as_the_tokenizer_does(tiny_config, examples, tiny_model_dir):
    tiny_config.data.max_query_tokens = 6
    log = run_config(tiny_config)
    tight = tokenised_split(log, load_model(log).tokenizer, "train")
    loader = make(tight, instruction_negatives=2, towers="separate", row_tokens=32)
    tokenizer = load_tokenizer(tiny_model_dir)
    text = TextConfig(max_query_tokens=6, max_passage_tokens=32)
    queries = {e.query_positive for e in examples.values()}
    instructions = {e.instruction_positive for e in examples.values()}
    expected = {
        tuple(ids.tolist())
        for ids in tokenizer.queries(itertools.product(queries, instructions), text)
    }
    batch = loader.host_batch(0)
    n = loader.layout.pairs_per_chunk
    texts, ids = grid_texts(batch.texts[0])
    assert ids.shape[1] == n + 2 * n
    drawn = [texts[i] for i in ids[:, n:].ravel()]
    assert len(drawn) == 36
    assert set(drawn) <= expected
    assert max(map(len, drawn)) == 6  # "Tell where it grows ." and the query do not fit


@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_draws_do_not_depend_on_chunks_or_hosts(dataset, towers):
    def look(chunks, hosts):
        loaders = [
            make(
                dataset,
                chunks=chunks,
                towers=towers,
                instruction_negatives=2,
                mine=mine,
            )
            for mine in np.split(np.arange(chunks), hosts)
        ]
        parts = [loader.host_batch(11) for loader in loaders]
        batch = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        grids = [batch.texts] if towers == "shared" else batch.texts
        texts = {}
        for grid in grids:
            texts |= grid_texts(grid)[0]
        n, rows = loaders[0].layout.pairs_per_chunk, np.flatnonzero(batch.valid)
        of_row = grid_texts(grids[0])[1][:, :n].ravel() // 2
        negatives = {
            of_row[r]: (
                batch.negatives.ids[r].tolist(),
                batch.negatives.valid[r].tolist(),
                of_row[r // n * n + batch.negatives.poison[r]],
            )
            for r in rows
        }
        empty = ~batch.valid
        assert not batch.negatives.valid[empty].any()
        assert (batch.negatives.poison[empty] == np.flatnonzero(empty) % n).all()
        for places in batch.negatives.poison.reshape(-1, n):
            assert sorted(places) == list(range(n))
        return texts, negatives

    texts, negatives = look(1, 1)
    assert len(texts) == 18 * 4
    for chunks, hosts in ((2, 1), (4, 2), (4, 4), (5, 1)):
        found = look(chunks, hosts)
        assert found[1] == negatives
        assert found[0] == texts


def test_draws_differ_between_steps_and_seeds_and_are_even(dataset):
    count = dataset.num_examples
    loaders = [
        make(dataset, batch_size=count, steps=1, instruction_negatives=1, seed=s) for s in (1, 2)
    ]
    draws = [hash_of(x.host_batch(s).negatives.ids[:, 1]) for x in loaders for s in (0, 1)]
    assert len({d.tobytes() for d in draws}) == 4
    first, deal = np.unique(draws[0], return_counts=True)
    assert len(first) == 4
    assert deal.min() > 0.7 * deal.mean()


def test_too_few_instructions_fill_with_the_rows_own():
    hashes = np.array([5, 5, 5, 9, 5, 0, 7, 5, 5], np.uint64)
    usable = hashes > 0
    sibling = negatives.siblings(usable)
    assert sibling.tolist() == [1, 0, 2, 4, 3, 5, 7, 6, 8]
    drawn = negatives.draw(hashes, usable, sibling, count=3, seed=0, step=0)
    own_or_free = [{5}, {5}, {5}, {5, 9}, {5, 9}, None, {5, 7}, {5, 7}, {5}]
    for pair, ruled_out in enumerate(own_or_free):
        found = [int(hashes[k]) for k in drawn[pair] if k >= 0]
        expected = {5, 7, 9} - ruled_out if ruled_out else set()
        assert set(found) == expected and len(found) == len(expected)
    sources, valid = negatives.of_rows(np.array([3, -1, 2, 5]), sibling, drawn)
    found = hashes[sources]
    assert found[0].tolist()[:2] == [5, 7] and found[0].tolist()[2:] == [9, 9]
    assert valid.tolist() == [
        [True, True, False, False],
        [False] * 4,
        [False, True, True, False],
        [False] * 4,
    ]


def test_an_instruction_under_which_the_passage_is_right_is_no_negative():
    hashes = np.array([[1, 7, 4], [2, 7, 4], [3, 7, 5], [2, 8, 4]], np.uint64)
    pairs = np.array([0, 1, -1])
    sources = np.array([[0, 1, 2, 3], [1, 0, 2, 3], [-1] * 4])
    found = negatives.instruction_ids(pairs, sources, hashes)
    assert found.tolist() == [[1, 1, 3, 2], [2, 2, 3, 2], [0] * 4]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=3, max_size=30),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
)
def test_draws_are_different_texts_and_as_many_as_there_are(values, count, seed):
    hashes = np.array(values[: len(values) // 3 * 3], np.uint64)
    usable = hashes > 0
    sibling = negatives.siblings(usable)
    drawn = negatives.draw(hashes, usable, sibling, count=count, seed=seed, step=3)
    texts = set(hashes[usable].tolist())
    for pair in range(len(hashes)):
        found = [int(hashes[k]) for k in drawn[pair] if k >= 0]
        left = texts - {int(hashes[pair]), int(hashes[sibling[pair]])}
        assert len(set(found)) == len(found) == (min(count, len(left)) if usable[pair] else 0)
        assert set(found) <= left


@pytest.mark.parametrize("towers", ["shared", "separate"])
@pytest.mark.parametrize("how", [{"instruction_negatives": 3}, {"query_encoder": Attention()}])
def test_plan_counts_all_texts_and_suffices(dataset, towers, how):
    loader = make(dataset, towers=towers, **how)
    batches = [loader.host_batch(step) for step in range(40)]
    grids = [[b.texts] if towers == "shared" else b.texts for b in batches]
    assert len({tuple(g.tokens.shape for g in grid) for grid in grids}) == 1
    tokens = [sum((g.segments > 0).sum() for g in grid) for grid in grids]
    assert np.mean(tokens) == pytest.approx(loader.plan.tokens)
    if "query_encoder" in how:
        assert all(b.negatives is None for b in batches)
        assert loader.plan.sampled == loader.plan.sampled_tokens == 0
        return
    n = loader.layout.pairs_per_chunk
    drawn = []
    for grid in grids:
        texts, ids = grid_texts(grid[0])
        drawn.append([len(texts[i]) for i in set(ids[:, -3 * n :].ravel()) if i >= 36])
    assert loader.plan.sampled_tokens == pytest.approx(np.mean([sum(d) for d in drawn]))
    assert loader.plan.sampled == pytest.approx(np.mean([len(d) for d in drawn]) / 18)
    assert loader.plan.poisons == pytest.approx(2 / 3)


def test_the_order_of_examples_is_that_of_a_run_without_block_i(dataset):
    plain, sampled = make(dataset), make(dataset, instruction_negatives=3)
    for step in (0, 17):
        np.testing.assert_array_equal(plain.example_indices(step), sampled.example_indices(step))


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
    how = TextConfig(max_passage_tokens=16)
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
            expected = tokenizer.passages([part], how)[0]
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


def test_what_cannot_be_put_together_is_refused(dataset, tmp_path):
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


def test_absurd_arguments(dataset):
    with pytest.raises(UserError, match=r"train\.batch_size=6 gives fewer pairs than there are"):
        make(dataset, chunks=32)
    with pytest.raises(UserError, match=r"raise data\.row_tokens"):
        make(dataset, row_tokens=8)
