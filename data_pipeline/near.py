"""Near duplicates among examples: which text of an example is compared, and with which others.

The text is the positive pair's. An example is dropped where an earlier sound one
(`validate.Verdict.sound`) is near-equal, even where that one is dropped as a duplicate itself: so
the verdict is a function of the set of records and their order, however they are grouped.
"""

from collections.abc import Callable

import numpy as np

from inf_jax.records import Example


def near_text(example: Example) -> str:
    """Query, instruction and passage of the positive pair."""
    return "\n".join(
        (example.query_positive, example.instruction_positive, example.document_positive)
    )


def is_near(threshold: float) -> Callable[[Example], bool]:
    """A function that, asked for examples in order, says of each whether it repeats an earlier one.

    Raises:
      UserError: a threshold that `minhash` cannot keep.
    """
    from data_pipeline.minhash import NearDuplicates  # few builds need it, and it imports scipy

    earlier: NearDuplicates[None] = NearDuplicates(threshold)

    def near(example: Example) -> bool:
        text = near_text(example)
        found = any(True for _ in earlier.matches(text))
        earlier.add(None, text)
        return found

    return near


def sketch(example: Example, threshold: float) -> tuple[tuple[int, ...], bytes]:
    """Band keys and signature (uint16[n] as bytes) of an example, for `repeats`."""
    from data_pipeline import minhash

    values = minhash.signature(near_text(example))
    # NearDuplicates keeps and compares the low halves: the same numbers here
    return minhash.bands(values, threshold=threshold), values.astype(np.uint16).tobytes()


def repeats(signatures: list[bytes], threshold: float) -> list[int]:
    """Numbers of those signatures, in order, that are near-equal to an earlier one of the list."""
    rows = np.frombuffer(b"".join(signatures), np.uint16).reshape(len(signatures), -1)
    return [
        n for n in range(1, len(rows)) if ((rows[:n] == rows[n]).mean(axis=1) >= threshold).any()
    ]
