"""The notation, the identity masks, the counts, and the blocks' contract with engines."""

import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax import objective as objectives
from inf_jax.errors import UserError
from inf_jax.objective import (
    BLOCKS,
    Objective,
    Rows,
    TextIds,
    count_negatives,
    parse_objective,
    same_pair,
    same_passage,
    same_query,
    split_hashes,
    text_ids,
)
from inf_jax.records import text_hash


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("uni(P)", Objective("uni", ("P",))),
        ("multi(P,IQ)", Objective("multi", ("P", "IQ"))),
        (" multi( IQ , P ) ", Objective("multi", ("P", "IQ"))),
        ("uni(PP,QQ,IQ,I,P)", Objective("uni", ("P", "I", "IQ", "QQ", "PP"))),
    ],
)
def test_parse(text, expected):
    parsed = parse_objective(text)
    assert parsed == expected and hash(parsed) == hash(expected)
    assert parse_objective(str(parsed)) == parsed
    assert parse_objective(parsed) is parsed


def test_str_is_the_notation_of_the_paper_tables():
    assert str(parse_objective("uni(PP,QQ,IQ,I,P)")) == "uni(P,I,IQ,QQ,PP)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("P", "not of the form"),
        ("uni(P", "not of the form"),
        ("uni(P)+multi(P)", "not of the form"),
        (None, "not of the form"),
        ("sum(P)", "kind 'sum'; choose one of uni, multi"),
        ("uni()", "no block"),
        ("uni(P,)", "unknown block ''"),
        ("uni(P,X)", "unknown block 'X'; choose from P, I, IQ, QQ, PP"),
        ("uni(p)", "unknown block 'p'"),
        ("uni(P,P)", "named twice"),
    ],
)
def test_parse_errors(text, message):
    with pytest.raises(UserError, match=message):
        parse_objective(text)


def hashes(*texts):
    return np.array([[text_hash(text) for text in row] for row in texts], np.uint64)


def test_split_hashes_keeps_both_halves():
    halves = split_hashes(np.array([[0x0123456789ABCDEF]], np.uint64))
    assert halves.dtype == np.uint32 and halves.tolist() == [[[0x89ABCDEF, 0x01234567]]]


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
    np.testing.assert_array_equal(same_passage(ids, ids)[:, :, 0], passages)
    np.testing.assert_array_equal(same_pair(ids, ids), expected | passages)


def test_half_a_hash_is_not_identity():
    halves = split_hashes(np.array([1 << 32, (1 << 32) + 1, 2 << 32], np.uint64))
    ids = TextIds(halves, halves, halves[:, None])
    np.testing.assert_array_equal(same_query(ids, ids), np.eye(3, dtype=bool))
    np.testing.assert_array_equal(same_passage(ids, ids)[:, :, 0], np.eye(3, dtype=bool))


def batch(b=6, h=1, m=2, e=4):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 3, (b, 3 + h + m)).astype(np.uint64)
    halves = split_hashes(numbers)
    return Rows(
        index=jnp.arange(b),
        queries=rng.normal(size=(b, e)),
        passages=rng.normal(size=(b, 1 + h, e)),
        valid=jnp.arange(b) != 1,
        instruction_negatives=rng.normal(size=(b, m, e)),
        ids=TextIds(halves[:, 0], halves[:, 1], halves[:, 2 : 3 + h]),
        instruction_negative_ids=halves[:, 3 + h :],
    )


def cut(rows, start, stop):
    ids = TextIds(*(x[start:stop] for x in rows.ids))
    parts = {k: getattr(rows, k)[start:stop] for k in Rows._fields if k != "ids"}
    return Rows(**parts, ids=ids)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_the_same_in_tiles(name):
    """What an engine that goes round tiles of columns relies on."""
    rows, block = batch(), BLOCKS[name]
    whole = block.candidates(rows, rows)
    tiles = [cut(rows, 0, 6)] if block.own else [cut(rows, 0, 3), cut(rows, 3, 6)]
    for start, stop in ((0, 3), (3, 6)):
        some = cut(rows, start, stop)
        found = [block.candidates(some, some if block.own else tile) for tile in tiles]
        for part in range(3):
            joined = np.concatenate([f[part] for f in found], axis=1)
            np.testing.assert_allclose(joined, whole[part][start:stop], atol=1e-6)


@pytest.mark.parametrize("hard", [0, 1, 3])
@pytest.mark.parametrize("name", BLOCKS)
def test_counts_agree_with_the_candidates(name, hard):
    rows = batch(h=hard)._replace(valid=jnp.ones(6, bool))
    other = BLOCKS[name].candidates(rows, rows).other
    counted = count_negatives(f"uni({name})", pairs=6, hard_negatives=hard, instruction_negatives=2)
    assert np.sum(other, axis=1).tolist() == [counted[name]] * 6


def test_count_negatives():
    counted = count_negatives(
        "multi(P,I,IQ)", pairs=1024, hard_negatives=3, instruction_negatives=4
    )
    assert counted == {"P": 1023 + 3 * 1024, "I": 4, "IQ": 1023}
    with pytest.raises(UserError, match="instruction_negatives to 1"):
        count_negatives("uni(I)", pairs=4)
    with pytest.raises(UserError, match="pairs=0"):
        count_negatives("uni(P)", pairs=0)


def test_a_new_block_needs_one_entry(monkeypatch):
    """The dict is the one place: notation, count and loss follow."""
    from inf_jax.losses import contrastive_loss

    block = objectives.Block(BLOCKS["P"].candidates, lambda pairs, hard, instructions: 7)
    monkeypatch.setitem(BLOCKS, "NEW", block)
    objective = parse_objective("multi(NEW,P)")
    assert str(objective) == "multi(P,NEW)"
    assert count_negatives(objective, pairs=3) == {"P": 2, "NEW": 7}
    rows = batch(h=0)
    loss, metrics = contrastive_loss(
        rows.queries, rows.passages, objective=objective, scale=2.0, mask="faithful"
    )
    np.testing.assert_allclose(loss, 2 * metrics["loss/P"], rtol=1e-6)
    assert metrics["loss/NEW"] == metrics["loss/P"]
