"""Examples of any number of pairs, with instructions or without: stored, batched, compared."""

import numpy as np
import pytest

from inf_jax.core.errors import UserError
from inf_jax.core.query_encoders import Attention
from inf_jax.data.records import Pair, PairExample, pairs
from inf_jax.data.tokenised.dataset import TokenisedDataset
from tests.inf_jax.data.batches import hash_of, make, texts_of
from tests.inf_jax.data.small_split import TEXT, make_dataset

PLAIN = [
    PairExample(f"{n}", (Pair("", f"what is {n}", "It is a number. " * (n % 7 + 1)),))
    for n in range(30)
]
# several pairs an example: the same query under two instructions, then under none; an absent pair
SEVERAL = [
    PairExample(
        f"{n}",
        (
            Pair("Name the cause.", f"disease {n}", f"The cause of {n}."),
            Pair("Name the cause.", f"disease {n}", f"Another cause of {n}.") if n % 3 else None,
            Pair("Name the cure.", f"disease {n}", f"The cure of {n}."),
            Pair("", f"disease {n}", f"All of {n}. " * (n % 4 + 1)),
        )[: 4 - n % 2],
    )
    for n in range(24)
]


@pytest.fixture(scope="module")
def tokenised(tokenizer, tmp_path_factory):
    """name -> TokenisedDataset of PLAIN or SEVERAL."""
    from inf_jax.data.tokenise import tokenise

    found = {}
    for name, examples in (("plain", PLAIN), ("several", SEVERAL)):
        directory = tmp_path_factory.mktemp(name)
        make_dataset(directory / "text", {"train": [examples[:10], examples[10:]]})
        options = {"tokenizer": tokenizer, "text": TEXT, "progress": False}
        found[name] = TokenisedDataset(
            tokenise(
                directory / "text",
                "train",
                out_dir=directory / "out",
                examples_per_shard=7,
                **options,
            )
        )
    return found


def expected_texts(examples, numbers, tokenizer):
    """The (query, passage) token tuples of the pairs of these examples, in order."""
    present = [p for n in numbers for p in pairs(examples[n]) if p]
    queries = tokenizer.queries([(p.query, p.instruction) for p in present], TEXT)
    passages = tokenizer.passages([p.passage for p in present], TEXT)
    both = zip(queries, passages, strict=True)
    return [(tuple(q.tolist()), tuple(p.tolist())) for q, p in both]


@pytest.mark.parametrize("name, k", [("plain", 1), ("several", 4)])
@pytest.mark.parametrize("chunks", [1, 3])
def test_a_batch_holds_the_pairs_of_its_examples(tokenised, tokenizer, name, k, chunks):
    dataset = tokenised[name]
    assert dataset.pairs_per_example == k
    loader = make(dataset, pairs_per_example=k, chunks=chunks)
    batch, numbers = loader.host_batch(2), loader.example_indices(2)
    assert len(set(numbers.tolist())) == 6
    expected = expected_texts({"plain": PLAIN, "several": SEVERAL}[name], numbers, tokenizer)
    assert sorted(texts_of(batch, loader.layout.pairs_per_chunk)) == sorted(expected)
    assert batch.valid.sum() == len(expected)


def test_siblings_are_found_by_their_texts(tokenised):
    """Not by their places, as in InF-IR: only the first and the third pair are siblings."""
    places = tokenised["several"].siblings(np.arange(24)) % 4
    np.testing.assert_array_equal(places.reshape(24, 4), [[2, 1, 0, 3]] * 24)


def test_pairs_without_instruction_have_no_negatives_in_block_i(tokenised):
    dataset = tokenised["several"]
    options = {"pairs_per_example": 4, "instruction_negatives": 2, "row_tokens": 128}
    batch = make(dataset, chunks=2, **options).host_batch(1)
    bare = np.unique(dataset.instruction_hashes[:, 3])
    without = np.isin(hash_of(batch.ids.instruction), bare) & batch.valid
    assert without.any() and not batch.negatives.valid[without].any()
    assert not np.isin(hash_of(batch.negatives.ids), bare)[batch.negatives.valid].any()
    assert batch.negatives.valid[batch.valid & ~without].any()


def test_block_i_is_refused_where_there_is_no_instruction(tokenised):
    for encoder in ({}, {"query_encoder": Attention()}):
        with pytest.raises(UserError, match=r"no pair has an instruction.*as in multi\(P,IQ\)"):
            make(tokenised["plain"], pairs_per_example=1, instruction_negatives=0, **encoder)
    batch = make(tokenised["plain"], pairs_per_example=1, query_encoder=Attention()).host_batch(0)
    assert batch.valid.sum() == 6
