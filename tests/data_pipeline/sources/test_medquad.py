"""Builds examples from MedQuAD: readable instructions, and poisons that are certainly wrong."""

import gzip
import itertools
import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from data_pipeline.sources import medquad
from data_pipeline.sources.folding import fold
from inf_jax.core.errors import UserError

DEV = Path(medquad.__file__).parents[1] / "samples" / "medquad" / "dev.jsonl.gz"


@pytest.fixture(scope="module")
def dev():
    dropped = Counter()
    return list(medquad.read(DEV, dropped=dropped)), dropped


def rows_of(path=DEV):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(number, focus, qtype, answer=None, question=None):
    return {
        "id": f"r{number}",
        "focus": focus,
        "qtype": qtype,
        "question": question or f"What of {focus} ?",
        "answer": answer or f"One two three four five six seven {number} about {focus}.",
    }


@pytest.mark.parametrize(
    ("question", "focus", "expected"),
    [
        ("What is (are) Farber disease ?", "Farber disease", "What is it?"),
        ("What are the stages of ABCD syndrome ?", "ABCD syndrome", "What are the stages of it?"),
        ("Is mycosis fungoides inherited ?", "Mycosis Fungoides", "Is it inherited?"),
        ("what causes the Ataxia telangiectasia?", "ataxia-telangiectasia", "What causes it?"),
        ("How to diagnose Down (21) syndrome ?", "Down (21) syndrome", "How to diagnose it?"),
        ("What causes rolandic epilepsy (BRE) ?", "Rolandic epilepsy (BRE)", "What causes it?"),
        ("What causes rolandic epilepsy ?", "Rolandic epilepsy (BRE)", "What causes it?"),
        ("Who is at risk for Gum Disease? ?", "Gum Disease", "Who is at risk for it?"),
        ("What is Farber disease's outlook ?", "Farber disease", "What is its outlook?"),
        ("Do you have information about  Acne", "Acne", "Do you have information about it?"),
        ("What are the genes of 47,XXX ?", "47,XXX", "What are the genes of it?"),
        # no mention, or one inside another word: the plain question of the type
        ("What causes this condition ?", "Acne", "What are the symptoms of it?"),
        ("What causes acnes ?", "Acne", "What are the symptoms of it?"),
        ("What ?", "!", "What are the symptoms of it?"),
    ],
)
def test_instruction(question, focus, expected):
    assert medquad.instruction(question, focus, "symptoms") == expected


def test_instruction_of_unknown_type():
    text = medquad.instruction("Say more", "Acne", "side effects")
    assert text == "What is known about its side effects?"


def test_types_that_ask_the_same_are_held_out_together(tmp_path):
    types = ["information", "causes", "genetic changes", "treatment", "symptoms"]
    rows = [row(n, f"Disease {n // 5}", types[n % 5], question="What?") for n in range(20)]
    path = write(tmp_path / "rows.jsonl", rows)
    dropped = Counter()
    options = {"hold_out_types": ["causes", "treatment"], "dropped": dropped}
    train = list(medquad.read(path, **options))
    assert {e.instruction_positive for e in train} == {
        "What is it?",
        "What are the symptoms of it?",
    }
    assert dropped == {"type is held out": 12}
    dev = list(medquad.read(path, held_out=True, **options))
    assert {e.instruction_positive for e in dev} == {
        "What causes it?",
        "What are the genetic changes related to it?",
        "What are the treatments for it?",
    }
    assert dropped["type is not held out"] == 8 == len(train) == len(dev)


def test_every_row_is_counted(dev):
    examples, dropped = dev
    assert len(examples) + dropped.total() == len(rows_of()) == 999
    assert set(dropped) == {
        "answer occurs more than once",
        "answer under 8 words",
        "second answer to one question",
        "focus with under 2 question types",
    }


def test_one_example_for_each_question_of_a_focus(dev):
    examples, _ = dev
    rows = {r["id"]: r for r in rows_of()}
    groups = defaultdict(list)
    for example in examples:
        source = rows[example.id]
        assert example.document_positive == source["answer"]
        assert fold(source["focus"]).split()[0] in fold(example.query_positive).split()
        groups[example.query_positive].append(example)
    assert len({fold(query) for query in groups}) == len(groups)
    for group in groups.values():
        assert len(group) >= 2
        assert len({e.instruction_positive for e in group}) == len(group)
        assert len({rows[e.id]["qtype"] for e in group}) == len(group)
    assert len({fold(e.document_positive) for e in examples}) == len(examples)


def test_instructions_read_well(dev):
    texts = {e.instruction_positive for e in dev[0]}
    assert texts >= {"What is it?", "What causes it?", "Is it inherited?", "How to diagnose it?"}
    for text in texts:
        assert text[0].isupper()
        assert text.endswith("?")
        assert not {" ?", "??", "(", "  "} & {text[i : i + 2] for i in range(len(text))} | (
            {"("} & set(text)
        )


def test_poisons_are_other_examples_positives(dev):
    examples, _ = dev
    positive = {(e.query_positive, e.document_positive): e.instruction_positive for e in examples}
    focus_of = {e.document_positive: e.query_positive for e in examples}
    for e in examples:
        assert positive[e.query_positive, e.hard_negative_document_1] == e.instruction_negative
        assert e.instruction_negative != e.instruction_positive
        if e.query_negative:
            owner = focus_of[e.hard_negative_document_2]
            assert owner == e.query_negative
            assert fold(owner) != fold(e.query_positive)
            assert positive[owner, e.hard_negative_document_2] == e.instruction_positive
            assert fold(e.query_positive) not in fold(e.hard_negative_document_2)
        else:
            assert not e.hard_negative_document_2
    assert sum(not e.query_negative for e in examples) < 0.05 * len(examples)


def test_order_of_rows_changes_nothing(dev, tmp_path):
    rows = rows_of()
    random.Random(0).shuffle(rows)
    assert list(medquad.read(write(tmp_path / "rows.jsonl", rows))) == dev[0]


def test_drop_rules(tmp_path):
    same = "These seven words and then two more are repeated."
    rows = [
        row(1, "Alpha fever", "symptoms"),
        row(2, "alpha  Fever", "treatment"),
        row(3, "Alpha fever", "treatment"),  # or r2: one of the two
        row(4, "Alpha fever", "outlook", same),
        row(5, "Beta fever", "outlook", same.upper()),
        row(6, "Beta fever", "symptoms", "Too short an answer for anyone."),
        row(7, "Beta fever", "treatment"),  # the only one left
        row(8, "Gamma fever", "causes"),
        row(9, "Gamma fever", "genetic changes"),  # the same question as causes
        row(10, "Gamma fever", "symptoms"),
        {**row(11, "Gamma fever", "outlook"), "answer": None},
    ]
    dropped = Counter()
    kept = list(medquad.read(write(tmp_path / "rows.jsonl", rows), dropped=dropped))
    assert {(e.query_positive, len(e.id)) for e in kept} >= {("Alpha fever", 2)}
    assert Counter(fold(e.query_positive) for e in kept) == {"alpha fever": 2, "gamma fever": 2}
    assert dropped == {
        "answer occurs more than once": 2,
        "answer under 8 words": 1,
        "second answer to one question": 2,
        "focus with under 2 question types": 1,
        "empty field": 1,
    }


def test_equal_instructions_of_one_focus_become_plain_ones(tmp_path):
    rows = [
        row(i, "Alpha fever", qtype, question="Tell me of Alpha fever")
        for i, qtype in enumerate(("symptoms", "treatment"))
    ]
    examples = medquad.read(write(tmp_path / "rows.jsonl", rows))
    assert {e.instruction_positive for e in examples} == {
        "What are the symptoms of it?",
        "What are the treatments for it?",
    }


def test_poisoned_query_is_the_nearest_that_is_surely_wrong(tmp_path):
    names = ["Hemophilia A disease", "hemphilia A"]  # of the same one; the second lost a letter
    foci = ["hemophilia A", "hemophilia B", *names, "myopia", "anemia", "alopecia"]
    rows = [
        row(f"{i}{qtype}", focus, qtype)
        for (i, focus), qtype in itertools.product(enumerate(foci), ("symptoms", "treatment"))
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    negatives = {e.query_positive: e.query_negative for e in medquad.read(path)}
    assert negatives["hemophilia A"] == "hemophilia B"

    for r in rows:  # now each answer on B is about A too
        if r["focus"] == "hemophilia B":
            r["answer"] += " So it is with hemophilia-A, and with others."
    negatives = {e.query_positive: e.query_negative for e in medquad.read(write(path, rows))}
    assert negatives["hemophilia A"] not in {"hemophilia B", *names}


def test_repeated_id(tmp_path):
    path = write(tmp_path / "rows.jsonl", [row(1, "A", "symptoms"), row(1, "A", "treatment")])
    with pytest.raises(UserError, match=r"rows\.jsonl:2: id 'r1' is also at .*rows\.jsonl:1"):
        list(medquad.read(path))


def test_repeated_rows_count_once(tmp_path):
    rows = rows_of()
    once = list(medquad.read(write(tmp_path / "rows.jsonl", rows)))
    dropped = Counter()
    twice = write(tmp_path / "rows.jsonl", [*rows, *rows[:3]])
    assert list(medquad.read(twice, dropped=dropped)) == once
    assert dropped["repeated row"] == 3
