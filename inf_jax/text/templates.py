"""Renders instructed queries and passages from templates, and locates each field in the text."""

import dataclasses
import functools
import string
from typing import NamedTuple

from inf_jax.core.errors import UserError

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How texts are rendered and where they are truncated.

    Attributes:
      query_template: the instructed query, from `{query}` and `{instruction}`; the default is the
        paper's order (arXiv 2505.21439, section 4).
      passage_template: the passage, from `{passage}`.
      max_query_tokens, max_passage_tokens: limits, special tokens included.

    Raises:
      UserError: a template lacks a field, repeats it or has another one; a limit is below 1.
    """

    query_template: str = "{query} {instruction}"
    passage_template: str = "{passage}"
    max_query_tokens: int = 128
    max_passage_tokens: int = 512

    def __post_init__(self):
        for name, expected in (
            ("query_template", ["instruction", "query"]),
            ("passage_template", ["passage"]),
        ):
            template = getattr(self, name)
            if not isinstance(template, str):
                raise UserError(f"{name}={template!r} is not a string")
            try:
                fields = sorted(field for _, field in pieces(template) if field is not None)
            except ValueError as error:  # also an unbalanced brace
                text = f"{name}={template!r}: {error}; literal braces are {{{{ }}}}"
                raise UserError(text) from error
            if fields != expected:
                wanted = " and ".join(f"{{{field}}}" for field in expected)
                raise UserError(f"{name}={template!r} must hold {wanted}, each once, nothing else")
        for name in ("max_query_tokens", "max_passage_tokens"):
            limit = getattr(self, name)
            if not isinstance(limit, int) or limit < 1:
                raise UserError(f"{name}={limit!r} must be a positive whole number")


def instructed_query(query: str, instruction: str, template: str) -> str:
    """The text of an instructed query, without field and white space of an empty instruction."""
    return render_query(query, instruction, template)[0]


def document_text(title: str | None, text: str | None) -> str:
    """A document's title and text as one, as in mteb and BEIR; a query's title is no part of it."""
    title, text = title or "", text or ""
    return f"{title} {text}".strip() if title else text.strip()


def passage_text(passage: str, template: str) -> str:
    """The text of a passage."""
    return render(pieces(template), {"passage": passage})[0]


class QuerySpans(NamedTuple):
    """Where the query and the instruction are in a rendered text: (start, end) in characters."""

    query: Span
    instruction: Span


@functools.lru_cache(maxsize=64)
def pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """The (literal, field or None) pieces; ValueError: unbalanced braces, format or conversion."""
    parts = []
    for literal, field, spec, conversion in string.Formatter().parse(template):
        if spec or conversion:
            raise ValueError(f"{{{field}}} may have no format of its own")
        parts.append((literal, field))
    return tuple(parts)


@functools.lru_cache(maxsize=64)
def _uninstructed(template: str) -> tuple[tuple[str, str | None], ...]:
    """The template's pieces without the instruction.

    Where the instruction comes last, only trailing white space is dropped, so that a prompt before
    the query stays as it is; elsewhere white space is collapsed.
    """
    escaped = "".join(
        literal.replace("{", "{{").replace("}", "}}") + ("{query}" if field == "query" else "")
        for literal, field in pieces(template)
    )
    last = pieces(template)[-1][1] == "instruction"
    return pieces(escaped.rstrip() if last else " ".join(escaped.split()))


def render(
    parts: tuple[tuple[str, str | None], ...], values: dict[str, str]
) -> tuple[str, dict[str, Span]]:
    """The text and the span of each field, with the white space before it.

    Many tokenizers keep that in the first token of the word.
    """
    text, spans = "", {}
    for literal, field in parts:
        start = len(text) + len(literal.rstrip())
        text += literal
        if field is not None:
            text += values[field]
            spans[field] = (start, len(text))
    return text, spans


def render_query(query: str, instruction: str, template: str) -> tuple[str, QuerySpans]:
    """The text of an instructed query, see `instructed_query`, and the spans of its parts."""
    if not instruction.strip():
        text, spans = render(_uninstructed(template), {"query": query})
        return text, QuerySpans(spans["query"], (len(text), len(text)))
    text, spans = render(pieces(template), {"query": query, "instruction": instruction})
    return text, QuerySpans(spans["query"], spans["instruction"])
