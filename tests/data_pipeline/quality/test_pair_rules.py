"""Rules of pairs: texts that may be absent, and negatives that are no negatives."""

from collections import Counter

import pytest

from data_pipeline.quality.pair_rules import pair_reasons, settle
from data_pipeline.quality.rules import Limits
from data_pipeline.sources.pairs import SourcePair

PASSAGE = "a wedge is a tool"


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, []),
        ({"instruction": "for a child"}, []),
        ({"query": " "}, ["empty:query"]),
        ({"passage": ""}, ["empty:passage"]),
        ({"passage": "a wedge"}, ["too_short:passage"]),
        ({"passage": "a " * 4097}, ["too_long:passage"]),
        ({"instruction": "briefly"}, ["too_short:instruction"]),
        ({"instruction": "Say what a Wedge is"}, ["repeats_query:instruction"]),
        ({"passage": "北京是首都"}, []),
        ({"passage": "くさびは道具です。"}, []),
        ({"passage": "ลิ่มเป็นเครื่องมือ"}, []),
        ({"passage": "首都"}, ["too_short:passage"]),
        ({"passage": "北" * 16385}, ["too_long:passage"]),
        ({"passage": "北" * 16384, "query": "首都", "instruction": "为了孩子"}, []),
        (
            {"query": "楔子是什么", "instruction": "请说明楔子是什么。"},
            ["repeats_query:instruction"],
        ),
    ],
)
def test_pair_reasons(change, expected):
    values = {"id": "1", "query": "what a wedge is", "passage": PASSAGE} | change
    assert list(pair_reasons(SourcePair(**values), Limits())) == expected


def settled(*pairs, most=0):
    reasons, dropped = Counter(), Counter()
    rows = [SourcePair(str(n), "q", *pair) for n, pair in enumerate(pairs)]
    options = {"limits": Limits(), "most": most, "reasons": reasons, "dropped": dropped}
    found = [
        (e.id, p.passage, p.negatives, p.scores) for e in settle(rows, **options) for p in e.pairs
    ]
    return found, dict(reasons), {n.removeprefix("dropped: "): c for n, c in dropped.items()}


def test_negatives_that_are_positives_are_dropped_with_their_scores():
    own, decomposed = "un résumé de tout", "un re\u0301sume\u0301  de tout"
    negatives = ("not a wedge here", decomposed, PASSAGE, "", "not a  wedge here", "too short")
    found, reasons, dropped = settled(
        (own, "", negatives, (9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)), (PASSAGE,)
    )
    assert found == [("0", own, negatives[:1], (9.0, 1.0)), ("1", PASSAGE, (), ())]
    kinds = "equals_passage other_positive empty repeated too_short".split()
    assert (reasons, dropped) == ({}, dict.fromkeys(kinds, 1))


def test_another_instruction_has_other_positives():
    found, _, dropped = settled(
        (PASSAGE, "i one", ("the other passage",)), ("the other passage", "i two", (PASSAGE,))
    )
    assert [negatives for *_, negatives, _ in found] == [("the other passage",), (PASSAGE,)]
    assert not dropped


N = [f"negative number {k}" for k in range(5)]


def test_rows_of_one_pair_are_merged():
    found, reasons, dropped = settled(
        (PASSAGE, "", (N[0],), (0.0, -1.0)),
        (PASSAGE.upper(), "", (N[1], N[0]), (0.0, -2.0, -1.0)),
        (PASSAGE, "", (N[2],), (5.0, 1.0)),
        (PASSAGE,),
        (PASSAGE, "", (N[3], N[4]), (0.0, -4.0, -5.0)),
        most=4,
    )
    assert found == [("0", PASSAGE, (*N[:4],), (0.0, -1.0, -2.0, -4.0, -4.0))]
    assert reasons == {"merged_pair": 3, "duplicate_pair": 1}
    assert dropped == {"repeated": 1, "over_limit": 1}


@pytest.mark.parametrize("first", [True, False])
def test_rows_without_scores_beside_rows_with_scores(first):
    plain, scored = (PASSAGE, "", (N[0], N[1])), (PASSAGE, "", (N[1],), (9.0, 1.0))
    found, reasons, dropped = settled(*((plain, scored) if first else (scored, plain)))
    assert found == [("0", PASSAGE, (N[1],), (9.0, 1.0))]
    assert (reasons, dropped) == ({"duplicate_pair": 1}, {"no_score": 1, "repeated": 1})


def test_negatives_are_worth_more_than_the_score_of_the_passage_alone():
    found, reasons, dropped = settled((PASSAGE, "", (), (9.0,)), (PASSAGE, "", (N[0],)))
    assert found == [("0", PASSAGE, (N[0],), ())]
    assert (reasons, dropped) == ({"duplicate_pair": 1}, {})


def test_rows_that_are_no_pairs_are_negatives_of_all_pairs_of_the_query():
    found, reasons, dropped = settled(
        (N[0], "", (), (), False),
        (PASSAGE,),
        ("another wedge is one", "", (N[1],)),
        ("and this is one", "i one", (N[1],), (2.0, 1.0)),
        (N[2], "i one", (), (), False),
        (N[3], "i two", (), (), False),
        (PASSAGE, "", (), (), False),
    )
    assert found == [
        ("1", PASSAGE, (N[0],), ()),
        ("2", "another wedge is one", (N[1], N[0]), ()),
        ("3", "and this is one", (N[1],), (2.0, 1.0)),
    ]
    assert reasons == {"merged_pair": 3, "no_relevant_passage": 1}
    assert dropped == {"no_score": 1, "equals_passage": 1, "other_positive": 1}
