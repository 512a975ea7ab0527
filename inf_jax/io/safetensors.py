"""Reads and writes a model's safetensors files tensor by tensor, without a second copy in memory.

The format: 8 bytes with the header's length, the header (JSON: name -> dtype, shape, offsets), the
tensors. A model is one file or several with an index, as in transformers.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from inf_jax.core.errors import UserError
from inf_jax.core.json_text import parse_json
from inf_jax.io.atomic import atomic_file, atomic_write
from inf_jax.io.json_files import path_inside, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
STORED_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}


class Stored(NamedTuple):
    """A tensor in a file, not yet read."""

    file: Path
    dtype: str  # the format's name, see `STORED_DTYPES`
    shape: tuple[int, ...]
    offset: int  # bytes from the file's start

    def read(self) -> np.ndarray:
        """A view into the memory-mapped file; UserError if its dtype is not in `STORED_DTYPES`."""
        if self.dtype not in STORED_DTYPES:
            supported = ", ".join(STORED_DTYPES)
            raise UserError(f"{self.file}: a tensor of {self.dtype}; supported: {supported}")
        dtype = STORED_DTYPES[self.dtype]
        if 0 in self.shape:
            return np.empty(self.shape, dtype)
        return np.memmap(self.file, dtype, "r", offset=self.offset, shape=self.shape)


def stored_tensors(directory: Path) -> dict[str, Stored]:
    """All tensors of a model's directory, by name.

    A whole file counts before an index, as in transformers: an index beside it is left over.

    Raises:
      UserError: a file or tensor is missing or damaged, or the index names a file elsewhere.
    """
    index = directory / INDEX
    if (directory / SINGLE).exists() or not index.exists():
        return _header(directory / SINGLE)
    weight_map = read_json(index, kind=dict, remedy="download it again").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(x, str) for x in weight_map.values()):
        raise UserError(
            f"{index}: not an index of weights (its weight_map is not an object of file names); "
            "download it again"
        )
    tensors = {}
    for name in sorted(set(weight_map.values())):
        file = path_inside(directory, name, index)
        if not file.is_file():
            raise UserError(f"{index} names {name!r}, which is missing; download it again")
        tensors |= _header(file)
    missing = ", ".join(by_layer(sorted(weight_map.keys() - tensors.keys())))
    if missing:
        raise UserError(f"{index} names tensors that the files lack: {missing}")
    return tensors


def by_layer(texts: Iterable[str]) -> list[str]:
    """Groups texts that differ only in layer numbers into one, with their count."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", text), []).append(text)
    return [f"{p} ({len(g)} times)" if len(g) > 1 else g[0] for p, g in groups.items()]


def _header(file: Path) -> dict[str, Stored]:
    if not file.exists():
        old = ", ".join(sorted(p.name for p in file.parent.glob("*.bin")))
        raise UserError(
            f"{file}: no such file; convert {old or 'a model with *.bin files only'} to "
            "safetensors first: SentenceTransformer(name).save(directory) if there is a "
            "modules.json, else transformers' AutoModel.from_pretrained(name).save_pretrained("
            "directory), and the same for its tokenizer"
        )
    try:
        with safe_open(file, "numpy"):  # checks lengths and offsets
            pass
        with open(file, "rb") as f:
            size = int.from_bytes(f.read(8), "little")
            header = parse_json(f.read(size), file, kind=dict, remedy="download it again")
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({error})") from None
    header.pop("__metadata__", None)
    return {
        name: Stored(file, x["dtype"], tuple(x["shape"]), 8 + size + x["data_offsets"][0])
        for name, x in header.items()
    }


class Planned(NamedTuple):
    """Name, shape and dtype of a tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write_tensors(
    directory: Path,
    planned: Sequence[Planned],
    tensors: Iterator[np.ndarray],
    *,
    max_file_bytes: int,
) -> list[Path]:
    """Writes a model's tensors into one file, or into several and an index.

    An older model in the directory is replaced: its index is deleted first, the new one is written
    last. A tensor larger than `max_file_bytes` gets a file of its own.

    Args:
      planned: the tensors in the order of writing.
      tensors: their values, produced one after another.

    Returns:
      The files written.
    """
    files: list[list[Planned]] = []
    for one in planned:
        if not files or sum(x.nbytes for x in files[-1]) + one.nbytes > max_file_bytes:
            files.append([])
        files[-1].append(one)
    n = len(files)
    names = [SINGLE] if n == 1 else [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)]
    (directory / INDEX).unlink(missing_ok=True)
    if n > 1:
        (directory / SINGLE).unlink(missing_ok=True)
    for name, part in zip(names, files, strict=True):
        _write(directory / name, part, tensors)
    if n > 1:
        weight_map = {x.name: name for name, part in zip(names, files, strict=True) for x in part}
        total = sum(x.nbytes for x in planned)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        atomic_write(directory / INDEX, json.dumps(index, indent=2) + "\n")
    for old in directory.glob("model-*-of-*.safetensors"):
        if n == 1 or old.name not in names:
            old.unlink()
    return [directory / name for name in names]


def _write(path: Path, planned: Sequence[Planned], tensors: Iterator[np.ndarray]) -> None:
    header: dict[str, Mapping] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for one in planned:
        span = [offset, offset + one.nbytes]
        header[one.name] = {"dtype": _NAMES[one.dtype], "shape": one.shape, "data_offsets": span}
        offset += one.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for one in planned:
            tensor = next(tensors)
            if tensor.shape != one.shape or tensor.dtype != one.dtype:
                raise ValueError(f"{one}: got {tensor.dtype}{tensor.shape}")
            file.write(memoryview(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)))
