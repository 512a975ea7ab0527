"""Samples items of a stream for the audit: the same ones in every run, in bounded memory."""

import heapq

from data_pipeline.items import Item
from inf_jax.data.records import text_hash


class AuditSample:
    """Chooses items by the hash of their ids.

    Dropped items are spread evenly over their first reasons, since rare reasons deserve a look.
    Items without an example are left out, as there is nothing to accept.

    Args:
      kept, dropped: maximal numbers of kept and dropped items.
      seed: of the sample.
    """

    def __init__(self, *, kept: int, dropped: int, seed: int = 0):
        self._kept, self._dropped, self._seed = kept, dropped, seed
        self._heaps: dict[str, list[tuple[int, int, Item]]] = {}
        self._seen = 0

    def add(self, item: Item) -> None:
        """Considers an item for the sample."""
        reason = item.reasons[0] if item.reasons else ""
        most = self._dropped if reason else self._kept
        if item.example is None or not most:
            return
        self._seen += 1
        # negative, since a heap pops its least element: the greatest hash leaves the sample
        draw = -text_hash(f"audit {self._seed}\x1f{item.id}")
        heap = self._heaps.setdefault(reason, [])
        push = heapq.heappush if len(heap) < most else heapq.heappushpop
        push(heap, (draw, self._seen, item))

    def items(self) -> list[Item]:
        """The sample: kept items by hash, then dropped items by reason."""
        heaps = {reason: sorted(heap, reverse=True) for reason, heap in self._heaps.items()}
        kept = [item for *_, item in heaps.pop("", [])]
        by_reason = {reason: heaps[reason] for reason in sorted(heaps)}
        share = dict.fromkeys(by_reason, 0)
        left = self._dropped
        while left and (open_ := [r for r in by_reason if share[r] < len(by_reason[r])]):
            for reason in open_[:left]:
                share[reason] += 1
            left -= len(open_[:left])
        dropped = [item for r in by_reason for *_, item in by_reason[r][: share[r]]]
        return kept + dropped
