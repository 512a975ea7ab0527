"""Stores vectors with their ids in shards, in a local directory or a bucket.

    vectors.json        whose vectors they are and how many (`Manifest`); written first
    shard-00000.npy     float16 or float32 [n, e], NumPy's format
    shard-00000.ids     n lines, UTF-8
    shard-00000.json    n, and the SHA-256 of both; written last: a shard without it is unfinished

A shard's bytes depend on its texts, the model, the settings and the kind of device, not on the
number of devices or processes, nor on when it is written.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from inf_jax.core.errors import UserError, first_line
from inf_jax.io import gcs, storage
from inf_jax.io.json_files import read_json, write_json

STORE_MANIFEST = "vectors.json"
FORMAT = 1
STORED = ("float16", "float32")
_NEWER = ("architecture",)  # of `Retriever.identity`, absent in vectors of older versions
_UNRECORDED = "not recorded by the version that began them"
_REMEDY = "encode again into another directory"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Whose vectors a directory holds.

    Attributes:
      role: "passage" or "query".
      model: as it was named; not compared.
      identity: `Retriever.identity`.
      templates: role -> [template, most tokens]; of a store of queries also those of the passages
        that they are meant for.
      instruction: of the queries that have none of their own.
      dtype: of the stored vectors.
      width: entries of a vector, e.
      count: of the vectors.
      shard_size: vectors of a shard; the last may have fewer.
      texts: fingerprint of ids and texts.
      compute_dtype: in which the model computed them; "": an older version did not record it.
    """

    role: str
    model: str
    identity: dict[str, str]
    templates: dict[str, list]
    instruction: str
    dtype: str
    width: int
    count: int
    shard_size: int
    texts: str
    compute_dtype: str = ""
    format: int = FORMAT

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.count // self.shard_size)

    def rows(self, shard: int) -> int:
        """Vectors of a shard."""
        return len(self.numbers(shard))

    def numbers(self, shard: int) -> range:
        """Which vectors a shard has."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.count))

    def check_suits(self, queries: Self, source: object) -> None:
        """Raises UserError unless these passages may be searched with those queries.

        Args:
          queries: their manifest, or of passages of the model that encodes the queries.
          source: of the passages.
        """
        mine, theirs = (
            made.identity
            | {"passage template and limit": made.templates["passage"], "entries": made.width}
            for made in (self, queries)
        )
        for name in _NEWER:
            if not (name in mine and name in theirs):
                mine.pop(name, None)
                theirs.pop(name, None)
        for name, was, now in _differences(mine, theirs):
            raise UserError(
                f"{source}: vectors of another model than the queries' ({name}: {was}, of the "
                f"queries {now}); they were made with --model={self.model}"
            )


def _differences(was: Mapping, now: Mapping) -> Iterator[tuple[str, Any, Any]]:
    """(name, was, now) of the entries that differ, also inside of entries and of JSON in them."""
    for name in [*was, *(name for name in now if name not in was)]:
        both = [_parsed(values.get(name, _UNRECORDED)) for values in (was, now)]
        if both[0] == both[1]:
            continue
        if all(isinstance(value, dict) for value in both):
            yield from _differences(*both)
        else:
            yield name, *both


def _parsed(value: Any) -> Any:
    """An entry of `Retriever.identity` that is JSON as its value, others as they are."""
    try:
        return json.loads(value) if isinstance(value, str) and value[:1] == "{" else value
    except ValueError:
        return value


class VectorStore:
    """The vectors in a directory.

    Args:
      directory: local or in a bucket.

    Attributes:
      manifest: see `Manifest`.

    Raises:
      UserError: there is no readable manifest.
    """

    def __init__(self, directory: storage.AnyPath):
        self.directory = directory
        path = directory / STORE_MANIFEST
        fields = read_json(path, kind=dict, remedy="name a directory that `inf-jax encode` wrote")
        if fields.get("format") != FORMAT:
            raise UserError(f"{path}: format {fields.get('format')!r}, this version reads {FORMAT}")
        try:
            self.manifest = Manifest(**fields)
        except TypeError as error:
            raise UserError(f"{path}: {first_line(error)}; {_REMEDY}") from None
        for field in dataclasses.fields(Manifest):
            kind, value = field.type, getattr(self.manifest, field.name)
            kind = getattr(kind, "__origin__", kind)
            if type(value) is not kind or (kind is int and value < 1):
                raise UserError(f"{path}: {field.name}={value!r} cannot be; {_REMEDY}")
        if self.manifest.dtype not in STORED or "passage" not in self.manifest.templates:
            raise UserError(f"{path}: not what `inf-jax encode` writes; {_REMEDY}")

    def check_role(self, role: str) -> None:
        """Raises UserError unless these are the vectors of passages, or of queries, as `role`."""
        if self.manifest.role != role:
            raise UserError(
                f"{self.directory}: holds {self.manifest.role} vectors where those of {role} texts "
                f"are expected (`inf-jax encode --role={role}`)"
            )

    def is_finished(self, shard: int) -> bool:
        """Whether a shard is there and whole; False where its files were lost or cut since."""
        if not self._path(shard, "json").exists():
            return False
        try:
            self.vectors(shard)
            self.ids(shard)
        except UserError:
            return False
        return True

    def check_complete(self) -> None:
        """Raises UserError where shards have not been written yet."""
        missing = [n for n in range(self.manifest.shards) if not self._path(n, "json").exists()]
        if missing:
            raise UserError(
                f"{self.directory}: {len(missing)} of {self.manifest.shards} shards are not "
                "finished; give the same `inf-jax encode` command again, which goes on from there"
            )

    def write(self, shard: int, blocks: Iterable[np.ndarray], ids: Iterable[str]) -> None:
        """Writes a shard.

        Args:
          blocks: float32[..., e], together the shard's vectors.
          ids: read once the blocks are.

        Raises:
          UserError: a vector that is not finite in the stored dtype, or a full disk.
        """
        made, rows = self.manifest, self.manifest.rows(shard)
        with storage.new_file(self._path(shard, "npy")) as file:
            out = _Hashed(file)
            dtype = np.dtype(made.dtype)
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
            np.lib.format.write_array_header_1_0(out, header | {"shape": (rows, made.width)})
            written = 0
            for block in blocks:
                with np.errstate(over="ignore"):
                    stored = np.ascontiguousarray(block, dtype)
                bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
                if bad.size:
                    number = shard * made.shard_size + written + int(bad[0])
                    raise UserError(
                        f"{made.role} {number}: its vector is not finite in {made.dtype}; use "
                        "--dtype=float32, or look at the model's weights"
                    )
                out.write(stored.data)
                written += len(stored)
        names = "".join(f"{name}\n" for name in ids).encode()
        with storage.new_file(self._path(shard, "ids")) as file:
            file.write(names)
        assert written == rows == names.count(b"\n")
        sums = {"npy": out.digest(), "ids": hashlib.sha256(names).hexdigest()}
        write_json(self._path(shard, "json"), {"count": rows} | sums)

    def vectors(self, shard: int) -> np.ndarray:
        """[n, e] in the stored dtype. Raises UserError where the file is damaged."""
        data, path = self._checked(shard, "npy"), self._path(shard, "npy")
        file = io.BytesIO(data)
        try:
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:
            raise UserError(f"{path}: {first_line(error)}; {_REMEDY}") from None
        expected = (self.manifest.rows(shard), self.manifest.width)
        if fortran or shape != expected or dtype != np.dtype(self.manifest.dtype):
            wanted = f"{self.manifest.dtype}{list(expected)}"
            raise UserError(f"{path}: {dtype}{list(shape)} where {wanted} is expected; {_REMEDY}")
        return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)

    def ids(self, shard: int) -> list[str]:
        """The n ids. Raises UserError where the file is damaged."""
        names = self._checked(shard, "ids").decode().split("\n")[:-1]
        if len(names) != self.manifest.rows(shard):
            raise UserError(f"{self._path(shard, 'ids')}: {len(names)} ids; {_REMEDY}")
        return names

    def _checked(self, shard: int, ending: str) -> bytes:
        path = self._path(shard, ending)
        record = read_json(self._path(shard, "json"), kind=dict, remedy=_REMEDY)
        reading = contextlib.nullcontext()
        if storage.is_bucket(path):
            reading = gcs.explained(path, "read it")
        try:
            with reading:
                data = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; {_REMEDY}") from error
        if hashlib.sha256(data).hexdigest() != record.get(ending):
            raise UserError(
                f"{path}: is not what was written (its SHA-256 differs from that in "
                f"{self._path(shard, 'json').name}): copy it again, or delete it and give the "
                "`inf-jax encode` command again"
            )
        return data

    def _path(self, shard: int, ending: str) -> storage.AnyPath:
        return self.directory / f"shard-{shard:05}.{ending}"


class _Hashed:
    """A file that takes the SHA-256 of what is written to it."""

    def __init__(self, file: io.BufferedIOBase):
        self._file, self._sum = file, hashlib.sha256()

    def write(self, data: Any) -> None:
        self._sum.update(data)
        self._file.write(data)

    def digest(self) -> str:
        return self._sum.hexdigest()


def open_for_writing(directory: storage.AnyPath, manifest: Manifest) -> VectorStore:
    """The store of a directory, begun now or by an earlier start with the same manifest.

    Raises:
      UserError: the directory holds other vectors, or something else.
    """
    path = directory / STORE_MANIFEST
    now = dataclasses.asdict(manifest)
    if not path.exists():
        if directory.exists() and any(file.name[0] != "." for file in directory.iterdir()):
            raise UserError(
                f"{directory}: is not empty and holds no {STORE_MANIFEST}; choose another directory"
            )
        write_json(path, now)
    store = VectorStore(directory)
    was = dataclasses.asdict(store.manifest)
    was["model"] = now["model"]
    was["compute_dtype"] = was["compute_dtype"] or _UNRECORDED
    differ = list(_differences(was, json.loads(json.dumps(now))))
    if differ:
        shown = "; ".join(
            f"{name}: {old}" + (f", now {new}" if old != _UNRECORDED else "")
            for name, old, new in differ[:2]
        )
        raise UserError(
            f"{directory}: holds vectors of other texts or settings ({shown}); choose another "
            "directory, or delete this one"
        )
    return store
