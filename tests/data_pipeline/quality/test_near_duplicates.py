"""Near-duplicate examples: against comparing all pairs, grouped or not, and with bounded work."""

import random

import numpy as np
import pytest

from data_pipeline.quality import minhash, near_duplicates
from data_pipeline.quality.minhash import NUM_PERM
from data_pipeline.quality.near_duplicates import is_near, repeats, sketch
from inf_jax.data.records import Example

THRESHOLD = 0.8
WORDS = [f"w{n}" for n in range(5000)]


def text(draw, count):
    return " ".join(draw.choices(WORDS, k=count))


def changed(draw, words, count):
    words = words.split()
    for place in draw.sample(range(len(words)), count):
        words[place] = draw.choice(WORDS)
    return " ".join(words)


def examples(count, *, instruction=None, query=None, passage=None, near=0.0, copies=1, seed=0):
    """Made examples; given texts are those of all, a share `near` has a near copy of an earlier
    passage, and each comes `copies` times in a row."""
    draw = random.Random(seed)
    made = []
    while len(made) < count:
        own = passage or text(draw, 60)
        if made and draw.random() < near:
            own = changed(draw, draw.choice(made).document_positive, draw.randrange(1, 5))
        one = (query or text(draw, 4), instruction or text(draw, 8), own)
        made += [Example(str(len(made) + n), *one) for n in range(copies)]
    return made[:count]


LONG = text(random.Random(1), 60)  # an instruction beside which the query makes no difference
CORPORA = {
    "all differ": {"near": 0.3},
    "one instruction": {"instruction": LONG, "near": 0.3},
    "one query": {"query": LONG, "near": 0.3},
    "one passage": {"passage": LONG},
    "one of each": {"instruction": LONG, "passage": LONG},
    "copies": {"instruction": LONG, "near": 0.3, "copies": 5},
}


def flags(corpus):
    near = is_near(THRESHOLD)
    return [near(example) for example in corpus]


def grouped(corpus):
    """The flags as Beam's workers find them, one band key at a time."""
    groups, found = {}, set()
    for number, example in enumerate(corpus):
        keys, values = sketch(example, THRESHOLD)
        for key in set(keys):
            groups.setdefault(key, []).append((number, values.tobytes()))
    for members in groups.values():
        numbers, sketches = zip(*members, strict=True)
        found |= {numbers[n] for n in repeats(sketches, THRESHOLD)}
    return [number in found for number in range(len(corpus))]


def all_pairs(corpus):
    values = np.stack([sketch(example, THRESHOLD)[1] for example in corpus])
    least = THRESHOLD * NUM_PERM
    return [
        bool((((values[:n] == values[n]).sum(axis=2) >= least).all(axis=1)).any())
        for n in range(len(values))
    ]


@pytest.mark.parametrize("name", CORPORA)
def test_finds_what_comparing_all_pairs_finds(name):
    corpus = examples(250, **CORPORA[name])
    found, expected = flags(corpus), all_pairs(corpus)
    assert not any(f and not e for f, e in zip(found, expected, strict=True))
    assert sum(expected) - sum(found) <= 0.02 * sum(expected)
    assert grouped(corpus) == found


@pytest.fixture
def few(monkeypatch):
    """At most 6 examples per band key are compared."""
    for module in (minhash, near_duplicates):
        monkeypatch.setattr(module, "MOST_SHARING", 6)
    monkeypatch.setattr(minhash, "_RECENT", 160)  # keys are sorted and joined many times


@pytest.mark.parametrize("name", CORPORA)
def test_groups_agree_where_many_share_a_key(few, name):
    corpus = examples(250, **CORPORA[name])
    assert grouped(corpus) == flags(corpus)


@pytest.mark.parametrize("name", CORPORA)
def test_work_per_example_does_not_grow(few, monkeypatch, name):
    compared = []
    equal = near_duplicates._equal

    def counted(a, b):
        compared[-1] += len(a)
        return equal(a, b)

    monkeypatch.setattr(near_duplicates, "_equal", counted)
    near = is_near(THRESHOLD)
    for example in examples(600, **CORPORA[name]):
        compared.append(0)
        near(example)
    assert sum(compared[500:]) <= 1.5 * max(100, sum(compared[100:200]))


def test_a_late_near_duplicate_is_found_by_its_passage(few):
    """Its query shares every band key with more examples than are compared."""
    corpus = examples(200, instruction=LONG)
    draw = random.Random(3)
    for one in (corpus[150], corpus[199]):
        passage = changed(draw, one.document_positive, 2)
        assert flags([*corpus, Example("x", text(draw, 4), LONG, passage)])[-1]
        assert not flags([*corpus, Example("x", text(draw, 40), text(draw, 9), passage)])[-1]


def test_copies_leave_room_for_others(few):
    one, other = examples(2, instruction=LONG)
    again = Example("x", "w1", LONG, changed(random.Random(3), other.document_positive, 1))
    assert flags([one] * 20 + [other, again]) == [False, *[True] * 19, False, True]
