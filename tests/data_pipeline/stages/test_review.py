"""Reviews: reading, applying decisions, reviews of another corpus."""

import json

import pytest

from data_pipeline.items import Fingerprint, Item, example_hash
from data_pipeline.stages.review import Decision, Review, apply_review, read_review
from inf_jax.core.errors import UserError
from tests.data_pipeline.factory_items import corpus, made


def review_of(items, **verdicts):
    decisions = {id: Decision(verdict=v, note=f"on {id}") for id, v in verdicts.items()}
    return Review(corpus=str(Fingerprint(items)), decisions=decisions)


def reasons(items):
    return {item.id: item.reasons for item in items}


def test_reject_drops_and_accept_changes_nothing():
    before = reasons(corpus())
    review = review_of(corpus(), a="reject", b="accept", e="accept", d="reject", f=None)
    found = list(apply_review(corpus(), review))
    assert [i.id for i in found] == list(before)
    expected = before | {"a": ["review:rejected"], "d": [*before["d"], "review:rejected"]}
    assert reasons(found) == expected
    assert found[0].provenance["review"] == {"verdict": "reject", "note": "on a"}
    assert found[1].provenance["review"] == {"verdict": "accept", "note": "on b"}
    assert "review" not in found[5].provenance  # a note without a decision


def test_accept_overrides_judges_and_score_only():
    accept = dict.fromkeys("bcdefgh", "accept")
    found = list(apply_review(corpus(), review_of(corpus(), **accept), accept_overrides=True))
    assert [i.id for i in found if i.alive] == ["a", "b", "e", "f", "g"]
    assert found[4].provenance["review"]["overrides"] == "judge:I+Q+|P-1, judge:I-Q+|P+"
    assert "overrides" not in found[1].provenance["review"]
    assert reasons(found)["d"] == reasons(corpus())["d"]


def test_review_of_another_corpus():
    other = [made("a"), made("x")]
    with pytest.raises(UserError, match=r"of another corpus \(0123, this is [0-9a-f]{16}\)"):
        list(
            apply_review(
                other, Review(corpus="0123", decisions=review_of([], a="accept").decisions)
            )
        )
    with pytest.raises(UserError, match="another corpus"):  # even with hashes
        decisions = {"q": Decision(verdict="accept", example="00")}
        list(apply_review(other, Review(corpus="0123", decisions=decisions)))


def test_unknown_ids_are_named():
    review = review_of(
        corpus(), a="accept", nobody="reject", **{f"z{n}": "reject" for n in range(6)}
    )
    with pytest.raises(UserError, match=r"not in this corpus: nobody, z0, .*z3 and 2 more; remove"):
        list(apply_review(corpus(), review))


def test_review_of_a_corpus_that_has_grown():
    seen = {i.id: Decision(verdict="reject", example=example_hash(i)) for i in corpus()[:2]}
    review = Review(corpus=str(Fingerprint(corpus())), decisions=seen)
    found = list(apply_review([*corpus(), made("new")], review))
    assert [i.id for i in found if i.alive] == ["new"]
    changed = [made("a", query_negative="not what was seen"), *corpus()[1:]]
    with pytest.raises(UserError, match="outdated: a have changed since; review the new audit"):
        list(apply_review(changed, review))


def test_an_item_without_example_cannot_be_accepted():
    items = [Item("c", "q", "p", reasons=["judge:refusal"])]
    [item] = apply_review(items, review_of(items, c="accept"), accept_overrides=True)
    assert not item.alive  # without an example


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"review\.json: not JSON \(.*export the decisions"),
        ("[]", r"review\.json: top level: Input should be a valid dictionary"),
        ({"decisions": {}}, r"corpus: Field required"),
        ({"corpus": "x", "decisions": {"a": {"verdict": "maybe"}}}, r"decisions / a / verdict: "),
        ({"corpus": "x", "decisions": {"a": {"note": "n"}}}, r"decisions / a / verdict: Field req"),
        ({"corpus": "x", "decisions": {"a": {"verdict": "accept", "by": 1}}}, r"a / by: Extra inp"),
    ],
)
def test_bad_review(tmp_path, text, message):
    path = tmp_path / "review.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(UserError, match=message):
        read_review(path)


def test_read_review(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json: no such file; export the decisions"):
        read_review(tmp_path / "gone.json")
    path = tmp_path / "review.json"
    values = {"corpus": "c0", "decisions": {"a": {"verdict": "accept", "note": "é"}}}
    path.write_text(json.dumps(values))
    assert read_review(path) == Review(
        corpus="c0", decisions={"a": Decision(verdict="accept", note="é")}
    )
