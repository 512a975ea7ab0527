"""Each filter rule on examples that violate it and on real texts that do not; the whole stage."""

import dataclasses
from pathlib import Path

import pytest

from data_pipeline.items import Item
from data_pipeline.quality.contamination import BenchmarkTexts
from data_pipeline.quality.filters import (
    FILTER_RULES,
    FilterSettings,
    ItemFilter,
    boilerplate,
    contamination,
    item_reasons,
    leaks,
    near_same,
    wrong_language,
)
from data_pipeline.quality.rules import Limits
from data_pipeline.sources import medquad
from inf_jax.core.errors import UserError
from inf_jax.data.records import Example

SAMPLE = Path(__file__).parents[3] / "data_pipeline" / "samples" / "medquad"
SOURCE = (
    "Vaccines contain weakened or inactive parts of a germ that trigger an immune response. The "
    "body makes antibodies and memory cells, so that it can fight the real germ later."
)
GOOD = Example(
    id="1",
    query_positive="how do vaccines work",
    instruction_positive="Explain it so that a child in primary school understands.",
    document_positive="A vaccine shows your body a harmless piece of a germ. Your body has tiny "
    "guards that learn what this germ looks like. If the real germ comes along later, the guards "
    "know it at once and chase it away before you get ill.",
    instruction_negative="Write for immunologists, with the cell types involved.",
    hard_negative_document_1="Vaccine antigens are taken up by dendritic cells, which migrate to "
    "lymph nodes and present peptides to naive T cells. T follicular helper cells then drive "
    "germinal centre reactions, in which B cells mature into plasma cells.",
    query_negative="how do antibiotics work",
    hard_negative_document_2="An antibiotic is a medicine against bacteria, which are tiny living "
    "things. Some antibiotics break the wall around a bacterium so that it falls apart, others "
    "stop it from growing. They do nothing against a cold.",
)
GERMAN = (
    "Ein Impfstoff zeigt dem Körper ein harmloses Stück eines Erregers. Der Körper lernt ihn so "
    "kennen und kann ihn später, wenn der echte Erreger kommt, sofort bekämpfen."
)


def item(*, source=SOURCE, query="how do vaccines work", **fields):
    example = dataclasses.replace(GOOD, **fields)
    return Item(id=example.id, query=query, passage=source, example=example)


@pytest.fixture(scope="module")
def evaluation():
    found = BenchmarkTexts(0.8)
    found.add(query="how do antibiotics work", passage=GOOD.hard_negative_document_1)
    return found


def test_good_example(evaluation):
    out = ItemFilter(FilterSettings())(item())
    assert out.alive
    assert list(item_reasons(item(query_negative="how do masks work"), FilterSettings())) == []


def test_boilerplate_names_the_field():
    found = boilerplate(
        item(
            instruction_negative="Here is the instruction: be brief.",
            hard_negative_document_2="I'm sorry, but I can't write that. ```",
        )
    )
    assert list(found) == [
        "boilerplate_here_is:instruction_negative",
        "refusal_sorry:hard_negative_document_2",
        "boilerplate_fence:hard_negative_document_2",
    ]


def test_instructions_of_medquad_tell_no_answer():
    examples = list(medquad.read(SAMPLE / "dev.jsonl.gz"))
    assert len(examples) > 500
    assert [reason for example in examples for reason in leaks(example, 6)] == []


def test_language_of_the_source():
    assert list(wrong_language(item())) == []
    found = wrong_language(item(document_positive=GERMAN, hard_negative_document_2=GERMAN[:40]))
    assert list(found) == ["language:document_positive"]  # the other one is too short to tell
    # the source's own text is never judged by itself, and German wants German
    german = item(source=GERMAN, document_positive=GERMAN)
    assert list(wrong_language(german)) == [
        "language:hard_negative_document_1",
        "language:hard_negative_document_2",
    ]


@pytest.mark.parametrize(
    "source", ["Germs.", "", "x = [[1, 2], [3]]; y += f(x) * 2 ** (n - 1)\n" * 4]
)
def test_no_language_to_ask_for(source):
    assert list(wrong_language(item(source=source, document_positive=GERMAN))) == []


def test_languages_by_name():
    mixed = item(document_positive=GERMAN)
    assert list(wrong_language(mixed, ("en",))) == ["language:document_positive"]
    assert list(wrong_language(mixed, ("en", "de"))) == []
    assert list(wrong_language(mixed, ("de",))) == [
        "language:hard_negative_document_1",
        "language:hard_negative_document_2",
    ]
    with pytest.raises(UserError, match=r"unknown languages \['klingon'\]; choose from .*en"):
        ItemFilter(FilterSettings(languages=("en", "klingon")))


LEAK = "Say that tiny guards learn what this germ looks like."


@pytest.mark.parametrize(
    ("fields", "reasons"),
    [
        ({"instruction_positive": LEAK}, ["leaks_answer:instruction_positive"]),
        ({"instruction_negative": LEAK}, []),  # another passage's
        ({"instruction_positive": LEAK, "query_positive": LEAK}, []),  # the query's own words
        (
            {"instruction_negative": "Tell how B cells mature into plasma cells."},
            ["leaks_answer:instruction_negative"],
        ),
        (
            {
                "document_positive": "Isaac Newton published it in 1687.",
                "instruction_positive": "Name Newton, who published in 1687, first.",
            },
            ["leaks_answer:instruction_positive"],
        ),
        (
            {
                "document_positive": "Isaac Newton published it in 1687.",
                "instruction_positive": "Only who published it first.",
            },
            [],
        ),
        (
            {
                "document_positive": "疫苗向身体展示一小块无害的病菌，身体就能记住它。",
                "instruction_positive": "说明疫苗向身体展示一小块无害的病菌。",
            },
            ["leaks_answer:instruction_positive"],
        ),
        (
            {
                "document_positive": "疫苗向身体展示一小块无害的病菌，身体就能记住它。",
                "instruction_positive": "请用简单的话解释，无害的病菌也要说明。",
            },
            [],
        ),
    ],
)
def test_leaks(fields, reasons):
    assert list(leaks(dataclasses.replace(GOOD, **fields), 6)) == reasons


def test_near_same():
    near = GOOD.document_positive.replace("before you get ill", "before you fall ill")
    found = near_same(dataclasses.replace(GOOD, hard_negative_document_1=near), 0.8)
    assert list(found) == ["near_same:hard_negative_document_1"]
    both = dict.fromkeys(("hard_negative_document_1", "hard_negative_document_2"), near)
    found = near_same(dataclasses.replace(GOOD, **both), 0.8)
    assert list(found) == [
        "near_same:hard_negative_document_1",
        "near_same:hard_negative_document_2",
    ]
    # equal is same_text's, absent is none
    same = GOOD.document_positive.upper()
    assert list(near_same(dataclasses.replace(GOOD, hard_negative_document_1=same), 0.8)) == []
    absent = dict.fromkeys(both, "")
    assert list(near_same(dataclasses.replace(GOOD, **absent), 0.8)) == []


def test_contamination(evaluation):
    near = GOOD.hard_negative_document_1.replace("peptides", "fragments")
    example = dataclasses.replace(GOOD, document_positive=near)
    assert list(contamination(example, evaluation)) == [
        "evaluation_query:query_negative",
        "near_evaluation_passage:document_positive",
        "evaluation_passage:hard_negative_document_1",
    ]


def test_the_first_of_near_duplicates_stays():
    longer = f"{GOOD.instruction_positive} Use words that a pupil of the second form knows well."
    base = {"instruction_positive": longer}
    near = {"instruction_positive": longer.replace("well", "already")}
    rewritten = GOOD.document_positive.replace("get ill", "fall ill")
    other = GOOD.hard_negative_document_2.replace("An antibiotic", "It")
    items = [
        item(id="1", **base),
        item(id="2", **near, document_positive=rewritten),
        item(id="3", **near, document_positive=other),  # another passage
        item(id="4", document_positive=rewritten),  # another instruction
        item(id="5", **base, document_positive="Nobody knows it so far, but many try."),
        item(id="6", instruction_positive=f"{longer} Do!", document_positive=rewritten),
    ]
    settings = FilterSettings(rules=("duplicates",))
    out = list(map(ItemFilter(settings), items))
    assert [x.id for x in out] == ["1", "2", "3", "4", "5", "6"]
    assert {x.id: x.reasons for x in out if not x.alive} == {
        "2": ["filter:near_duplicate"],
        "5": ["filter:duplicate_query"],
        "6": ["filter:near_duplicate"],
    }


def test_what_is_dropped_is_no_earlier_example():
    bad = item(id="1", hard_negative_document_1=GOOD.document_positive)
    out = list(map(ItemFilter(FilterSettings()), [bad, item(id="2")]))
    assert out[0].reasons == ["filter:same_text:hard_negative_document_1"]
    assert out[1].alive


@pytest.mark.parametrize("settings", [{"near_duplicate": 1.0}, {"rules": ()}])
def test_only_equal_duplicates(settings):
    near = GOOD.document_positive.replace("get ill", "fall ill")
    spaced = GOOD.instruction_positive.replace("child", "child,")
    items = [item(), item(document_positive=near, instruction_positive=spaced), item()]
    out = list(map(ItemFilter(FilterSettings(**settings)), items))
    assert [x.reasons for x in out] == [[], [], ["filter:duplicate_query"]]


def test_all_reasons_are_named_and_others_pass_through(evaluation):
    dropped = item(document_positive="```").drop("generate", "schema")
    before = dataclasses.asdict(dropped)
    failed = Item(id="9", query="q", passage="p", reasons=["generate:refusal"])
    bad = item(
        instruction_positive="Sure, explain.",
        document_positive=f"I'm sorry, but I can't. {GERMAN}",
    )
    items = [failed, dropped, bad]
    settings = FilterSettings(limits=Limits(instruction_words=(3, 50)))
    out = list(map(ItemFilter(settings, evaluation), items))
    assert failed.reasons == ["generate:refusal"]
    assert dataclasses.asdict(out[1]) == before
    assert out[2].reasons == [
        "filter:too_short:instruction_positive",
        "filter:language:document_positive",
        "filter:boilerplate_sure:instruction_positive",
        "filter:refusal_sorry:document_positive",
        "filter:evaluation_query:query_negative",
        "filter:evaluation_passage:hard_negative_document_1",
    ]


ONE_RULE = {
    "language": ({"hard_negative_document_2": GERMAN}, "language:hard_negative_document_2"),
    "phrases": ({"query_negative": "Query: germs"}, "boilerplate_label:query_negative"),
    "leaks": ({"instruction_positive": LEAK}, "leaks_answer:instruction_positive"),
    "near_same": (
        {"hard_negative_document_2": f"{GOOD.document_positive} So."},
        "near_same:hard_negative_document_2",
    ),
    "duplicates": (
        {"instruction_positive": f"{GOOD.instruction_positive} Please."},
        "near_duplicate",
    ),
    "contamination": (
        {"query_positive": "how do antibiotics work"},
        "evaluation_query:query_positive",
    ),
}


@pytest.mark.parametrize("rule", FILTER_RULES)
def test_rules_can_be_switched_off(rule):
    evaluation = BenchmarkTexts(1)
    evaluation.add(query="how do antibiotics work")
    fields, reason = ONE_RULE[rule]
    first = item(query_negative="how do masks work")
    second = item(id="2", **({"query_negative": "how do masks work"} | fields))
    if rule != "duplicates":
        first.drop("generate", "schema")
    for rules, reasons in (
        (FILTER_RULES, [f"filter:{reason}"]),
        (tuple(r for r in FILTER_RULES if r != rule), []),
    ):
        second.reasons.clear()
        settings = FilterSettings(rules=rules)
        list(map(ItemFilter(settings, evaluation), [first, second]))
        assert second.reasons == reasons


def test_unknown_rule():
    with pytest.raises(UserError, match=r"unknown rules \['leak'\]; choose from language, "):
        FilterSettings(rules=("leak", "language"))


def test_item_without_an_example():
    with pytest.raises(UserError, match="pair '7' has no example"):
        list(map(ItemFilter(FilterSettings()), [Item("7", "q", "p")]))
