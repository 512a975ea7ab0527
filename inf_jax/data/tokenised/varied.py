"""Draws each pair's instruction among several wordings, or drops it, anew in each step.

A wording is a split tokenised with another template or `Rewriting`, with the same examples in the
same order.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.data.tokenised.records import TokenisedBatch, TokenisedNegatives, decode_tokenised

_STREAM = 10 << 32  # added to the seed (below 2**32): another random stream than those of the order


class VariedBatch(NamedTuple):
    """As `TokenisedBatch`, with each pair's query in its wording.

    Attributes:
      data, tokens: of all wordings, one after another.
      lengths, hashes, negatives: as of `TokenisedBatch`.
      starts: int64[m, 2 * k], the first token of each text in `tokens`.
      parts: of the wordings.
      places: of each wording int64[m], the examples' places in its part.
      chosen: int64[m, k], each pair's wording.
    """

    data: list[bytes]
    tokens: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    negatives: TokenisedNegatives | None
    starts: np.ndarray
    parts: list[TokenisedBatch]
    places: list[np.ndarray]
    chosen: np.ndarray

    def record_of(self, number: int, place: int) -> tuple[int, int]:
        """As of `TokenisedBatch`."""
        wording = int(self.chosen[number, place])
        part = self.parts[wording]
        record, inside = part.record_of(int(self.places[wording][number]), place)
        return sum(len(part.data) for part in self.parts[:wording]) + record, inside

    def text_starts(self) -> np.ndarray:
        """As of `TokenisedBatch`."""
        return self.starts


class VariedDataset:
    """What `TokenisedDataset` gives of examples, of units: rows of an example's number (or of its
    unit in a mixture) and of the wordings of its k pairs. Threads may share it.

    Args:
      base: the wording of evaluation, the first one; or all are a `MixtureDataset`.
      wordings: others; each pair takes one of all by chance, alike often.
      dropped: without instructions, for a `share` of the pairs.

    Raises:
      UserError: they do not hold the same examples.
    """

    windowed = False

    def __init__(
        self,
        base: TokenisedDataset,
        wordings: Sequence[TokenisedDataset] = (),
        *,
        dropped: TokenisedDataset | None = None,
        share: float = 0.0,
    ):
        self.base, self._wordings, self._share = base, 1 + len(wordings), share
        self._each = [base, *wordings] + ([] if dropped is None else [dropped])
        self.pairs_per_example, self.num_examples = base.pairs_per_example, base.num_examples
        size = self.num_examples, self.pairs_per_example
        for one in self._each[1:]:
            if (one.num_examples, one.pairs_per_example) != size:
                raise UserError(
                    f"{one.directory} and {base.directory} do not hold the same examples; delete "
                    "both and tokenise again"
                )
        self.directory, self.scored = base.directory, base.scored
        self.special, self.max_query_tokens = base.special, base.max_query_tokens
        self.sources = [source for one in self._each for source in one.sources]
        self.fingerprint = "|".join(one.fingerprint for one in self._each)
        self.text_lengths, self.part_lengths, self.instruction_hashes = (
            _Rows(self, name) for name in ("text_lengths", "part_lengths", "instruction_hashes")
        )
        self.negative_counts = None
        if base.negative_counts is not None:
            self.negative_counts = _Rows(self, "negative_counts")

    def units(self, examples: np.ndarray, *, seed: int, step: int) -> np.ndarray:
        """int64[B, w + k], with the wordings that the pairs of a step's examples take.

        A pair and its sibling, the same query under another instruction, lose theirs together:
        else the passage of one would be a negative of the query alone, which it answers.

        Args:
          examples: int64[B], or [B, w] units of a mixture.
          seed, step: with a pair's number in the step they decide what it takes.
        """
        k = self.pairs_per_example
        generator = np.random.Generator(np.random.Philox(key=[seed + _STREAM, step]))
        wording, dropped = generator.random((2, len(examples) * k))
        chosen = (wording * self._wordings).astype(np.int64)
        if self._share:
            first = np.minimum(self.base.siblings(examples), np.arange(len(chosen)))
            chosen[dropped[first] < self._share] = self._wordings
        return np.hstack([examples.reshape(len(examples), -1), chosen.reshape(-1, k)])

    def siblings(self, units: np.ndarray) -> np.ndarray:
        """As `TokenisedDataset.siblings`; a pair that has lost its instruction has none."""
        examples, chosen = self._split(units)
        found = self.base.siblings(examples)
        return np.where(chosen.ravel() == self._wordings, np.arange(len(found)), found)

    def known_instructions(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `TokenisedDataset.known_instructions`."""
        return self.base.known_instructions(self._split(units)[0])

    def negative_lengths(self, units: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """As `TokenisedDataset.negative_lengths`."""
        return self.base.negative_lengths(self._split(units)[0], drawn)

    def source_numbers(self, units: np.ndarray) -> np.ndarray:
        """As `MixtureDataset.source_numbers`."""
        return self.base.source_numbers(self._split(units)[0])

    def check_composition(self, kind: str) -> None:
        """As `TokenisedDataset.check_composition`, of each wording."""
        for one in self._each:
            one.check_composition(kind)

    def sampled_lengths(self, units: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """int[p, m], tokens of the instructions of the pairs `drawn`, int64[p, m], in the wording
        of the pair that they are drawn for; of -1 any number."""
        examples, chosen = self._split(units)
        found = np.zeros(drawn.shape, np.int64)
        for number, one in enumerate(self._each):
            rows = np.flatnonzero(chosen.ravel() == number)
            if rows.size and drawn.size:
                lengths = one.part_lengths[examples].reshape(-1, 3)[:, 2]
                found[rows] = lengths[drawn[rows]]
        return found

    def sampled_instructions(
        self, units: np.ndarray, needed: np.ndarray, drawn: np.ndarray
    ) -> Callable[[int, int], np.ndarray]:
        """Reads the instructions drawn for the `needed` pairs, int64[...], in the wordings of
        these: (pair, the pair that was drawn for it) -> int32[tokens]."""
        (examples, chosen), k, read = self._split(units), self.pairs_per_example, {}
        pairs = needed.ravel()
        for number, one in enumerate(self._each):
            sources = drawn[pairs[chosen.ravel()[pairs] == number]]
            numbers = np.unique(sources[sources >= 0] // k)
            if numbers.size:
                read[number] = numbers, one.read_batch(examples[numbers])

        @functools.cache
        def record(number: int, place: int):
            return decode_tokenised(read[number][1].data[place])

        def instruction(pair: int, source: int) -> np.ndarray:
            number = int(chosen[divmod(pair, k)])
            numbers, batch = read[number]
            row, place = divmod(source, k)
            at, inside = batch.record_of(int(np.searchsorted(numbers, row)), place)
            return record(number, at).query_parts(inside).ids_of("instruction")

        return instruction

    def read_batch(self, units: np.ndarray, *, negatives: bool = False) -> VariedBatch:
        """As `TokenisedDataset.read_batch`."""
        examples, chosen = self._split(units)
        parts = [self.base.read_batch(examples, negatives=negatives)]
        places = [np.arange(len(units))]
        lengths, starts = parts[0].lengths.copy(), parts[0].text_starts().copy()
        hashes, first = parts[0].hashes.copy(), len(parts[0].tokens)
        for number, one in enumerate(self._each[1:], 1):
            rows, pairs = np.nonzero(chosen == number)
            numbers = np.unique(rows)
            part = one.read_batch(examples[numbers])
            at = np.searchsorted(numbers, rows)
            lengths[rows, 2 * pairs] = part.lengths[at, 2 * pairs]
            starts[rows, 2 * pairs] = first + part.text_starts()[at, 2 * pairs]
            hashes[rows, pairs] = part.hashes[at, pairs]
            parts.append(part)
            places.append(np.searchsorted(numbers, np.arange(len(units))))
            first += len(part.tokens)
        return VariedBatch(
            data=[record for part in parts for record in part.data],
            tokens=np.concatenate([part.tokens for part in parts]),
            lengths=lengths,
            hashes=hashes,
            negatives=parts[0].negatives,
            starts=starts,
            parts=parts,
            places=places,
            chosen=chosen,
        )

    def rows(self, name: str, units: np.ndarray) -> np.ndarray:
        """The values of an array of the datasets for these units, each pair's in its wording."""
        (examples, chosen), k = self._split(units), self.pairs_per_example
        values = np.array(getattr(self.base, name)[examples])
        found = values.reshape(len(units), k, -1)
        for number, one in enumerate(self._each[1:], 1):
            rows, pairs = np.nonzero(chosen == number)
            if rows.size:
                others = getattr(one, name)[examples[rows]].reshape(len(rows), k, -1)
                found[rows, pairs] = others[np.arange(len(rows)), pairs]
        return found.reshape(values.shape)

    def _split(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples, as `base` takes them, and int64[B, k], the wordings of their pairs."""
        examples, chosen = np.split(units, [-self.pairs_per_example], axis=1)
        return (examples[:, 0] if isinstance(self.base, TokenisedDataset) else examples), chosen


def check_instructed(dataset: TokenisedDataset | VariedDataset, keys: Mapping[str, Any]) -> None:
    """Raises UserError where keys that vary instructions, KEY=VALUE, are set and there are none."""
    asked = [f"data.{key}={value}" for key, value in keys.items() if value]
    if asked and not any(one.instructions[0] for one in dataset.sources):
        raise UserError(
            f"{' '.join(asked)}: no pair of {dataset.directory} has an instruction; leave them out"
        )


class _Rows:
    """An array of a varied dataset: `rows[units]` are the values of these units."""

    def __init__(self, dataset: VariedDataset, name: str):
        self._dataset, self._name = dataset, name

    def take(self, units: np.ndarray, axis: int) -> np.ndarray:
        """As `[units]`."""
        return self[units]

    def __getitem__(self, units: np.ndarray) -> np.ndarray:
        return self._dataset.rows(self._name, units)
