"""Parses JSON texts that others wrote: any that cannot be used is one UserError."""

import json
import sys
from typing import Any

from inf_jax.core.errors import UserError, first_line

_NAMES = {
    dict: "a JSON object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
}


def parse_json(
    data: str | bytes,
    where: object,
    *,
    kind: type = object,
    remedy: str = "make it again",
) -> Any:
    """The value of a JSON text; a byte order mark is skipped. Every JSON that others wrote is read
    by this function.

    Args:
      data: bytes are UTF-8.
      where: file, or file and line, for messages.
      kind: dict, list, str, ... that the value must be.

    Raises:
      UserError: not JSON, not UTF-8, nested too deeply for Python, a number of more digits than
        Python converts, or not a `kind`; begins with `where`, ends in `remedy` if there is one.
    """
    end = f"; {remedy}" if remedy else ""
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data.removeprefix("\ufeff")
        value = json.loads(text)
    except RecursionError:
        raise UserError(f"{where}: not readable JSON (nested too deeply){end}") from None
    except ValueError as error:
        limit = sys.get_int_max_str_digits()
        decoding = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
        reason = first_line(error) if decoding else f"a number of more than {limit} digits"
        raise UserError(f"{where}: not JSON ({reason}){end}") from None
    if not isinstance(value, kind):
        expected = _NAMES.get(kind, kind.__name__)
        raise UserError(
            f"{where}: {_NAMES.get(type(value), 'null')} where {expected} is expected{end}"
        )
    return value
