"""The rules that perturb instructions."""

import difflib

import pytest

from inf_jax.core.errors import UserError
from inf_jax.text.noise import RULES, perturbed

TEXTS = [
    "What are the symptoms of it?",
    "Find documents that mention sharks but not whales. Documents about whales are not relevant.",
    "Given a question, retrieve passages that answer it",
    "Какие документы нужны?",
    "only amber",
    "{x} %s \\1 must be braces",
]


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("text", TEXTS)
def test_noise_depends_on_its_key_alone(kind, text):
    found = [perturbed(text, kind, f"{n}") for n in range(30)]
    assert found == [perturbed(text, kind, f"{n}") for n in range(30)]
    if kind == "paraphrase" and not text.isascii():
        assert set(found) == {text}  # its words are English
    else:
        assert text not in found


@pytest.mark.parametrize("text", TEXTS)
def test_typos_are_slips_in_long_words(text):
    seen = set()
    for n in range(200):
        before, after = text.split(), perturbed(text, "typos", f"{n}").split()
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert changed
        for a, b in changed:
            assert len([c for c in a if c.isalpha()]) >= 4 and a[0] == b[0]
            assert abs(len(a) - len(b)) <= 1
            assert difflib.SequenceMatcher(None, a, b).ratio() > 0.7
        seen |= {len(b) - len(a) for a, b in changed}
    assert seen == {-1, 0, 1}


def test_case_changes_nothing_else():
    found = {perturbed(TEXTS[0], "case", f"{n}") for n in range(50)}
    assert found == {
        "what are the symptoms of it?",
        "WHAT ARE THE SYMPTOMS OF IT?",
        "What Are The Symptoms Of It?",
    }
    assert perturbed("请找出相关文件", "case", "") == "请找出相关文件"


def test_paraphrases():
    def all_of(text):
        return {perturbed(text, "paraphrase", f"{n}") for n in range(40)}

    assert all_of(TEXTS[0]) == {
        "List the symptoms of it.",
        "I want to know the symptoms of it.",
    }
    assert all_of(TEXTS[1]) == {
        f"{start} texts that name sharks but not whales. Texts concerning whales are not pertinent."
        for start in ("Pick out", "I am looking for")
    }
    assert all_of("What is {0}?") == {"State {0}.", "I want to know {0}."}
    assert all_of("Amber") == {"What I need: Amber"}


def test_compound_is_all_of_them():
    for n in range(30):
        text = perturbed(TEXTS[0], "compound", f"{n}")
        assert text in (text.lower(), text.upper(), " ".join(w.capitalize() for w in text.split()))
        plain = {"list the symptoms of it.", "i want to know the symptoms of it."}
        assert text.lower() not in plain


def test_no_such_kind():
    with pytest.raises(UserError, match="noise 'loud' is not one of typos, case"):
        perturbed("x", "loud", "")
