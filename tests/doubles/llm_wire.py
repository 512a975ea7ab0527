"""HTTP/1.1 of the local server: reads requests, writes responses, injects faults of the wire."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import llm_checks

_PHRASES = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 409: "Conflict"}
_PHRASES |= {429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway"}


class Request(NamedTuple):
    """One HTTP request; header names in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Response(NamedTuple):
    """One HTTP response; `rule` is the fault that spoils it, `identity` the chat request's hash."""

    status: int
    body: bytes
    headers: dict[str, str]
    rule: dict[str, Any] | None = None
    identity: str = ""


async def read_request(reader: asyncio.StreamReader) -> Request:
    """The next request; raises IncompleteReadError when the client has closed the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ", 2)
    headers = {}
    for line in head[1:-2]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    path, _, query = target.partition("?")
    return Request(method, path, dict(parse_qsl(query)), headers, await _body(reader, headers))


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    parts = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(parts)


async def write_response(
    response: Response,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    before_last_byte: Callable[[], None],
) -> bool:
    """Writes the response, or what its fault leaves of it; returns whether all of it was written.

    Args:
      before_last_byte: called before the last bytes are written; from then on the client may send
        its next request.
    """
    kind = response.rule["kind"] if response.rule else ""
    seconds = (response.rule or {}).get("seconds")
    if kind in ("drop_before", "batch_create_lost"):  # processed, but the reply is lost
        return False
    if kind == "timeout":
        with contextlib.suppress(TimeoutError):  # until the client gives up
            await asyncio.wait_for(reader.read(1), 3600.0 if seconds is None else seconds)
        return False
    lines = [f"HTTP/1.1 {response.status} {_PHRASES.get(response.status, 'Status')}"]
    lines += [f"content-length: {len(response.body)}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    body, pause = response.body, 0.0
    if kind == "drop":
        body = body[: len(body) // 2]
    parts = [head + body]
    if kind == "slow":
        step = max(1, len(body) // 5)
        parts = [head, *(body[n : n + step] for n in range(0, len(body), step))]
        pause = (0.3 if seconds is None else seconds) / len(parts)
    for part in parts[:-1]:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause)
    before_last_byte()
    writer.write(parts[-1])
    await writer.drain()
    return kind != "drop"


def page(rows: list[dict[str, Any]], query: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Status and body of one page of a list, newest first (parameters `after` and `limit`)."""
    rows, after = rows[::-1], query.get("after")
    ids = [row["id"] for row in rows]
    if after is not None and after not in ids:
        return llm_checks.error(400, f"No such id: {after}", param="after")
    start = ids.index(after) + 1 if after else 0
    limit = min(100, int(query.get("limit", 20)))
    found = rows[start : start + limit]
    value = {"object": "list", "data": found, "has_more": start + limit < len(rows)}
    return 200, value | ({"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {})
