"""The identity masks, and the blocks' contract with engines."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax.core.batch import TextIds, split_hashes, text_ids
from inf_jax.data.records import text_hash
from inf_jax.losses import contrastive_loss
from inf_jax.losses.blocks import BLOCKS
from inf_jax.losses.candidates import (
    RowTexts,
    candidates,
    known_instructions,
    known_of,
    known_positives,
    same_query,
)
from inf_jax.losses.objective import count_negatives, parse_objective


def hashes(*texts):
    return np.array([[text_hash(text) for text in row] for row in texts], np.uint64)


def test_identity_masks():
    ids = text_ids(
        hashes(("i", "q", "p"), ("i", "q", "other"), ("j", "q", "p"), ("i", "r", "other"))
    )
    ids = ids._replace(passage=ids.passage[:, None])
    expected = np.eye(4, dtype=bool)
    expected[0, 1] = expected[1, 0] = True
    np.testing.assert_array_equal(same_query(ids, ids), expected)
    passages = np.eye(4, dtype=bool)
    passages[[0, 2, 1, 3], [2, 0, 3, 1]] = True
    np.testing.assert_array_equal(known_positives(ids, ids, 1)[:, :, 0], expected | passages)


def test_a_query_alone_is_answered_by_the_passages_of_its_query():
    texts = [("", "q", "p"), ("i", "q", "other"), ("j", "q", "third"), ("", "r", "fourth")]
    alone = np.array([True, False, False, True])
    ids = text_ids(hashes(*texts))
    ids = ids._replace(passage=ids.passage[:, None])
    rows = RowTexts(np.arange(4), np.ones(4, bool), None, None, ids=ids, alone=alone)
    expected = np.eye(4, dtype=bool)
    expected[0, 1:3] = expected[1:3, 0] = True  # not 1 and 2, which differ by instruction
    np.testing.assert_array_equal(known_of(rows, rows, 1)[:, :, 0], expected)
    plain = known_of(rows._replace(alone=None), rows._replace(alone=None), 1)
    np.testing.assert_array_equal(plain[:, :, 0], np.eye(4, dtype=bool))


def test_a_hard_negative_is_masked_where_it_is_the_rows_passage():
    ids = text_ids(hashes(("i", "q", "p"), ("i", "q", "p2"), ("j", "r", "p3")))
    hard = np.stack([ids.passage[[1, 0, 0]], ids.passage[[2, 2, 0]]], axis=1)
    ids = ids._replace(passage=np.concatenate([ids.passage[:, None], hard], axis=1))
    found = known_positives(ids, ids, 3)
    # row 0 holds p: the second text of rows 1 and 2, and the third of row 2, are p as well
    assert found[0].tolist() == [[True, False, False], [True, True, False], [False, True, True]]
    # a twin's hard negative stays one: row 1's positive is p2, the second text of row 0
    assert found[1].tolist() == [[True, True, False], [True, False, False], [False, False, False]]


def test_an_instruction_that_any_pair_of_the_batch_gives_the_passage_is_known():
    """Rows 0, 1 and 4: the same query and passage under i, j and k, where row 4 is empty."""
    texts = [("i", "q", "p"), ("j", "q", "p"), ("j", "r", "s"), ("k", "q", "s"), ("k", "q", "p")]
    ids = text_ids(hashes(*texts))
    others = split_hashes(hashes(*[("i", "j", "k", "l")] * 5))
    rows = RowTexts(
        index=np.arange(5),
        valid=np.arange(5) != 4,
        queries=np.zeros((5, 1)),
        passages=np.zeros((5, 1, 1)),
        ids=ids._replace(passage=ids.passage[:, None]),
        instruction_negative_ids=others,
    )
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]]
    np.testing.assert_array_equal(known_instructions(rows), np.array(expected, bool))
    order = np.array([3, 0, 4, 2, 1])  # of the rows: nothing depends on it
    moved = jax.tree.map(lambda x: x[order], rows)
    np.testing.assert_array_equal(known_instructions(moved), np.array(expected, bool)[order])


@pytest.mark.parametrize("engine", ["dense", "blockwise"])
def test_a_known_instruction_is_no_negative_of_block_i(engine):
    """Rows 0 and 1 have one query and one passage under two instructions; row 2 has a third."""
    ids = text_ids(hashes(("i", "q", "p"), ("j", "q", "p"), ("k", "r", "s")))
    arrays = {
        "queries": np.eye(3, 4, dtype=np.float32),
        "passages": np.eye(3, 4, dtype=np.float32),
        "instruction_negatives": np.ones((3, 2, 4), np.float32) / 2,
        "ids": ids,
    }
    drawn = ids.instruction[np.array([[1, 2], [2, 0], [0, 1]])]
    loss = partial(contrastive_loss, objective="uni(I)", scale=1.0, engine=engine)
    _, metrics = jax.jit(loss)(**arrays, instruction_negative_ids=drawn)
    # of 6 drawn, those of rows 0 and 1 that name the other of them are known to fit
    assert metrics["masked/I"] == pytest.approx(2 / 6)
    assert metrics["negatives/I"] == pytest.approx(4 / 3)


def test_half_a_hash_is_not_identity():
    halves = split_hashes(np.array([1 << 32, (1 << 32) + 1, 2 << 32], np.uint64))
    ids = TextIds(halves, halves, halves[:, None])
    np.testing.assert_array_equal(same_query(ids, ids), np.eye(3, dtype=bool))
    np.testing.assert_array_equal(known_positives(ids, ids, 1)[:, :, 0], np.eye(3, dtype=bool))


def batch(b=6, h=1, m=2, e=4):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 3, (b, 3 + h + m)).astype(np.uint64)
    halves = split_hashes(numbers)
    return RowTexts(
        index=jnp.arange(b),
        queries=rng.normal(size=(b, e)),
        passages=rng.normal(size=(b, 1 + h, e)),
        valid=jnp.arange(b) != 1,
        instruction_negatives=rng.normal(size=(b, m, e)),
        ids=TextIds(halves[:, 0], halves[:, 1], halves[:, 2 : 3 + h]),
        instruction_negative_ids=halves[:, 3 + h :],
        instruction_negative_valid=jnp.ones((b, m), bool),
    )


def cut(rows, start, stop):
    return jax.tree.map(lambda x: x[start:stop], rows)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_the_same_in_tiles(name):
    """What an engine that goes round tiles of columns relies on."""
    rows, block = batch(), BLOCKS[name]
    whole = candidates(block, rows, rows)
    tiles = [cut(rows, 0, 6)] if block.per_row else [cut(rows, 0, 3), cut(rows, 3, 6)]
    for start, stop in ((0, 3), (3, 6)):
        some = cut(rows, start, stop)
        found = [candidates(block, some, some if block.per_row else tile) for tile in tiles]
        for part in range(3):
            joined = np.concatenate([f[part] for f in found], axis=1)
            np.testing.assert_allclose(joined, whole[part][start:stop], atol=1e-6)


@pytest.mark.parametrize("hard", [0, 1, 3])
@pytest.mark.parametrize("name", BLOCKS)
def test_counts_agree_with_the_candidates(name, hard):
    rows = batch(h=hard)._replace(valid=jnp.ones(6, bool))
    eligible = candidates(BLOCKS[name], rows, rows).eligible
    counted = count_negatives(f"uni({name})", pairs=6, hard_negatives=hard, instruction_negatives=2)
    assert np.sum(eligible, axis=1).tolist() == [counted[name]] * 6


def test_a_new_block_needs_one_entry(monkeypatch):
    """The dict is the one place: notation, count, loss and engines follow."""
    block = dataclasses.replace(BLOCKS["P"], count=lambda pairs, hard, instructions: 7)
    monkeypatch.setitem(BLOCKS, "NEW", block)
    objective = parse_objective("multi(NEW,P)")
    assert str(objective) == "multi(P,NEW)"
    assert count_negatives(objective, pairs=3) == {"P": 2, "NEW": 7}
    rows = batch(h=0)
    for engine in ("dense", "blockwise"):
        loss, metrics = contrastive_loss(
            np.float32(rows.queries),
            np.float32(rows.passages),
            objective=objective,
            scale=2.0,
            mask="faithful",
            engine=engine,
        )
        np.testing.assert_allclose(loss, 2 * metrics["loss/P"], rtol=1e-6)
        assert metrics["loss/NEW"] == metrics["loss/P"]
