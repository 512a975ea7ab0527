"""The stage pairs: dropped pairs, the sample, instruction types."""

import dataclasses
import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.llm.schemas import INSTRUCTION_TYPES
from data_pipeline.quality.rules import Limits
from data_pipeline.sources.pairs import SourcePair
from data_pipeline.stages.pairs import (
    EVEN_TYPES,
    draw_type,
    make_items,
    sample,
)
from inf_jax.core.errors import UserError


def pair(number, query="a query", passage="a passage of words"):
    return SourcePair(f"id{number}", query, passage)


PAIRS = [pair(i, query=f"query {i}") for i in range(500)]


def ids(pairs):
    return [p.id for p in pairs]


@settings(deadline=None)
@given(
    names=st.lists(st.text(max_size=3), unique=True, min_size=1, max_size=40),
    count=st.integers(1, 45),
    more=st.integers(0, 10),
    seed=st.integers(0, 3),
    shuffled=st.randoms(use_true_random=False),
)
def test_a_sample_is_a_prefix_of_a_larger_one_in_any_order(names, count, more, seed, shuffled):
    pairs = [SourcePair(name, "q", "p") for name in names]
    small = list(sample(pairs, count=count, seed=seed))
    assert len(small) == min(count, len(pairs))
    assert len(set(ids(small))) == len(small)
    shuffled.shuffle(pairs)
    assert list(sample(pairs, count=count + more, seed=seed))[:count] == small


def test_the_sample_is_uniform_and_depends_on_the_seed():
    taken = Counter()
    for seed in range(100):
        taken.update(ids(sample(PAIRS[:50], count=10, seed=seed)))
    # binomial(100, 0.2): mean 20, sd 4
    assert len(taken) == 50
    assert all(4 <= times <= 36 for times in taken.values())
    assert ids(sample(PAIRS, count=9, seed=0)) != ids(sample(PAIRS, count=9, seed=1))


def test_the_sample_holds_at_most_its_count():
    class Tracked(str):
        alive = 0

        def __init__(self, _):
            Tracked.alive += 1

        def __del__(self):
            Tracked.alive -= 1

    most = 0

    def stream():
        nonlocal most
        for i in range(2000):
            most = max(most, Tracked.alive)
            yield SourcePair(f"id{i}", "q", Tracked("a passage"))

    assert len(list(sample(stream(), count=20, seed=0))) == 20
    assert 20 <= most <= 24


def test_all_pairs_are_streamed_in_source_order():
    endless = (pair(i) for i in itertools.count())
    assert ids(itertools.islice(sample(endless, count=None, seed=0), 3)) == ["id0", "id1", "id2"]


def test_invalid_count():
    for count in (0, -1):
        with pytest.raises(UserError, match=rf"count={count}: must be at least 1, or None"):
            list(sample(PAIRS, count=count, seed=0))


def test_repeated_id():
    twice = {p.id: dataclasses.replace(p, passage="Another.") for p in PAIRS}
    with pytest.raises(UserError, match=r"id 'id3' occurs twice in the source"):
        list(sample([*PAIRS[:5], twice["id3"]], count=None, seed=0))
    [first, *_, last] = ids(sample(PAIRS, count=500, seed=0))
    for at in (0, 250, 500):  # wherever the copy is
        with pytest.raises(UserError, match=f"id {first!r} occurs twice"):
            list(sample([*PAIRS[:at], twice[first], *PAIRS[at:]], count=3, seed=0))
        assert len(list(sample([*PAIRS[:at], twice[last], *PAIRS[at:]], count=3, seed=0))) == 3


@pytest.mark.parametrize("count", [None, 3])
def test_equal_pairs_with_one_id_count_once(count):
    dropped = Counter()
    options = {"count": count, "limits": Limits(document_words=(1, 9))}
    found = list(make_items([*PAIRS[:5], *PAIRS[:5]], dropped=dropped, **options))
    once = list(make_items(PAIRS[:5], dropped=Counter(), **options))
    assert found == once
    assert len(found) + dropped.total() == 10


def test_types_follow_their_weights():
    types = {"audience": 3, "length": 1, "domain": 0}
    drawn = Counter(draw_type(f"id{i}", types=types, seed=0) for i in range(4000))
    # binomial(4000, 0.75): sd 27
    assert set(drawn) == {"audience", "length"}
    assert abs(drawn["audience"] - 3000) < 140
    even = Counter(draw_type(f"id{i}", types=EVEN_TYPES, seed=0) for i in range(7000))
    assert set(even) == set(INSTRUCTION_TYPES)
    assert all(abs(number - 1000) < 150 for number in even.values())


def test_types_depend_on_seed_and_id_alone():
    backwards = dict(reversed(EVEN_TYPES.items()))
    one, same, other = (
        [draw_type(p.id, types=types, seed=seed) for p in PAIRS]
        for types, seed in ((EVEN_TYPES, 0), (backwards, 0), (EVEN_TYPES, 1))
    )
    assert one == same
    assert 0 < sum(a == b for a, b in zip(one, other, strict=True)) < 150  # mean 71


def test_another_mix_moves_ids_to_the_heavier_type_only():
    before = [draw_type(p.id, types={"format": 1, "length": 1}, seed=0) for p in PAIRS]
    for more in ({"format": 2, "length": 1}, {"format": 1, "length": 1, "domain": 1}):
        after = [draw_type(p.id, types=more, seed=0) for p in PAIRS]
        moved = {(a, b) for a, b in zip(before, after, strict=True) if a != b}
        assert moved
        assert {b for _, b in moved} == {"format" if len(more) == 2 else "domain"}


class MoonTexts:
    """Counts every text about the moon as one of the benchmark's."""

    def shares_query(self, text):
        return "query" if "moon" in text else ""

    def shares_passage(self, text):
        return "near_passage" if "moon" in text else ""


def test_each_dropped_pair_is_counted_once():
    pairs = [
        pair("fit"),
        pair("passage only", query=""),
        pair("empty", passage=""),
        pair("empty too", query="", passage=""),
        pair("short", passage="two words"),
        pair("long", passage="word " * 21),
        pair("long query", query="word " * 6, passage="word " * 30),
        pair("short query", query="one"),
        pair("asked", query="the moon", passage="the very moon"),
        pair("told", passage="about the moon"),
    ]
    limits = Limits(query_words=(2, 5), document_words=(3, 20))
    dropped = Counter({"no such query": 1})  # counts of the reader stay
    items = list(make_items(pairs, dropped=dropped, limits=limits, evaluation=MoonTexts()))
    assert [(i.id, i.query, i.passage) for i in items] == [
        ("idfit", "a query", "a passage of words"),
        ("idpassage only", "", "a passage of words"),
    ]
    assert dropped == {
        "no such query": 1,
        "empty:passage": 2,
        "too_short:passage": 1,
        "too_long:passage": 1,
        "too_long:query": 1,
        "too_short:query": 1,
        "shared_with_eval:query": 1,
        "shared_with_eval:near_passage": 1,
    }


def test_items_are_new_and_sampled_after_the_filter():
    texts = ["" if i % 2 else f"a passage of words {i}" for i in range(100)]
    pairs = [pair(i, passage=text) for i, text in enumerate(texts)]
    dropped = Counter()
    items = list(make_items(pairs, dropped=dropped, count=20, seed=3))
    assert len(items) == 20
    assert dropped == {"empty:passage": 50, "not_sampled": 30}
    assert ids(items) == ids(sample(pairs[::2], count=20, seed=3))
    for item in items:
        assert item.alive
        assert item.example is None
        assert item.instruction_type == draw_type(item.id, types=EVEN_TYPES, seed=3)


def test_items_do_not_depend_on_order_and_count():
    shuffled = random.Random(0).sample(PAIRS, len(PAIRS))
    few = list(make_items(PAIRS, dropped=Counter(), count=30))
    assert list(make_items(shuffled, dropped=Counter(), count=90))[:30] == few
    every = {i.id: i for i in make_items(PAIRS, dropped=Counter())}
    assert [every[i.id] for i in few] == few


def test_no_valid_pair():
    with pytest.raises(UserError, match=r"the source has no valid pair: 2 for 'empty:passage'; "):
        list(make_items([pair(1, passage=""), pair(2, passage="")], dropped=Counter(), count=1))
    with pytest.raises(UserError, match=r"the source has no valid pair; choose another source"):
        list(make_items([], dropped=Counter()))


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({"tone": 1}, r"no instruction type 'tone'; choose from audience, format, "),
        ({"length": -1}, r"length has weight -1; give a number of 0 or more"),
        ({"length": float("nan")}, r"length has weight nan"),
        ({"length": float("inf")}, r"length has weight inf"),
        ({"length": 0}, r"no instruction type has a weight above 0"),
        ({}, r"no instruction type has a weight above 0"),
    ],
)
def test_bad_types(types, message):
    with pytest.raises(UserError, match=message):
        list(make_items(PAIRS, dropped=Counter(), types=types))


@pytest.mark.parametrize("count", [None, 4, 6])
def test_the_same_texts_under_another_id_are_one_pair(count):
    pairs = [SourcePair(f"{n}", f"query {n % 3}", f"A passage of words {n % 3}") for n in range(6)]
    pairs[5] = SourcePair("5", "Query  2", "a passage of words 2")  # the same after folding
    dropped = Counter()
    items = list(make_items(pairs, dropped=dropped, count=count, seed=3, limits=Limits()))
    assert len({item.query.casefold().split()[-1] for item in items}) == len(items) <= 3
    assert len(items) + dropped["duplicate_pair"] == (count or 6)
    assert len(items) + sum(dropped.values()) == 6
