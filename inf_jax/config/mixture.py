"""Parses the notation of mixtures: sources of training data and their weights.

medquad:2,pubmedqa:1,nevir:0.5    weights of their pairs, as decimals or fractions (1/3)
medquad,pubmedqa@1.1.0            equal weights; another version than data.version
"""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from inf_jax.core.errors import UserError
from inf_jax.losses.blocks import BLOCKS

NAME = re.compile(r"\w[\w.-]*")  # of a source, and of its version
_ENTRY = re.compile(rf"\s*({NAME.pattern})(?:@({NAME.pattern}))?(?:\s*:\s*([\w./+-]+))?\s*")
MOST_PARTS = 100_000  # the sum of a mixture's weights as whole numbers
_MOST_DIGITS = 24  # of a weight; longer ones, and exponents of two digits, are huge numbers
_BY_TEMPERATURE = 10_000  # the sum of those that a temperature gives


class MixtureSource(NamedTuple):
    """An entry of a mixture; `version` is "" for that of the config, `weight` None if not given."""

    name: str
    version: str
    weight: Fraction | None


def mixture_sources(text: str) -> tuple[MixtureSource, ...]:
    """The entries of `"medquad:2,pubmedqa:1"`, () for "".

    Raises:
      UserError: not of the form, a source is named twice or like a block of the loss, a weight is
        not above 0, or they have too many digits.
    """
    sources: list[MixtureSource] = []
    for entry in text.split(",") if text.strip() else ():
        match = _ENTRY.fullmatch(entry)
        if not match:
            raise UserError(
                f"{entry.strip()!r} is not of the form NAME, NAME:WEIGHT or NAME@VERSION"
            )
        name, version, given = match.groups()
        if name in (source.name for source in sources):
            raise UserError(f"{name} is named twice; add up its weights")
        if name in BLOCKS or re.fullmatch(r"dim\d+", name):
            raise UserError(
                f"{name}: metrics by source would be named like those of the loss's parts; build "
                "the dataset under another --name"
            )
        if given and (len(given) > _MOST_DIGITS or re.search(r"e[+-]?\d\d", given, re.IGNORECASE)):
            raise UserError(f"{name}: weight {given:.40} has too many digits; round it")
        try:
            weight = None if given is None else Fraction(given)
        except (ValueError, ZeroDivisionError):
            raise UserError(
                f"{name}: weight {given!r} is not a number such as 2, 0.5 or 1/3"
            ) from None
        if weight is not None and weight <= 0:
            raise UserError(f"{name}: weight {given} must be above 0")
        sources.append(MixtureSource(name, version or "", weight))
    whole_weights([source.weight or Fraction(1) for source in sources])
    return tuple(sources)


def whole_weights(weights: Sequence[Fraction]) -> tuple[int, ...]:
    """The smallest whole numbers in these proportions; UserError where they are large."""
    common = math.lcm(*(weight.denominator for weight in weights))
    parts = [int(weight * common) for weight in weights]
    parts = [part // math.gcd(*parts) for part in parts]
    if sum(parts) > MOST_PARTS:
        raise UserError(
            f"as whole numbers its weights are {':'.join(map(str, parts))}, whose sum is above "
            f"{MOST_PARTS:,}; round them"
        )
    return tuple(parts)


def temperature_weights(sizes: Sequence[int], temperature: float) -> tuple[int, ...]:
    """Whole numbers in the proportions of sizes ** (1 / temperature), to 1/10,000 of their sum.

    T = 1 is proportional to the sizes, a large T is nearly even (as in mT5, arXiv 2010.11934).
    """
    logs = [math.log(size) / temperature for size in sizes]
    powers = [math.exp(x - max(logs)) for x in logs]
    exact = [_BY_TEMPERATURE * power / sum(powers) for power in powers]
    return whole_weights([Fraction(max(1, round(x))) for x in exact])
