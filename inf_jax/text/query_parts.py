"""Splits the tokens of an instructed query into its parts, to truncate them or swap an instruction.

n_ik, the query of row i under the instruction of row k, is assembled from the tokens of both rows,
so that the loader needs no tokenizer; a sample is compared with the tokenised text. Pure numpy.
"""

from typing import NamedTuple

import numpy as np

from inf_jax.text.templates import QuerySpans

# Kinds of tokens; _OTHER: the template's own words.
_SPECIAL, _QUERY, _INSTRUCTION, _OTHER = range(4)


class TokenSpan(NamedTuple):
    """Consecutive tokens: the number of the first one, and their count."""

    first: int
    count: int

    @property
    def end(self) -> int:
        """One past the last token."""
        return self.first + self.count


class QueryParts(NamedTuple):
    """An instructed query before truncation.

    Attributes:
      ids: int32[tokens], special tokens included.
      query, instruction: their spans in `ids`; where `instruction.count` is 0, no other instruction
        can take its place.
    """

    ids: np.ndarray
    query: TokenSpan
    instruction: TokenSpan

    def ids_of(self, part: str) -> np.ndarray:
        """Token ids of "query" or "instruction"."""
        span = getattr(self, part)
        return self.ids[span.first : span.end]


def token_kinds(encoding, spans: QuerySpans) -> np.ndarray:
    """int8[tokens]: the kind of each token of an instructed query, a `tokenizers.Encoding`."""
    starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
    kinds = np.full(len(starts), _OTHER, np.int8)
    kinds[(starts >= spans.query[0]) & (ends <= spans.query[1])] = _QUERY
    # a token across the boundary of query and instruction counts as instruction, to be kept
    kinds[(ends > spans.instruction[0]) & (starts < spans.instruction[1])] = _INSTRUCTION
    kinds[np.array(encoding.special_tokens_mask, bool)] = _SPECIAL
    return kinds


def kept_tokens(kinds: np.ndarray, limit: int) -> np.ndarray:
    """Which tokens of an overlong instructed query stay.

    The query loses its end but for `limit // 4` tokens, or the fewer that special tokens and the
    template's own words leave room for; beyond that the instruction loses its end.

    Args:
      kinds: int[tokens], the kind of each token; more than `limit` of them.

    Returns:
      int64[limit], token numbers in rising order.
    """
    query, instruction, other = (np.flatnonzero(kinds == k) for k in (_QUERY, _INSTRUCTION, _OTHER))
    room = limit - np.count_nonzero(kinds == _SPECIAL) - len(other)
    least = max(min(limit // 4, room), 0)
    # in order of removal; a template that leaves room never reaches the tail of this list
    order = [x[::-1] for x in (query[least:], instruction, other, query[:least])]
    return np.setdiff1d(np.arange(len(kinds)), np.concatenate(order)[: len(kinds) - limit])


def split_parts(ids: np.ndarray, kinds: np.ndarray, limit: int) -> QueryParts:
    """The parts of a text by the kinds of its tokens, int[tokens].

    Query and instruction are truncated at `limit` tokens each: no text of `limit` tokens holds
    more. A text whose query or instruction is in several pieces counts as one without instruction.
    """
    if len(ids) > limit:
        within = np.ones(len(ids), bool)
        for kind in (_QUERY, _INSTRUCTION):
            within[np.flatnonzero(kinds == kind)[limit:]] = False
        ids, kinds = ids[within], kinds[within]
    query, instruction = (_span(kinds == kind) for kind in (_QUERY, _INSTRUCTION))
    if query is None or instruction is None:
        return QueryParts(ids, TokenSpan(0, 0), TokenSpan(0, 0))
    return QueryParts(ids, query, instruction)


def with_instruction(parts: QueryParts, instruction: np.ndarray) -> QueryParts:
    """The same query in the same template, with the tokens int32[...] of another instruction."""
    before, after = parts.ids[: parts.instruction.first], parts.ids[parts.instruction.end :]
    query = parts.query
    if query.first > parts.instruction.first:
        query = TokenSpan(query.first + len(instruction) - parts.instruction.count, query.count)
    return QueryParts(
        np.concatenate((before, instruction, after)),
        query,
        TokenSpan(parts.instruction.first, len(instruction)),
    )


def truncate(
    parts: QueryParts, *, special: tuple[np.ndarray, np.ndarray], limit: int
) -> np.ndarray:
    """int32[tokens], the ids truncated to `limit` by `kept_tokens`; special: `TextTokenizer`'s."""
    if len(parts.ids) <= limit:
        return parts.ids
    kinds = np.full(len(parts.ids), _OTHER, np.int8)
    kinds[: len(special[0])] = _SPECIAL
    kinds[len(kinds) - len(special[1]) :] = _SPECIAL
    kinds[parts.query.first : parts.query.end] = _QUERY
    kinds[parts.instruction.first : parts.instruction.end] = _INSTRUCTION
    return parts.ids[kept_tokens(kinds, limit)]


def as_own_text(
    ids: np.ndarray, *, special: tuple[np.ndarray, np.ndarray], limit: int
) -> np.ndarray:
    """int32[tokens], a query or an instruction as a text of its own, truncated at `limit`."""
    room = max(limit - len(special[0]) - len(special[1]), 0)
    return np.concatenate((special[0], ids[:room], special[1]))


def _span(chosen: np.ndarray) -> TokenSpan | None:
    """Where bool[tokens] is True; None if in several pieces."""
    places = np.flatnonzero(chosen)
    if not places.size:
        return TokenSpan(0, 0)
    span = TokenSpan(int(places[0]), len(places))
    return span if span.end == places[-1] + 1 else None
