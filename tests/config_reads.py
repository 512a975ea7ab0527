"""Records which configuration keys a piece of code reads."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock


@contextlib.contextmanager
def recorded_reads(config: Any) -> Iterator[set[str]]:
    """The dotted keys of `config`, a typed configuration, that are read while this is open.

    `dataclasses.asdict` reads everything and so says nothing of what is used: it does not count.
    """
    prefixes: dict[int, str] = {}

    def visit(section: Any, prefix: str) -> None:
        prefixes[id(section)] = prefix
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                visit(value, f"{prefix}{field.name}.")

    visit(config, "")
    kinds = set(map(type, _sections(config)))
    names = {f.name for kind in kinds for f in dataclasses.fields(kind)}
    read: set[str] = set()
    copying = False

    def getattribute(section: Any, name: str) -> Any:
        value = object.__getattribute__(section, name)
        if name in names and not copying and id(section) in prefixes:
            read.add(prefixes[id(section)] + name)
        return value

    original = dataclasses._asdict_inner

    def asdict_inner(*args: Any) -> Any:
        nonlocal copying
        before, copying = copying, True
        try:
            return original(*args)
        finally:
            copying = before

    with contextlib.ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(
                mock.patch.object(kind, "__getattribute__", getattribute, create=True)
            )
        stack.enter_context(mock.patch.object(dataclasses, "_asdict_inner", asdict_inner))
        yield read


def _sections(config: Any) -> Iterator[Any]:
    yield config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _sections(value)
