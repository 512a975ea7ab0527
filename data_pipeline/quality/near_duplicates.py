"""Finds near-duplicate examples, within one process or grouped by Beam.

Two examples are near duplicates if both their positive instructed queries and their positive
passages are, as in the stage filter. An example is dropped if it has an earlier sound near
duplicate (`rules.Verdict.sound`), even one that is itself dropped as a duplicate: so verdicts
depend on the records and their order only, not on how they are grouped.
"""

from collections.abc import Callable

import numpy as np

from data_pipeline.quality.minhash import NearDuplicates, bands, compact, signature, similarity
from inf_jax.data.records import Example


def is_near(threshold: float) -> Callable[[Example], bool]:
    """Returns a function that, called for examples in order, says whether each is a near duplicate
    of an earlier one.

    Raises:
      UserError: a threshold outside `minhash.THRESHOLDS`.
    """
    examples = NearExamples(threshold)

    def near(example: Example) -> bool:
        repeated = example in examples
        examples.add(example)
        return repeated

    return near


class NearExamples:
    """An index of examples; `example in index` says whether it has a near duplicate there.

    Raises:
      UserError: a threshold outside `minhash.THRESHOLDS`.
    """

    def __init__(self, threshold: float):
        # texts: instructed queries; keys: signatures of their passages
        self._queries: NearDuplicates[np.ndarray] = NearDuplicates(threshold)

    def __contains__(self, example: Example) -> bool:
        passage, threshold = _passage(example), self._queries.threshold
        passages = self._queries.matches(item_query(example))
        return any(similarity(passage, other) >= threshold for other in passages)

    def add(self, example: Example) -> None:
        """Adds an example, whether or not it has near duplicates."""
        self._queries.add(_passage(example), item_query(example))


def item_query(example: Example) -> str:
    """The text that is compared besides the positive passage."""
    return f"{example.query_positive} {example.instruction_positive}"


def _passage(example: Example) -> np.ndarray:
    return compact(signature(example.document_positive))


def sketch(example: Example, threshold: float) -> tuple[tuple[int, ...], bytes]:
    """The band keys of an example's instructed query, and the bytes that `repeats` compares: the
    compact signatures of instructed query and passage."""
    query = signature(item_query(example))
    both = np.stack([compact(query), _passage(example)])
    return bands(query, threshold=threshold), both.tobytes()


def repeats(sketches: list[bytes], threshold: float) -> list[int]:
    """The indices of the sketches that are near duplicates of an earlier one in the list."""
    rows = np.frombuffer(b"".join(sketches), np.uint16).reshape(len(sketches), 2, -1)
    return [
        n
        for n in range(1, len(rows))
        if ((rows[:n] == rows[n]).mean(axis=2) >= threshold).all(axis=1).any()
    ]
