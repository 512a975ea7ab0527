"""What a review is of: the identity of an example, and of a corpus of them."""

import hashlib
import json
from collections.abc import Iterable

from data_pipeline.items import Item
from inf_jax.data.records import FIELDS


def example_hash(item: Item) -> str:
    """Identity of an item's pair and example, 16 hex digits; what became of it does not matter."""
    texts = [item.id, item.query, item.passage]
    if item.example:
        texts += [getattr(item.example, name) for name in FIELDS]
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=8).hexdigest()


class Fingerprint:
    """Identity of items in their order, whatever became of them: the report's `corpus`."""

    def __init__(self):
        self._digest = hashlib.blake2b(digest_size=8)

    def add(self, item: Item) -> None:
        """The next item."""
        self._digest.update(bytes.fromhex(example_hash(item)))

    def __str__(self) -> str:
        return self._digest.hexdigest()


def fingerprint(items: Iterable[Item]) -> str:
    """The `Fingerprint` of all items, 16 hex digits."""
    found = Fingerprint()
    for item in items:
        found.add(item)
    return str(found)
