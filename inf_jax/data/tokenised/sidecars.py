"""Reads and writes the index file of a shard of tokenised records."""

import dataclasses
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.io.storage import AnyPath, new_file, open_to_read
from inf_jax.io.tfrecord import Index

# a flipped bit can also name another compression method, or one that zipfile lacks (RuntimeError),
# or change the header of an array, which numpy parses as Python
_DAMAGE = (
    *(OSError, EOFError, KeyError, ValueError, TypeError, RuntimeError, MemoryError),
    *(SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


class Sidecar(NamedTuple):
    """What the index file of a shard says of its n examples of k pairs, so that no record has to
    be read.

    Attributes:
      index: where the records are.
      text_lengths: int32[n, 2 * k], tokens of IQ0, P0, IQ1, P1, ...; 0 for an absent pair.
      part_lengths: int32[n, k, 3], tokens of each pair's instructed query before truncation, of its
        query and of its instruction.
      instruction_hashes: uint64[n, k], of each pair's instruction.
      pair_hashes: uint64[n, k], of each pair's query and passage together; None in an index of
        version 0.1.0.
      siblings: int32[n, k], `negatives.find_siblings`; None where they are the usual ones.
      negative_counts: int32[n, k], hard negatives of each pair; None where there are none.
      negative_lengths: int32[sum(negative_counts)], tokens of each; None where there are none.
      scored: bool[n, k], pairs with a teacher's scores; None where there are none.
    """

    index: Index
    text_lengths: np.ndarray
    part_lengths: np.ndarray
    instruction_hashes: np.ndarray
    pair_hashes: np.ndarray | None = None
    siblings: np.ndarray | None = None
    negative_counts: np.ndarray | None = None
    negative_lengths: np.ndarray | None = None
    scored: np.ndarray | None = None


def joined(
    sidecars: list[Sidecar], name: str, usual: Callable[[Sidecar], np.ndarray]
) -> np.ndarray | None:
    """An array of all shards, where one lacks it the usual one; None where all lack it."""
    each = [getattr(one, name) for one in sidecars]
    if all(array is None for array in each):
        return None
    both = zip(each, sidecars, strict=True)
    return np.concatenate([usual(one) if array is None else array for array, one in both])


def index_path(shard: AnyPath) -> AnyPath:
    """Where the index of a shard is."""
    return shard.with_name(shard.name + ".index.npz")


def write_sidecar(shard: AnyPath, sidecar: Sidecar) -> None:
    """Writes the index file of a shard."""
    index = dataclasses.asdict(sidecar.index)
    names = [name for name in Sidecar._fields[1:] if getattr(sidecar, name) is not None]
    arrays = {name: getattr(sidecar, name) for name in names}
    with new_file(index_path(shard)) as file:
        np.savez(file, **index, **arrays)


def load_sidecar(shard: AnyPath) -> Sidecar:
    """Reads the index file of a shard; UserError where it is damaged or missing."""
    path = index_path(shard)
    try:
        with open_to_read(path) as file, np.load(file) as arrays:
            index = Index(arrays["offsets"], arrays["lengths"], arrays["crcs"])
            needed, optional = Sidecar._fields[1:4], Sidecar._fields[4:]
            sidecar = Sidecar(
                index,
                **{name: arrays[name] for name in needed},
                **{name: arrays[name] for name in optional if name in arrays},
            )
        n, counts = len(index), sidecar.negative_counts
        k, total = sidecar.text_lengths.size // (2 * n or 1), 0 if counts is None else counts.sum()
        shapes = [(n,), (n,), (n, 2 * k), (n, k, 3), *[(n, k)] * 4, (total,), (n, k)]
        found = zip((index.lengths, index.crcs, *sidecar[1:]), shapes, strict=True)
        if any(array is not None and array.shape != shape for array, shape in found):
            raise ValueError("the sizes of its arrays disagree")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; tokenise the split again") from error
    except _DAMAGE as error:
        remedy = "delete it and tokenise the split again"
        raise UserError(f"{path} is damaged ({error}); {remedy}") from error
    return sidecar
