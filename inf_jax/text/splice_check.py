"""Checks that texts spliced from tokens of other texts equal what the tokenizer gives for them.

A tokenizer that merges across the boundary of instruction and query gives other ids. Tokenising
checks a sample and stores the result; the loader refuses a dataset whose texts do not splice.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from inf_jax.text.query_parts import as_own_text, truncate, with_instruction
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import TextTokenizer

CHECKED_EXAMPLES = 256  # examples checked, spread over the split
_T = TypeVar("_T")


class Composition(NamedTuple):
    """Counts of spliced texts that differ from the tokenizer's own ids.

    Attributes:
      checked: pairs of the sample.
      crossed: pairs whose query with another pair's instruction differs.
      alone: pairs whose query or instruction as a text of its own differs.
    """

    checked: int
    crossed: int
    alone: int


def sampled(examples: Iterable[_T], *, count: int, into: list[_T]) -> Iterator[_T]:
    """Passes `count` examples on and appends CHECKED_EXAMPLES of them or fewer, evenly spread, to
    `into`."""
    places = sampled_places(count)
    for number, example in enumerate(examples):
        if number in places:
            into.append(example)
        yield example


def sampled_places(count: int) -> range:
    """The numbers of these examples."""
    return range(0, count, -(-count // CHECKED_EXAMPLES))


def check_composition(
    queries: Sequence[tuple[str, str]], tokenizer: TextTokenizer, text: TextConfig
) -> Composition:
    """Compares the texts that a loader may splice with the tokenizer's ids for them; of the
    (query, instruction) pairs those that have an instruction."""
    present = [(query, instruction) for query, instruction in queries if instruction.strip()]
    half = len(present) // 2  # not the next pair: neighbours often share an instruction
    instructions = [instruction for _, instruction in present[half:] + present[:half]]
    parts = [p for _, p in tokenizer.query_parts(present, text)]
    others = parts[half:] + parts[:half]
    limits = {"special": tokenizer.special, "limit": text.max_query_tokens}

    crossing = [(query, i) for (query, _), i in zip(present, instructions, strict=True)]
    expected = tokenizer.queries(crossing, text)
    crossed = [
        np.array_equal(truncate(with_instruction(mine, other.ids_of("instruction")), **limits), ids)
        for mine, other, ids in zip(parts, others, expected, strict=True)
    ]

    bare = dataclasses.replace(
        text, passage_template="{passage}", max_passage_tokens=text.max_query_tokens
    )
    by_itself = np.ones(len(present), bool)
    for n, part in enumerate(("query", "instruction")):
        expected = tokenizer.passages([each[n] for each in present], bare)
        same = [
            np.array_equal(as_own_text(mine.ids_of(part), **limits), ids)
            for mine, ids in zip(parts, expected, strict=True)
        ]
        by_itself &= np.array(same, bool)
    checked = len(present)
    return Composition(checked, checked - sum(crossed), int(checked - by_itself.sum()))
