"""A sample of a stream: stable, and of bounded memory."""

import heapq

from data_pipeline.items import Item
from inf_jax.data.records import text_hash


class AuditSample:
    """Examples for the audit, chosen by the hash of their ids: the same ones in every run.

    Dropped ones are spread over the first reasons for which they were dropped, since the rare
    reasons are those to look at. Items of which no example was made are left out: there is nothing
    to accept.

    Args:
      kept, dropped: how many of each at the most.
      seed: another one gives another sample.
    """

    def __init__(self, *, kept: int, dropped: int, seed: int = 0):
        self._kept, self._dropped, self._seed = kept, dropped, seed
        self._heaps: dict[str, list[tuple[int, int, Item]]] = {}
        self._seen = 0

    def add(self, item: Item) -> None:
        """Sees one item."""
        reason = item.reasons[0] if item.reasons else ""
        most = self._dropped if reason else self._kept
        if item.example is None or not most:
            return
        self._seen += 1
        # a heap gives its least away: that is the greatest hash
        draw = -text_hash(f"audit {self._seed}\x1f{item.id}")
        heap = self._heaps.setdefault(reason, [])
        push = heapq.heappush if len(heap) < most else heapq.heappushpop
        push(heap, (draw, self._seen, item))

    def items(self) -> list[Item]:
        """The sample: kept ones by their hash, then dropped ones, a reason after the other."""
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
