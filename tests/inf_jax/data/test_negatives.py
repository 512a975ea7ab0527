"""Instruction negatives of block I: which are sampled, and the texts that they give."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_jax.config.defaults import run_config
from inf_jax.data import negatives
from inf_jax.data.from_config import tokenised_split
from inf_jax.data.records import Example, pair_hashes, pairs, text_hash
from inf_jax.data.tokenise import tokenise
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.models.hf.backbone import load_model
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer
from tests.inf_jax.data.batches import grid_texts, hash_of, make
from tests.inf_jax.data.small_split import TEXT, make_dataset


def by_pair(batch, n, m):
    """{pair's number: (its n_ik as (hash, tokens), its poison's number, its own hash)}."""
    texts, ids = grid_texts(batch.texts)
    of_row, by_number = ids[:, :n].ravel() // 2, {}
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
        by_number[of_row[row]] = (sampled, poison, int(hashes[0]), own)
    return by_number


def test_sampled_texts_are_the_query_under_other_instructions(dataset, examples, tiny_model_dir):
    loader, m = make(dataset, instruction_negatives=2), 2
    tokenizer = load_tokenizer(tiny_model_dir)
    text = TextConfig(max_query_tokens=16, max_passage_tokens=32)
    instructions = {
        text_hash(e.instruction_positive): e.instruction_positive for e in examples.values()
    }
    for step in (0, 5, 21):
        negatives_of = by_pair(loader.host_batch(step), loader.layout.pairs_per_chunk, m)
        assert len(negatives_of) == 18
        for pair, (sampled, poison, poison_hash, own) in negatives_of.items():
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


def test_limits_truncate_sampled_texts_as_the_tokenizer_does(tiny_config, examples, tiny_model_dir):
    tiny_config.data.max_query_tokens = 6
    sections = run_config(tiny_config)
    tight = tokenised_split(sections, load_model(sections).tokenizer, "train")
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
def test_samples_do_not_depend_on_chunks_or_hosts(dataset, towers):
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
        again = look(chunks, hosts)
        assert again[1] == negatives
        assert again[0] == texts


def test_samples_differ_between_steps_and_seeds_and_are_even(dataset):
    count = dataset.num_examples
    loaders = [
        make(dataset, batch_size=count, steps=1, instruction_negatives=1, seed=s) for s in (1, 2)
    ]
    draws = [hash_of(x.host_batch(s).negatives.ids[:, 1]) for x in loaders for s in (0, 1)]
    assert len({d.tobytes() for d in draws}) == 4
    first, deal = np.unique(draws[0], return_counts=True)
    assert len(first) == 4
    assert deal.min() > 0.7 * deal.mean()


def siblings(present):
    """The numbers of the pairs of examples of three, one after another."""
    places = negatives.usual_siblings(present.reshape(-1, 3))
    return (places + 3 * np.arange(len(places))[:, None]).ravel()


def test_too_few_instructions_fill_with_the_rows_own():
    hashes = np.array([5, 5, 5, 9, 5, 0, 7, 5, 5], np.uint64)
    usable = hashes > 0
    sibling = siblings(usable)
    assert sibling.tolist() == [1, 0, 2, 4, 3, 5, 7, 6, 8]
    drawn = negatives.sample_instructions(hashes, usable, sibling, count=3, seed=0, step=0)
    own_or_free = [{5}, {5}, {5}, {5, 9}, {5, 9}, None, {5, 7}, {5, 7}, {5}]
    for pair, ruled_out in enumerate(own_or_free):
        sampled = [int(hashes[k]) for k in drawn[pair] if k >= 0]
        expected = {5, 7, 9} - ruled_out if ruled_out else set()
        assert set(sampled) == expected and len(sampled) == len(expected)
    sources, valid = negatives.of_rows(np.array([3, -1, 2, 5]), sibling, drawn)
    values_of_rows = hashes[sources]
    assert values_of_rows[0].tolist()[:2] == [5, 7] and values_of_rows[0].tolist()[2:] == [9, 9]
    assert valid.tolist() == [
        [True, True, False, False],
        [False] * 4,
        [False, True, True, False],
        [False] * 4,
    ]


def test_an_instruction_under_which_the_passage_is_right_is_no_negative():
    """By any pair of the data, whichever pair the instruction was drawn from: the last pair, with
    instruction 5, is not in the batch, and pair 3 has the instruction of pair 1 alone."""
    hashes = np.array([[1, 7, 4], [2, 7, 4], [3, 7, 5], [2, 8, 4], [5, 8, 4], [5, 7, 4]], np.uint64)
    every = negatives.KnownInstructions(pair_hashes(hashes), hashes[:, 0])
    rows, known = every.of(pair_hashes(hashes[:5]))
    assert rows.tolist() == [0] * 3 + [1] * 3 + [3] * 2 + [4] * 2
    assert known.tolist() == [1, 2, 5] * 2 + [2, 5] * 2
    pairs = np.array([0, 1, 2, -1])
    sources = np.array([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [0, 1, 2, 3, 4], [-1] * 5])
    ids = negatives.instruction_ids(pairs, sources, hashes[:5, 0], (rows, known))
    assert ids.tolist() == [[1, 1, 3, 1, 1], [2, 2, 3, 2, 2], [1, 2, 3, 2, 5], [0] * 5]


@pytest.fixture
def repeated(tmp_path, tokenizer):
    """(examples, dataset): 3 queries with a passage each, which fits under 5 of 8 instructions; the
    poison of an example is one that fits in others."""
    fits = {n: [f"What about {(n + k) % 8}?" for k in range(5)] for n in range(3)}
    examples = [
        Example(
            id=f"{n}-{k}",
            query_positive=f"disease {n}",
            instruction_positive=fits[n][k],
            document_positive=f"Rest {n}.",
            instruction_negative=(*fits[n], "Who?")[k + 1],
            hard_negative_document_1=f"Water {n} {k}.",
        )
        for n in range(3)
        for k in range(5)
    ]
    source = make_dataset(tmp_path / "inf_ir" / "medquad" / "1.0.0", {"train": [examples]})
    out = tokenise(
        source, "train", tokenizer=tokenizer, text=TEXT, out_dir=tmp_path / "t", progress=False
    )
    return examples, out


def test_no_sample_is_known_to_fit_by_any_pair_of_the_data(repeated):
    """Also where the pair that says so is in no step with the row."""
    examples, directory = repeated
    triplets = {tuple(map(text_hash, pair[:3])) for e in examples for pair in pairs(e) if pair}
    loader, drawn = make(TokenisedDataset(directory), instruction_negatives=2, row_tokens=128), 0
    known_poisons = 0
    for step in range(5):
        batch = loader.host_batch(step)
        ids = [hash_of(x) for x in batch.ids]
        for row, column in np.argwhere(batch.negatives.valid):
            own, query, passage = (int(x[row]) for x in ids)
            instruction = int(hash_of(batch.negatives.ids[row, column]))
            if column:
                drawn += 1
                assert (instruction, query, passage) not in triplets
            elif instruction == own:
                known_poisons += 1
            else:
                assert (instruction, query, passage) not in triplets
    assert drawn > 60
    assert known_poisons > 10


def test_an_index_of_an_older_version_gives_the_same_samples(repeated):
    """It lacks the hashes of pairs, which are then read from the records."""
    directory = repeated[1]

    def samples():
        loader = make(TokenisedDataset(directory), instruction_negatives=2, row_tokens=128)
        return [loader.host_batch(step).negatives.ids.tolist() for step in range(3)]

    before, (index,) = samples(), directory.glob("*.npz")
    with np.load(index) as arrays:
        kept = {name: array for name, array in arrays.items() if name != "pair_hashes"}
    np.savez(index, **kept)
    assert samples() == before


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=3, max_size=30),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 11)), max_size=12),
)
def test_samples_are_distinct_and_as_many_as_possible(values, count, seed, known):
    hashes = np.array(values[: len(values) // 3 * 3], np.uint64)
    usable = hashes > 0
    sibling = siblings(usable)
    rows, fit = np.array(sorted(known), np.int64).reshape(-1, 2).T
    drawn = negatives.sample_instructions(
        hashes, usable, sibling, count=count, seed=seed, step=3, known=(rows, fit.astype(np.uint64))
    )
    texts = set(hashes[usable].tolist())
    for pair in range(len(hashes)):
        sampled = [int(hashes[k]) for k in drawn[pair] if k >= 0]
        left = texts - {int(hashes[pair]), int(hashes[sibling[pair]])}
        left -= {text for row, text in known if row == pair}
        assert len(set(sampled)) == len(sampled) == (min(count, len(left)) if usable[pair] else 0)
        assert set(sampled) <= left
