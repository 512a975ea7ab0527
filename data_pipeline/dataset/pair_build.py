"""Builds the splits of a source of pairs: reads it once, groups its pairs by query, writes.

    source -> rules -> groups on disk -> dev, settled -> train, settled, without dev's texts

What is held in memory does not grow with the source, except for 8 bytes for each text of dev.
"""

import array
import bisect
import itertools
import marshal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from data_pipeline.dataset.inputs import Inputs
from data_pipeline.dataset.spill import KEY_BYTES, Spill
from data_pipeline.quality.contamination import BenchmarkTexts
from data_pipeline.quality.near_duplicates import is_near
from data_pipeline.quality.pair_rules import pair_reasons, settle
from data_pipeline.quality.rules import Report, identities, query_number
from data_pipeline.sources.folding import bare
from data_pipeline.sources.pairs import SourcePair
from inf_jax.core.errors import UserError
from inf_jax.data.records import PairExample, encode_example

_MIX = 0x9E3779B97F4A7C15  # dev's queries have the smallest numbers: spreads them over the files
_SIMILAR = 0.8  # Jaccard similarity from which a passage counts as an evaluation set's


def pair_splits(
    inputs: Inputs, directory: Path, reports: dict[str, Report]
) -> dict[str, Iterator[tuple[str, bytes]]]:
    """The (id, text record) of all kept pairs by split, dev first, whose iterator must be finished
    before train's.

    Args:
      directory: for temporary files.
      reports: filled with the counts of each split.

    Raises:
      UserError: as the source's reader; from an iterator: nothing was kept.
    """
    builder = _PairBuild(inputs, directory, reports)
    builder.read()
    return {split: builder.records(split) for split in inputs.splits}


class _PairBuild:
    def __init__(self, inputs: Inputs, directory: Path, reports: dict[str, Report]):
        self._inputs, self._reports = inputs, reports
        self._groups = {split: Spill(directory) for split in inputs.splits}
        reports.update({split: Report() for split in inputs.splits})
        self._dev = array.array("Q")  # sorted hashes of dev's texts, once it is written
        self._evaluation = None
        if inputs.evaluation:
            self._evaluation = BenchmarkTexts.read(inputs.evaluation, threshold=_SIMILAR)

    def read(self) -> None:
        """Validates all pairs and puts them into the groups of their split."""
        inputs = self._inputs
        for own in inputs.splits if inputs.separate_dev else ("train",):
            report = self._reports[own]
            negatives = False
            counts = {"dropped": report.dropped_by_source, "noted": report.noted}
            pairs = inputs.read_pairs(own, **counts)
            for pair in tqdm(pairs, desc=f"{own}: reading", unit=" pairs", disable=None):
                number = query_number(pair.query)
                negatives = negatives or bool(pair.negatives)
                held_out = number < inputs.dev_fraction * 2.0**64
                split = "dev" if held_out else own
                if reasons := [*pair_reasons(pair, inputs.config.limits), *self._shared(pair)]:
                    self._reports[split].reasons.update(reasons)
                    self._reports[split].dropped += 1
                    continue
                key = (number * _MIX % 2**64).to_bytes(8, "big") + number.to_bytes(8, "big")
                row = (
                    *(pair.id, pair.query, pair.passage),
                    *(pair.instruction, pair.negatives, pair.scores, pair.relevant),
                )
                assert len(key) == KEY_BYTES
                self._groups[split].add(key, marshal.dumps(row))

            if own == "train" and inputs.options.get("negatives") and not negatives:
                why = ", ".join(f"{n:,} {reason}" for reason, n in report.noted.most_common())
                raise UserError(
                    f"--negatives={inputs.options['negatives']}: gives no pair of the train split "
                    f"a negative{': ' + why if why else ''}; name the file of these judgements"
                )

    def _shared(self, pair: SourcePair) -> Iterator[str]:
        if known := self._evaluation:
            reasons = known.shares_query(pair.query), known.shares_passage(pair.passage)
            yield from (f"shared_with_eval:{reason}" for reason in reasons if reason)

    def records(self, split: str) -> Iterator[tuple[str, bytes]]:
        inputs, report = self._inputs, self._reports[split]
        near = is_near(inputs.near_duplicates) if inputs.near_duplicates else None
        bar = tqdm(desc=f"{split}: writing", unit=" examples", disable=None)
        hashes = array.array("Q")
        for example in self._settled(split):
            [pair] = example.pairs
            reasons = []
            if split == "dev":
                hashes.extend(identities(pair, bare))
            elif self._dev:
                shared = zip(("query", "passage"), identities(pair, bare), strict=True)
                reasons = [f"shared_with_eval:{name}" for name, each in shared if self._has(each)]
            if near and near(example):
                reasons.append("near_duplicate")
            if reasons:
                report.reasons.update(reasons)
                report.dropped += 1
                continue
            report.kept += 1
            if pair.negatives:
                report.negatives.update({"kept": len(pair.negatives), "pairs with some": 1})
            if pair.scores:
                report.negatives["pairs with scores"] += 1
            bar.update()
            yield example.id, encode_example(example)
        bar.close()
        if split == "dev":
            self._dev = array.array("Q", sorted(hashes))
        inputs.check_not_empty(report, split)

    def _settled(self, split: str) -> Iterator[PairExample]:
        inputs, report = self._inputs, self._reports[split]
        rows = ((key, marshal.loads(data)) for key, data in self._groups[split])
        for _, group in itertools.groupby(rows, key=lambda row: row[0]):
            reasons: Counter[str] = Counter()
            yield from settle(
                [SourcePair(*row) for _, row in group],
                limits=inputs.config.limits,
                most=inputs.max_negatives,
                reasons=reasons,
                dropped=report.negatives,
            )
            report.reasons.update(reasons)
            report.dropped += reasons.total()

    def _has(self, number: int) -> bool:
        place = bisect.bisect_left(self._dev, number)
        return place < len(self._dev) and self._dev[place] == number
