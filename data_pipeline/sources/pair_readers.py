"""Looks up the readers of (query, passage) pairs by the name of their source."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.sources import beir, fields, msmarco, problems
from data_pipeline.sources.pairs import SourcePair
from data_pipeline.sources.training import nevir, pubmedqa
from inf_jax.core.errors import UserError

PAIR_SOURCES: dict[str, Callable[..., Iterator[SourcePair]]] = {
    "beir": beir.read,
    "msmarco": msmarco.read,
    "fields": fields.read,
    "metamath": problems.read_metamath,
    "leetcode": problems.read_leetcode,
    "nevir": nevir.read,
    "pubmedqa": pubmedqa.read,
}
OF_READERS = {"path", "dropped", "noted"}  # parameters of a reader that are no options of a user


def read_pairs(
    source: str, path: str | Path, *, dropped: Counter[str], **options: Any
) -> Iterator[SourcePair]:
    """Reads the pairs of a source in PAIR_SOURCES; the other arguments are those of its reader.

    Raises:
      UserError: the source or an option is unknown, an option is missing, or as the reader.
    """
    if source not in PAIR_SOURCES:
        raise UserError(f"no source {source!r}; choose one of {', '.join(PAIR_SOURCES)}")
    read = PAIR_SOURCES[source]
    known = [name for name in inspect.signature(read).parameters if name not in OF_READERS]
    for name in options:
        if name not in known:
            raise UserError(f"source {source!r} has no option {name!r}, only {', '.join(known)}")
    try:
        return read(path, dropped=dropped, **options)
    except TypeError as error:  # a missing option: generators run no code yet
        raise UserError(f"source {source!r}: {error}; its options: {', '.join(known)}") from error
