"""Batches of mixtures: sources with one pair or several, without instructions, with negatives."""

import numpy as np
import pytest

from inf_jax.core.errors import UserError
from inf_jax.core.query_encoders import Attention
from inf_jax.data.mixture.dataset import MixtureDataset
from inf_jax.data.mixture.order import Mixing
from inf_jax.data.records import Pair, PairExample, pairs, text_hash
from inf_jax.data.tokenised.dataset import TokenisedDataset
from tests.inf_jax.data.batches import grid_texts, hash_of, make, texts_of
from tests.inf_jax.data.small_split import EXAMPLES, TEXT, make_dataset

# like MedQuAD (three pairs under instructions), PubMedQA (plain pairs) and NevIR (negatives); the
# last two share passages
SHARED = "It is a number. "
PUBMEDQA = [
    PairExample(f"p{n}", (Pair("", f"what is {n}", SHARED * (n % 7 + 1)),)) for n in range(40)
]
NEVIR = [
    PairExample(
        f"n{n}",
        (
            Pair("", f"who is {n}", f"Not {n}.", (f"It is {n}.", "No one.")[: n % 3]),
            Pair("", f"who is not {n}", SHARED, (f"Not {n}.",)),
        ),
    )
    for n in range(30)
]
NAMES = ("medquad", "pubmedqa", "nevir")
SOURCES = dict(zip(NAMES, (EXAMPLES, PUBMEDQA, NEVIR), strict=True))
WEIGHTS = (4, 2, 1)
UNIT = 6


@pytest.fixture(scope="module")
def sources(tokenizer, tmp_path_factory):
    """TokenisedDataset of each of SOURCES."""
    from inf_jax.data.tokenise import tokenise

    found = []
    for name, examples in SOURCES.items():
        directory = tmp_path_factory.mktemp(name)
        make_dataset(directory / "text", {"train": [examples[:10], examples[10:]]})
        tokenised = tokenise(
            directory / "text",
            "train",
            tokenizer=tokenizer,
            text=TEXT,
            out_dir=directory / "out",
            progress=False,
            examples_per_shard=15,
        )
        found.append(TokenisedDataset(tokenised))
    return found


def mix(sources, weights=WEIGHTS, *, mixing=None, **changes):
    """A loader of steps of 7 units, 42 pairs: 28, 14 and 0 or more of each source."""
    dataset = MixtureDataset(sources, Mixing(NAMES, weights, **(mixing or {})))
    options = {"batch_size": 7, "mixture": True, "pairs_per_example": UNIT}
    return make(dataset, **options | changes)


def present_pairs(loader, step):
    """[(source, Pair)] of a step's examples, by the texts alone."""
    units, starts = loader.example_indices(step), np.cumsum([0, *map(len, SOURCES.values())])
    found = []
    for example in units[units >= 0].tolist():
        source = int(np.searchsorted(starts, example, side="right")) - 1
        of_example = pairs(SOURCES[NAMES[source]][example - starts[source]])
        found += [(source, pair) for pair in of_example if pair]
    return found


@pytest.mark.parametrize("mixing", [{}, {"homogeneous": True}])
@pytest.mark.parametrize("chunks, more", [(1, {}), (4, {}), (4, {"instruction_negatives": 2})])
def test_a_batch_holds_the_pairs_of_its_sources(sources, tokenizer, chunks, more, mixing):
    loader = mix(sources, chunks=chunks, mixing=mixing, **more)
    for step in (0, 1, 5):
        batch, expected = loader.host_batch(step), present_pairs(loader, step)
        queries = tokenizer.queries([(p.query, p.instruction) for _, p in expected], TEXT)
        passages = tokenizer.passages([p.passage for _, p in expected], TEXT)
        texts = [
            (tuple(q.tolist()), tuple(p.tolist()), source)
            for q, p, (source, _) in zip(queries, passages, expected, strict=True)
        ]
        found = batch.sources[batch.valid].tolist()
        if more:  # the sampled texts come after the pairs'
            n, (all_texts, ids) = loader.layout.pairs_per_chunk, grid_texts(batch.texts)
            both = [
                (all_texts[ids[c, j]], all_texts[ids[c, n + j]])
                for c, j in (divmod(row, n) for row in np.flatnonzero(batch.valid).tolist())
            ]
        else:
            both = texts_of(batch, loader.layout.pairs_per_chunk)
        assert sorted((*b, s) for b, s in zip(both, found, strict=True)) == sorted(texts)
        assert (batch.sources[~batch.valid] == -1).all()


def test_a_passage_of_two_sources_is_the_same_passage(sources):
    """So identity masks hold across sources: hashes are of texts alone."""
    batch = mix(sources, (1, 1, 1)).host_batch(0)
    same = hash_of(batch.ids.passage) == np.uint64(text_hash(SHARED))
    assert {1, 2} >= {*batch.sources[same].tolist()} and 2 in batch.sources[same]
    by_hash = {}
    for hashed, source in zip(hash_of(batch.ids.passage).tolist(), batch.sources, strict=True):
        by_hash.setdefault(hashed, set()).add(int(source))
    lone = mix(sources, (1, 1, 1)).dataset.sources[1].read([0])[0].hashes[0, 2]
    assert lone == np.uint64(text_hash(SHARED))


def test_negatives_are_those_of_their_pairs(sources, tokenizer):
    loader = mix(sources, negatives=2, chunks=3)
    seen = 0
    for step in range(4):
        batch = loader.host_batch(step)
        hashes = {text_hash(p.passage): (s, p) for s, p in present_pairs(loader, step)}
        texts, ids = grid_texts(batch.texts)
        n = loader.layout.pairs_per_chunk
        for row in np.flatnonzero(batch.valid):
            source, pair = hashes[int(hash_of(batch.ids.passage[row, 0]))]
            there = batch.passage_valid[row, 1:]
            if pair.passage == SHARED:  # of several pairs
                continue
            assert source == batch.sources[row]
            assert there.sum() == min(2, len(pair.negatives))
            chunk, j = divmod(row, n)
            for h in np.flatnonzero(there):
                text = pair.negatives[h]  # both are drawn, in their order
                expected = tokenizer.passages([text], TEXT)[0]
                assert texts[ids[chunk, 2 * n + 2 * j + h]] == tuple(expected.tolist())
                assert hash_of(batch.ids.passage[row, 1 + h]) == np.uint64(text_hash(text))
                seen += 1
    assert seen > 10


@pytest.mark.parametrize("encoder", [{}, {"query_encoder": Attention()}])
def test_block_i_is_of_pairs_with_instructions(sources, encoder):
    batch = mix(sources, chunks=2, instruction_negatives=0, **encoder).host_batch(3)
    rows = batch.valid & (batch.sources == 0)
    assert batch.negatives.valid[rows].any()
    assert not batch.negatives.valid[batch.valid & (batch.sources > 0)].any()
    if not encoder:  # the poison is of the row's own example
        n = len(batch.valid) // 2
        query = hash_of(batch.ids.query)
        poison = batch.negatives.poison + n * (np.arange(len(batch.valid)) // n)
        poisoned = batch.negatives.valid[:, 0]
        assert (query[poison] == query)[poisoned].all() and poisoned.sum() > 5


def test_instructions_known_in_another_source_are_no_negatives(sources):
    """A query and its passage have another instruction in each of two sources."""
    one, both = sources[0], MixtureDataset([sources[0]] * 2, Mixing(("a", "b"), (1, 1)))
    rows, hashes = both.known_instructions(np.array([[0], [50]]))
    alone = one.known_instructions(np.array([0]))[0]
    assert rows.size > alone.size
    own = one.instruction_hashes[0]
    assert {*own[one.text_lengths[0, ::2] > 0].tolist()} <= {*hashes.tolist()}


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize(
    "more", [{}, {"mixing": {"homogeneous": True}}, {"negatives": 2}, {"instruction_negatives": 1}]
)
def test_hosts_together_are_one_host(sources, hosts, more):
    import jax

    whole = mix(sources, chunks=4, **more).host_batch(6)
    each = np.arange(4).reshape(hosts, -1).tolist()
    parts = [mix(sources, chunks=4, mine=mine, **more).host_batch(6) for mine in each]
    jax.tree.map(lambda a, *b: np.testing.assert_array_equal(a, np.concatenate(b)), whole, *parts)


@pytest.mark.parametrize("mixing", [{}, {"homogeneous": True}])
def test_a_step_is_the_same_whatever_came_before(sources, mixing):
    going, resumed = mix(sources, mixing=mixing), mix(sources, mixing=mixing)
    batches = [going.host_batch(step) for step in range(12)]
    for step in (11, 4):
        again = resumed.host_batch(step)
        np.testing.assert_array_equal(again.texts.tokens, batches[step].texts.tokens)
        np.testing.assert_array_equal(again.sources, batches[step].sources)


def test_weights_are_exact_in_batches(sources):
    """Counted in what is trained on; absent pairs of MedQuAD's examples are slots of its share."""
    loader, counts = mix(sources), np.zeros(3)
    for step in range(35):
        units = loader.example_indices(step)
        counts += np.bincount(loader.dataset.source_numbers(units), minlength=3)
    assert counts.tolist() == [4 * 35, 2 * 35, 35]
    np.testing.assert_allclose(loader.examples_by_source(), [4 * 2, 2 * 6, 1 * 3], atol=0.1)


def test_what_a_mixture_lacks_is_refused(sources):
    with pytest.raises(UserError, match="no pair has a teacher's scores"):
        mix(sources, negatives=1, teacher=True)
    plain = MixtureDataset(sources[1:], Mixing(NAMES[1:], (1, 1)))
    with pytest.raises(UserError, match=r"no pair has an instruction"):
        make(plain, batch_size=9, mixture=True, pairs_per_example=2, instruction_negatives=0)
    with pytest.raises(UserError, match=r"max_epochs=0\.5: 40 steps would read medquad 6\.4"):
        mix(sources, mixing={"max_epochs": 0.5})
