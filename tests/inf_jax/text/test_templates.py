"""Rendering of templates, and which of them are refused."""

import pytest

from inf_jax.core.errors import UserError
from inf_jax.text.templates import TextConfig, instructed_query, passage_text


@pytest.mark.parametrize(
    ("template", "instruction", "expected"),
    [
        ("{query} {instruction}", "Explain {it}.", "what {now}  Explain {it}."),
        ("{query} {instruction}", "", "what {now} "),
        ("{query} {instruction}", " \n", "what {now} "),
        ("{instruction}\n{query}", "", "what {now} "),
        ("Instruct: {instruction}\nQuery:  {query}", "", "Instruct: Query: what {now} "),
        ("{{{query}}} {instruction}", "", "{what {now} }"),
        ("{{{query}}} {instruction}", "x", "{what {now} } x"),
    ],
)
def test_instructed_query(template, instruction, expected):
    assert instructed_query("what {now} ", instruction, template) == expected


def test_passage_text():
    assert passage_text("a {b}", "passage: {passage}") == "passage: a {b}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_template": "{query}"}, "query_template='{query}' must hold"),
        ({"query_template": "{query} {query} {instruction}"}, "each once"),
        ({"query_template": "{query} {instruction} {passage}"}, "nothing else"),
        ({"query_template": "{query!r} {instruction}"}, "no format"),
        ({"query_template": "{query:>9} {instruction}"}, "no format"),
        ({"query_template": "{query} {instruction"}, "literal braces"),
        ({"passage_template": "passage"}, "must hold {passage}"),
        ({"max_query_tokens": 0}, "max_query_tokens=0"),
        ({"max_passage_tokens": 1.5}, "max_passage_tokens=1.5"),
    ],
)
def test_a_bad_config(change, message):
    with pytest.raises(UserError) as caught:
        TextConfig(**change)
    assert message in str(caught.value)
