"""Near duplicates among examples: what of an example is compared, and with which others.

Two examples are near-equal where both their positive instructed queries and their positive passages
are, as in the factory's stage filter. An example is dropped where an earlier sound one
(`validate.Verdict.sound`) is near-equal, even where that one is dropped as a duplicate itself: so
the verdict is a function of the set of records and their order, however they are grouped.
"""

from collections.abc import Callable

import numpy as np

from data_pipeline.quality.filters import instructed_query
from data_pipeline.quality.minhash import NearDuplicates, bands, compact, signature, similarity
from inf_jax.data.records import Example


def is_near(threshold: float) -> Callable[[Example], bool]:
    """A function that, asked for examples in order, says of each whether it repeats an earlier one.

    Raises:
      UserError: a threshold that `minhash` cannot keep.
    """
    queries: NearDuplicates[np.ndarray] = NearDuplicates(threshold)  # key: the passage's signature

    def near(example: Example) -> bool:
        query, passage = instructed_query(example), compact(signature(example.document_positive))
        found = any(similarity(passage, p) >= threshold for p in queries.matches(query))
        queries.add(passage, query)
        return found

    return near


def sketch(example: Example, threshold: float) -> tuple[tuple[int, ...], bytes]:
    """Band keys of an example's instructed query; its and the passage's signature for `repeats`."""
    query = signature(instructed_query(example))
    both = np.stack([compact(query), compact(signature(example.document_positive))])
    return bands(query, threshold=threshold), both.tobytes()


def repeats(sketches: list[bytes], threshold: float) -> list[int]:
    """Numbers of those sketches, in order, that are near-equal to an earlier one of the list."""
    rows = np.frombuffer(b"".join(sketches), np.uint16).reshape(len(sketches), 2, -1)
    return [
        n
        for n in range(1, len(rows))
        if ((rows[:n] == rows[n]).mean(axis=2) >= threshold).all(axis=1).any()
    ]
