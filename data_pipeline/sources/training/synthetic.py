"""Makes any number of pairs for rehearsals: real text, recombined, that says nothing true.

A passage is some sentences of the shipped MedQuAD sample (CC BY 4.0) in a random order, its query
is words of two of them. Lengths are as MS MARCO's: 56 words a passage on average, 7 a query.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipeline.sources.files import read_rows
from data_pipeline.sources.pairs import SourcePair
from inf_jax.core.errors import UserError

SAMPLE = Path(__file__).parents[2] / "samples" / "medquad" / "train.jsonl.gz"
_SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[A-Z])")
_WORDS = (6, 30)  # of a sentence
_BATCH = 4096
_DRAWS = 10  # numbers that a pair is made of


def read(
    path: str | Path = "", *, dropped: Counter[str] | None = None, count: int = 0, seed: int = 0
) -> Iterator[SourcePair]:
    """Yields the pairs 0 to count - 1 of a seed; each is a function of seed and number alone.

    Args:
      path: a file of rows whose field "answer" is the text; the shipped sample by default.
      count: of pairs.

    Raises:
      UserError: no count, or the file has too few sentences.
    """
    del dropped  # nothing is
    if count < 1:
        raise UserError(f"--count={count}: give the number of synthetic pairs, 1 or more")
    sentences = _sentences(path or SAMPLE)
    words = [sentence.split() for sentence in sentences]
    for start in range(0, count, _BATCH):
        numbers = np.arange(start, min(start + _BATCH, count), dtype=np.uint64)
        for number, draws in zip(numbers.tolist(), _draws(seed, numbers).tolist(), strict=True):
            chosen = [draw % len(sentences) for draw in draws[: 2 + draws[6] % 3]]
            spans = []
            for sentence, draw in zip(chosen, draws[7:9], strict=False):
                first = draw % (len(words[sentence]) - 3)
                spans += words[sentence][first : first + 3 + draws[9] % 2]
            passage = " ".join([sentences[n] for n in chosen])
            yield SourcePair(f"{seed}-{number}", " ".join(spans), passage)


def _sentences(path: str | Path) -> list[str]:
    """The different sentences of usual length, in order."""
    found: dict[str, None] = {}
    for row in read_rows(path):
        for sentence in _SENTENCE.split(" ".join(str(row.values.get("answer", "")).split())):
            if _WORDS[0] <= len(sentence.split()) <= _WORDS[1]:
                found[sentence] = None
    if len(found) < 1000:
        raise UserError(
            f"{path}: {len(found)} sentences in the fields 'answer', too few; give more"
        )
    return list(found)


def _draws(seed: int, numbers: np.ndarray) -> np.ndarray:
    """uint32[n, _DRAWS], random numbers for each pair's number: splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        place = numbers[:, None] * np.uint64(_DRAWS) + np.arange(_DRAWS, dtype=np.uint64)
        x = (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(
            seed * 0xD1342543DE82EF95 % 2**64
        )
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        return ((x ^ (x >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)
