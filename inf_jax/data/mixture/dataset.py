"""Joins the tokenised datasets of several sources: what a step takes of each, in one place."""

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.data.layout import BatchLayout
from inf_jax.data.mixture.order import Mixing, MixtureOrder
from inf_jax.data.negatives import KnownInstructions
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.data.tokenised.records import TokenisedBatch, TokenisedNegatives


class MixtureDataset:
    """What `TokenisedDataset` gives of examples, of the units of `MixtureOrder.examples`.

    An array's row is a unit's; its k pairs are those of its examples, one after another. Threads
    may share it.

    Args:
      sources: of one tokenizer and the same limits, in the order of `mixing`.
      numbers: of the sources, in batches; None is 0, 1, ...

    Attributes:
      pairs_per_example: k, pairs of a unit.
      num_examples: examples of all sources.
      fingerprint: those of the sources, with + between them.
    """

    def __init__(
        self,
        sources: Sequence[TokenisedDataset],
        mixing: Mixing,
        *,
        numbers: Sequence[int] | None = None,
    ):
        self.sources, self.mixing = [*sources], mixing
        self.numbers = np.arange(len(sources)) if numbers is None else np.asarray(numbers)
        self.pairs_per_example = k = math.lcm(*(one.pairs_per_example for one in sources))
        self.num_examples = sum(one.num_examples for one in sources)
        self.fingerprint = "+".join(one.fingerprint for one in sources)
        self.directory = " + ".join(str(one.directory) for one in sources)
        self.special, self.max_query_tokens = sources[0].special, sources[0].max_query_tokens
        self.scored = any(one.scored for one in sources)
        self._in_unit = [k // one.pairs_per_example for one in sources]
        self._ends = np.cumsum([one.num_examples for one in sources])
        self.text_lengths = _Rows(self, "text_lengths", (2 * k,), np.int32)
        self.part_lengths = _Rows(self, "part_lengths", (k, 3), np.int32)
        self.instruction_hashes = _Rows(self, "instruction_hashes", (k,), np.uint64)
        self._pair_hashes = _Rows(self, "pair_hashes", (k,), np.uint64)
        self.negative_counts = None
        if any(one.negative_counts is not None for one in sources):
            self.negative_counts = _Rows(self, "negative_counts", (k,), np.int32)

    def order(self, layout: BatchLayout, *, seed: int, order: int) -> MixtureOrder:
        """The order of the units of steps of this layout; `order`: see `MixtureOrder`."""
        return MixtureOrder(
            self.mixing,
            [example_tokens(one, layout.negatives) for one in self.sources],
            [one.pairs_per_example for one in self.sources],
            units=layout.batch_size,
            seed=seed,
            order=order,
        )

    def source_numbers(self, units: np.ndarray) -> np.ndarray:
        """int32[u], the number of each unit's source."""
        return self.numbers[self._places(units)].astype(np.int32)

    def siblings(self, units: np.ndarray) -> np.ndarray:
        """As `TokenisedDataset.siblings`; the units' pairs are numbered in the order given."""
        k = self.pairs_per_example
        found = np.empty((len(units), k), np.int64)
        for source, rows, examples in self.by_source(units):
            inside = source.siblings(examples).reshape(-1, k) - k * np.arange(len(rows))[:, None]
            found[rows] = inside + k * rows[:, None]
        return found.ravel()

    def negative_lengths(self, units: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """As `TokenisedDataset.negative_lengths`."""
        k = self.pairs_per_example
        by_unit = drawn.reshape(len(units), k, -1)
        found = np.zeros(by_unit.shape, np.int64)
        for source, rows, examples in self.by_source(units):
            if source.negative_counts is not None:
                asked = by_unit[rows].reshape(-1, drawn.shape[1])
                lengths = source.negative_lengths(examples, asked)
                found[rows] = lengths.reshape(len(rows), k, -1)
        return found.reshape(drawn.shape)

    def known_instructions(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `TokenisedDataset.known_instructions`, by all examples of all sources."""
        return self._known.of(self._pair_hashes[units].ravel())

    @functools.cached_property
    def _known(self) -> KnownInstructions:
        return KnownInstructions.joined(self.sources)

    def check_composition(self, kind: str) -> None:
        """As `TokenisedDataset.check_composition`, of each source."""
        for one in self.sources:
            one.check_composition(kind)

    def read_batch(self, units: np.ndarray, *, negatives: bool = False) -> TokenisedBatch:
        """As `TokenisedDataset.read_batch`, of units in the order of their sources."""
        k, first, parts = self.pairs_per_example, [0], []
        for source, rows, examples in self.by_source(units):
            parts.append(source.read_batch(examples, negatives=negatives))
            each = len(examples) // len(rows)
            first += range(first[-1] + each, first[-1] + each * len(rows) + 1, each)
        join = lambda name: np.concatenate([getattr(part, name) for part in parts])  # noqa: E731
        return TokenisedBatch(
            data=[record for part in parts for record in part.data],
            tokens=join("tokens"),
            lengths=np.concatenate([part.lengths.reshape(-1, 2 * k) for part in parts]),
            hashes=np.concatenate([part.hashes.reshape(-1, k, 3) for part in parts]),
            spans=np.concatenate([part.spans.reshape(-1, k, 5) for part in parts]),
            uncut=join("uncut"),
            negatives=_joined_negatives([p.negatives for p in parts], k) if negatives else None,
            first_records=np.array(first),
        )

    def by_source(
        self, units: np.ndarray
    ) -> Iterator[tuple[TokenisedDataset, np.ndarray, np.ndarray]]:
        """(source, int64[r], int64[r * examples]): each source's rows among the units and their
        examples, numbered in the source."""
        places = self._places(units)
        for i, source in enumerate(self.sources):
            rows = np.flatnonzero(places == i)
            if rows.size:
                examples = units[rows, : self._in_unit[i]] - (self._ends[i] - source.num_examples)
                yield source, rows, examples.ravel()

    def _places(self, units: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._ends, units[:, 0], side="right")


class _Rows:
    """An array of a mixture: `rows[units]` are the values of these units, 0 where a source has
    none."""

    def __init__(self, mixture: MixtureDataset, name: str, shape: tuple[int, ...], dtype: type):
        self._mixture, self._name, self._shape, self._dtype = mixture, name, shape, dtype

    def take(self, units: np.ndarray, axis: int) -> np.ndarray:
        """As `[units]`; arrays of a dataset take rows faster so."""
        return self[units]

    def __getitem__(self, units: np.ndarray) -> np.ndarray:
        found = np.zeros((len(units), *self._shape), self._dtype)
        for source, rows, examples in self._mixture.by_source(units):
            values = getattr(source, self._name)
            if values is not None:
                found[rows] = values[examples].reshape(len(rows), *self._shape)
        return found


def example_tokens(dataset: TokenisedDataset, negatives: int) -> np.ndarray:
    """int64[n], tokens of each example's texts and of its hard negatives if so many are drawn."""
    return dataset.text_lengths.sum(1) + dataset.drawn_tokens(negatives)


def _joined_negatives(parts: Sequence[TokenisedNegatives], k: int) -> TokenisedNegatives:
    by_pair = ("counts", "positive_scores")
    return TokenisedNegatives(
        *(
            np.concatenate(
                [x.reshape(-1, k) if name in by_pair else x for x in (p[n] for p in parts)]
            )
            for n, name in enumerate(TokenisedNegatives._fields)
        )
    )


def check_alike(sources: Sequence[TokenisedDataset]) -> None:
    """Raises UserError where two sources were not tokenised alike."""
    first = sources[0]
    for one in sources[1:]:
        special = all(map(np.array_equal, one.special, first.special))
        if not special or one.max_query_tokens != first.max_query_tokens:
            raise UserError(
                f"{one.directory} and {first.directory} were tokenised in different ways; delete "
                "one and tokenise again"
            )
