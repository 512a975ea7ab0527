"""Checks that texts spliced from tokens of other texts equal what the tokenizer gives for them.

A tokenizer that merges across the boundary of instruction and query gives other ids. Tokenising
checks a sample and stores the result; the loader refuses a dataset whose texts do not splice.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from inf_jax.data.records import Example, pairs
from inf_jax.text.query_parts import as_own_text, truncate, with_instruction
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import TextTokenizer

CHECKED_EXAMPLES = 256  # examples checked, spread over the split


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


def sampled(examples: Iterable[Example], *, count: int, into: list[Example]) -> Iterator[Example]:
    """Passes `count` examples on and appends CHECKED_EXAMPLES of them or fewer, evenly spread, to
    `into`."""
    every = -(-count // CHECKED_EXAMPLES)
    for number, example in enumerate(examples):
        if number % every == 0:
            into.append(example)
        yield example


def check_composition(
    examples: list[Example], tokenizer: TextTokenizer, text: TextConfig
) -> Composition:
    """Compares the texts that a loader may splice with the tokenizer's ids for them."""
    present = [p for e in examples for p in pairs(e) if p is not None and p.instruction.strip()]
    half = len(present) // 2  # not the next pair: neighbours often share an instruction
    instructions = [p.instruction for p in present[half:] + present[:half]]
    parts = [p for _, p in tokenizer.query_parts([(p.query, p.instruction) for p in present], text)]
    others = parts[half:] + parts[:half]
    limits = {"special": tokenizer.special, "limit": text.max_query_tokens}

    others_queries = [(p.query, i) for p, i in zip(present, instructions, strict=True)]
    expected = tokenizer.queries(others_queries, text)
    crossed = [
        np.array_equal(truncate(with_instruction(mine, other.ids_of("instruction")), **limits), ids)
        for mine, other, ids in zip(parts, others, expected, strict=True)
    ]

    bare = dataclasses.replace(
        text, passage_template="{passage}", max_passage_tokens=text.max_query_tokens
    )
    by_itself = np.ones(len(present), bool)
    for part in ("query", "instruction"):
        expected = tokenizer.passages([getattr(p, part) for p in present], bare)
        by_itself &= [
            np.array_equal(as_own_text(mine.ids_of(part), **limits), ids)
            for mine, ids in zip(parts, expected, strict=True)
        ]
    checked = len(present)
    return Composition(checked, checked - sum(crossed), int(checked - by_itself.sum()))
