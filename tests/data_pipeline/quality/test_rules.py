"""Each rule on a valid example with one fault; the report; the held-out split."""

import dataclasses
import io
import json
import unicodedata

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from data_pipeline.quality.rules import (
    Limits,
    Report,
    evaluation_hashes,
    held_out,
    kept,
    report_table,
    validate,
)
from data_pipeline.sources.folding import fold
from inf_jax.data.records import FIELDS, Example, text_hash

GOOD = Example(
    id="1",
    query_positive="Farber disease",
    instruction_positive="What causes it?",
    document_positive="A gene that is changed.",
    instruction_negative="How is it treated?",
    hard_negative_document_1="With great care and rest.",
    query_negative="Gaucher disease",
    hard_negative_document_2="Another gene that is changed.",
)
NO_POISON = dict.fromkeys([f.name for f in dataclasses.fields(Example)][4:], "")


def changed(**fields):
    return dataclasses.replace(GOOD, **fields)


@pytest.mark.parametrize("example", [GOOD, changed(**NO_POISON)])
def test_good_example(example):
    verdict = validate(example)
    assert verdict.keep
    assert verdict.reasons == ()


LONG = "word " * 20
CAUSE = GOOD.document_positive
REPEAT = "How is farber-disease treated?"
LIMITS = Limits(query_words=(2, 10), instruction_words=(2, 10), document_words=(3, 10))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"document_positive": " \n"}, "empty:document_positive"),
        ({"instruction_positive": ""}, "empty:instruction_positive"),
        ({"instruction_negative": ""}, "empty:instruction_negative"),
        ({"hard_negative_document_2": ""}, "empty:hard_negative_document_2"),
        ({"query_positive": "Farber"}, "too_short:query_positive"),
        ({"query_negative": LONG}, "too_long:query_negative"),
        ({"instruction_negative": LONG}, "too_long:instruction_negative"),
        ({"hard_negative_document_1": "No."}, "too_short:hard_negative_document_1"),
        ({"document_positive": LONG}, "too_long:document_positive"),
        ({"query_negative": " FARBER  disease"}, "same_text:query_negative"),
        ({"instruction_negative": "what causes\nit?"}, "same_text:instruction_negative"),
        ({"hard_negative_document_1": CAUSE}, "same_text:hard_negative_document_1"),
        ({"hard_negative_document_2": CAUSE.upper()}, "same_text:hard_negative_document_2"),
        ({"instruction_negative": REPEAT}, "repeats_query:instruction_negative"),
    ],
)
def test_rule(fields, reason):
    verdict = validate(changed(**fields), limits=LIMITS)
    assert not verdict.keep
    assert verdict.reasons == (reason,)


def test_instruction_that_repeats_a_query():
    verdict = validate(changed(instruction_positive="Say of Farber Disease, what causes it?"))
    assert verdict.reasons == ("repeats_query:instruction_positive",)
    verdict = validate(changed(instruction_positive="What causes it, unlike Gaucher disease?"))
    assert verdict.reasons == ("repeats_query:query_negative",)
    assert validate(changed(instruction_positive="What causes Farber's other disease?")).keep


def test_every_broken_rule_is_named():
    verdict = validate(changed(query_negative="", document_positive="No."))
    assert verdict.reasons == ("empty:query_negative", "too_short:document_positive")


def test_texts_in_either_form_of_unicode_are_duplicates():
    composed = changed(
        query_positive="Maladie de Ménière", document_positive="Très rare et éloigné."
    )
    fields = {name: unicodedata.normalize("NFD", getattr(composed, name)) for name in FIELDS}
    decomposed = dataclasses.replace(composed, **fields)
    seen = set(validate(composed).identity)
    once = Limits(repeated_documents=False)
    found = validate(decomposed, seen=seen, limits=once).reasons
    assert found == ("duplicate_query", "duplicate_document")
    assert evaluation_hashes(composed) == evaluation_hashes(decomposed)


def test_duplicates():
    seen = set(validate(GOOD).identity)
    once = Limits(repeated_documents=False)
    assert validate(changed(id="2"), seen=seen).reasons == ("duplicate_query",)
    assert validate(changed(id="2"), seen=seen, limits=once).reasons == (
        "duplicate_query",
        "duplicate_document",
    )
    other_passage = changed(document_positive="Nobody knows its cause.")
    assert validate(other_passage, seen=seen, limits=once).reasons == ("duplicate_query",)
    other_question = changed(instruction_positive="Where does it come from?")
    assert validate(other_question, seen=seen).keep
    assert validate(other_question, seen=seen, limits=once).reasons == ("duplicate_document",)
    # a passage may be one example's positive and another's negative
    seen = set(validate(changed(document_positive=GOOD.hard_negative_document_1)).identity)
    assert validate(changed(query_positive="Fabry disease"), seen=seen, limits=once).keep


@pytest.mark.parametrize(
    ("shared", "fields"),
    [
        ({"document_positive": "With great CARE and rest."}, ["hard_negative_document_1"]),
        ({"document_positive": GOOD.document_positive}, ["document_positive"]),
        ({"hard_negative_document_2": GOOD.document_positive}, ["document_positive"]),
        (
            {"query_positive": "gaucher-disease", "instruction_positive": "What causes it?"},
            ["query_negative"],
        ),
        (
            {"query_positive": "Farber disease", "instruction_positive": "How is it treated?"},
            ["instruction_negative"],
        ),
        (
            {
                "query_positive": "\u201cfarber disease\u201d",
                "instruction_positive": "How is it treated",
            },
            ["instruction_negative"],
        ),
        ({"query_positive": "Farber disease"}, []),  # another instruction: another text
        ({"instruction_positive": "What causes it?"}, []),
    ],
)
def test_shared_with_the_evaluation_split(shared, fields):
    base = Example("e", "q eval", "i eval", "d eval", "i2 eval", "d1 eval", "q2 eval", "d2 eval")
    hashes = evaluation_hashes(dataclasses.replace(base, **shared))
    verdict = validate(GOOD, eval_hashes=hashes)
    assert verdict.reasons == tuple(f"shared_with_eval:{field}" for field in fields)
    assert verdict.keep == (not fields)


def test_absent_poison_shares_nothing():
    hashes = evaluation_hashes(Example("e", "q", "i", "d"))
    assert len(hashes) == 2
    assert validate(changed(**NO_POISON), eval_hashes=hashes).keep


@given(st.text())
@hypothesis.example("\u0149\u0303")  # its folded letters could be composed
def test_fold_is_idempotent_up_to_composition(text):
    assert text_hash(fold(fold(text))) == text_hash(fold(text))
    assert fold(unicodedata.normalize("NFD", text)) == fold(text)


def test_fold():
    assert fold(" Ragged-Red\n fibers ") == "ragged red fibers"
    assert fold("x - 1, 3-4, -y") == "x - 1, 3-4, -y"  # arithmetic keeps its signs


@given(st.text(), st.floats(0, 1))
def test_held_out_goes_by_the_query_alone(query, fraction):
    a, b = Example("1", query, "i", "d"), Example("2", f" {query.upper().lower()}\n", "j", "e")
    if fold(a.query_positive) == fold(b.query_positive):
        assert held_out(a, fraction) == held_out(b, fraction)
    assert held_out(a, 1.0)
    assert not held_out(a, 0.0)


@pytest.mark.parametrize("query", ["maladie de Ménière", "Ποια ΐ είναι", "it"])
def test_held_out_is_the_same_for_ever_and_in_both_forms_of_unicode(query):
    number = text_hash(f"held out\x1f{query.casefold()}", compose=False)
    for form in ("NFC", "NFD"):
        one = Example("", unicodedata.normalize(form, query), "", "")
        assert not held_out(one, number / 2.0**64 - 1e-9)
        assert held_out(one, number / 2.0**64 + 1e-9)


def test_held_out_share():
    share = sum(held_out(Example("", f"query {i}", "", ""), 0.1) for i in range(5000)) / 5000
    assert 0.08 < share < 0.12


def test_kept_and_report():
    examples = [
        GOOD,
        changed(id="2"),
        changed(id="3", query_positive="Fabry disease", **NO_POISON),
        changed(id="4", query_positive="", document_positive=""),
    ]
    report = Report()
    report.dropped_by_source["answer under 8 words"] += 5
    assert [e.id for e in kept(examples, limits=Limits(), report=report)] == ["1", "3"]
    assert (report.rows, report.kept, report.dropped) == (9, 2, 2)
    assert report.reasons == {
        "duplicate_query": 1,
        "empty:query_positive": 1,
        "empty:document_positive": 1,
    }
    assert report.absent == {"instruction_negative": 1, "query_negative": 1}
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report

    out = io.StringIO()
    Console(file=out, width=120).print(report_table({"train": report, "dev": Report()}))
    lines = [line.replace("│", " ").split() for line in out.getvalue().splitlines()]
    assert ["rows", "read", "9", "0"] in lines
    assert ["dropped", "by", "a", "rule:", "duplicate_query", "1", "0"] in lines
    assert ["dropped", "in", "total", "7", "0"] in lines
    assert ["kept", "2", "0"] in lines
