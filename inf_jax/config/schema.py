"""Typed configuration sections: declaration, conversion from a ConfigDict, per-key checks, help.

A section is a frozen dataclass whose fields are made by `key`. `config_dict` turns it into the
ConfigDict that a user's config file changes; `from_config_dict` turns that back into the section,
once, so that the rest of the code reads checked, immutable attributes.
"""

import dataclasses
import math
import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, RequiredValueError

from inf_jax.core.errors import UserError, first_line

_T = TypeVar("_T")

# name of a rule -> (whether a value is allowed, what to tell the user)
VALUE_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "positive": (lambda x: x > 0, "must be above 0"),
    "not negative": (lambda x: x >= 0, "must not be negative"),
    "below one": (lambda x: 0 <= x < 1, "must be in [0, 1)"),
    "up to one": (lambda x: 0 < x <= 1, "must be in (0, 1]"),
    "share": (lambda x: 0 <= x <= 1, "must be in [0, 1]"),
}

TYPE_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
}
_TUPLE_NAMES = {
    int: "a tuple of whole numbers, such as (1, 2)",
    float: "a tuple of numbers, such as (1, 0.5)",
    str: "a tuple of strings, such as ('a', 'b')",
}
_LARGEST = 2**32


@dataclasses.dataclass(frozen=True)
class Key:
    """One configuration key.

    Attributes:
      name: dotted, e.g. "train.steps".
      default: its value unless a config sets another.
      doc: one line for --help.
      choices: the allowed values; empty: any.
      rule: a name in `VALUE_RULES`, or "".
      path: whether it is a path, or a tuple of paths: `~` at its start is the home directory.
      words: strings that are allowed besides values of the default's type, such as "auto".
      item: type of the entries of a tuple; None for others.
    """

    name: str
    default: Any
    doc: str
    choices: tuple
    rule: str
    path: bool
    words: tuple[str, ...] = ()
    item: type | None = None

    @property
    def type_name(self) -> str:
        """What its values are, for messages."""
        name = TYPE_NAMES[type(self.default)] if self.item is None else _TUPLE_NAMES[self.item]
        return " or ".join((name, *self.words))


def key(
    default: Any,
    doc: str,
    choices: tuple = (),
    *,
    rule: str = "",
    path: bool = False,
    words: tuple[str, ...] = (),
) -> Any:
    """A field of a section; see `Key`. A tuple is annotated with the type of its entries."""
    metadata = {"doc": doc, "choices": choices, "rule": rule, "path": path, "words": words}
    return dataclasses.field(default=default, metadata=metadata)


def keys(sections: Any, prefix: str = "") -> Iterator[Key]:
    """All keys below an instance of a section, in order; its values are the defaults."""
    for field in dataclasses.fields(sections):
        value = getattr(sections, field.name)
        if dataclasses.is_dataclass(value):
            yield from keys(value, f"{prefix}{field.name}.")
        else:
            item = typing.get_args(field.type)[0] if isinstance(value, tuple) else None
            yield Key(f"{prefix}{field.name}", value, **field.metadata, item=item)


def config_dict(sections: Any) -> ConfigDict:
    """A locked ConfigDict with the values of an instance of a section."""
    config = ConfigDict()
    for field in dataclasses.fields(sections):
        value = getattr(sections, field.name)
        if field.metadata.get("words"):  # another type than the default's is allowed
            value = FieldReference(value, field_type=object)
        config[field.name] = config_dict(value) if dataclasses.is_dataclass(value) else value
    return config.lock()


def set_value(config: ConfigDict, name: str, value: Any) -> None:
    """Gives a dotted key a value, which may be one of its words."""
    section, _, last = name.rpartition(".")
    with config.ignore_type():
        (value_of(config, section) if section else config)[last] = value


def with_home(value: Any) -> Any:
    """A path with `~` or `~USER` at its start replaced; a tuple or list of paths likewise."""
    if isinstance(value, tuple | list):
        return type(value)(map(with_home, value))
    return os.path.expanduser(value) if isinstance(value, str) else value


def expand_paths(sections: Any, config: ConfigDict) -> None:
    """Applies `with_home` to the keys of a config that are paths."""
    for each in keys(sections):
        if each.path:
            *names, last = each.name.split(".")
            section = value_of(config, ".".join(names)) if names else config
            section[last] = with_home(section[last])


def from_config_dict(sections: _T, config: ConfigDict) -> _T:
    """The section with the values of a checked config; lists become tuples, `~` the home directory.

    Args:
      sections: an instance of the section with the defaults.
      config: must have the same keys.
    """
    values = {}
    for field in dataclasses.fields(sections):
        default, value = getattr(sections, field.name), config[field.name]
        if dataclasses.is_dataclass(default):
            value = from_config_dict(default, value)
        elif isinstance(default, tuple | float) and value not in field.metadata.get("words", ()):
            value = type(default)(value)
        if field.metadata.get("path"):
            value = with_home(value)
        values[field.name] = value
    return type(sections)(**values)


def key_problems(sections: Any, config: ConfigDict) -> list[str]:
    """Keys whose value is not among their choices or not in their range.

    Raises:
      UserError: values have another type than their defaults; lists them.
    """
    raise_problems(type_problems(sections, config))
    values = [(each, value_of(config, each.name)) for each in keys(sections)]
    return [text for each, value in values if (text := _problem(each, value))]


def type_problems(sections: Any, config: ConfigDict) -> list[str]:
    """Keys whose value is of another type than their default, or no value at all."""
    problems = []
    for each in keys(sections):
        try:
            value = value_of(config, each.name)
        except (KeyError, TypeError, RequiredValueError) as error:
            problems.append(f"{each.name}: has no value ({first_line(error)})")
            continue
        entries = value if each.item and isinstance(value, tuple | list) else [value]
        if value in each.words:
            continue
        if not _has_type(value, each.default, each.item):
            problems.append(f"{each.name}={value!r}: must be {each.type_name}")
        elif any(isinstance(x, int) and abs(x) > _LARGEST for x in entries):
            problems.append(f"{each.name}: a number of at most 2**32")
        elif any(isinstance(x, str) and re.search("[\0\ud800-\udfff]", x) for x in entries):
            problems.append(f"{each.name}={value!r}: holds what is no character")
    return problems


def raise_problems(problems: Iterable[str]) -> None:
    """Raises a UserError that lists the problems of a config, if there are any."""
    if text := "; ".join(problems):
        raise UserError(f"config: {text}")


def _problem(each: Key, value: Any) -> str | None:
    if value in each.words:
        return None
    shown = f"{each.name}={value!r}"
    entries = value if isinstance(value, tuple | list) else [value]
    if any(isinstance(x, float) and not math.isfinite(x) for x in entries):
        return f"{shown}: must be a finite number"
    if each.choices and value not in each.choices:
        return f"{shown}: must be one of {', '.join(map(str, each.choices))}"
    if each.rule and not VALUE_RULES[each.rule][0](value):
        return f"{shown}: {VALUE_RULES[each.rule][1]}"
    return None


def _has_type(value: Any, default: Any, item: type | None = None) -> bool:
    if item is not None:
        whole = isinstance(value, tuple | list)
        return whole and all(_has_type(entry, item()) for entry in value)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    allowed = (int, float) if isinstance(default, float) else type(default)
    return isinstance(value, allowed)


def keys_of(config: ConfigDict, prefix: str = "") -> list[str]:
    """All keys of a ConfigDict, dotted: `section.key`."""
    names = []
    for name, value in config.items(preserve_field_references=True):
        path = f"{prefix}{name}"
        names += keys_of(value, f"{path}.") if isinstance(value, ConfigDict) else [path]
    return names


def value_of(config: Any, name: str) -> Any:
    """The value of a dotted key."""
    for part in name.split("."):
        config = config[part]
    return config
