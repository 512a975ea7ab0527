"""Reads pieces of files ahead in threads, as many bytes as a limit allows."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from inf_jax.core.errors import UserError

_THREADS = 16  # of one process; a bucket answers each after tens of milliseconds
PieceKey = tuple[int, ...]


class Stage:
    """Pieces in memory; threads may share it.

    Args:
      load: reads a piece.
      size: bytes of a piece.
      limit: bytes in memory at most.
      key: of the config, which sets the limit.
    """

    def __init__(
        self,
        load: Callable[[PieceKey], Any],
        *,
        size: Callable[[PieceKey], int],
        limit: int,
        key: str,
    ):
        self._load, self._size, self._limit, self._name = load, size, limit, key
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="stage")
        self._pieces: dict[PieceKey, Future] = {}
        self._lock = threading.Lock()

    def want(self, now: Sequence[PieceKey], ahead: Sequence[PieceKey]) -> None:
        """Keeps these pieces, drops all others, and starts to read those that are missing: first
        those for now. Raises UserError where they are larger than the limit."""
        wanted = dict.fromkeys([*now, *ahead])
        if (total := sum(map(self._size, wanted))) > self._limit:
            mib = -(-total // 2**20)
            raise UserError(
                f"{self._name}={self._limit >> 20}: this host's records of two windows, the one "
                f"that is trained on and the next, take {mib:,} MiB: set {self._name}={mib} or "
                "more, or take more hosts or a smaller batch"
            )
        with self._lock:
            for key in self._pieces.keys() - wanted.keys():
                self._pieces.pop(key).cancel()
            for key in wanted:
                if key not in self._pieces:
                    self._pieces[key] = self._pool.submit(self._load, key)

    def get(self, keys: Sequence[PieceKey]) -> list[Any]:
        """These pieces; those that were not wanted are read now, and not kept. Errors as of
        `load`."""
        with self._lock:
            found = {
                key: self._pieces.get(key) or self._pool.submit(self._load, key) for key in keys
            }
        try:
            return [found[key].result() for key in keys]
        except UserError:
            with self._lock:  # a second try reads again
                for key in keys:
                    self._pieces.pop(key, None)
            raise

    def close(self) -> None:
        """Reads nothing more."""
        with contextlib.suppress(RuntimeError):
            self._pool.shutdown(wait=False, cancel_futures=True)
