"""Files of the local server: uploads, downloads and results of batches."""

import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llm_checks
from llm_wire import Request, Response, page

MOST_BYTES = 200_000_000


class Files:
    """The files of a server, in memory or in its state directory, by id."""

    def __init__(self, server: Any, state: Path | None):
        self._server = server
        self._folder = state / "files" if state else None
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
        earlier = [event["file"] for event in server.counts.earlier if event["event"] == "file"]
        self._files: dict[str, dict[str, Any]] = {file["id"]: file for file in earlier}
        self._kept = len(earlier)  # including deleted ones: ids are never reused
        self._contents: dict[str, bytes] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._files[name]

    def route(self, request: Request) -> Response:
        """The response to a request below /v1/files."""
        answer, wrong = self._server.json, llm_checks.error
        match request.method, request.path.split("/")[3:]:
            case "POST", []:
                return self._upload(request.headers, request.body)
            case "GET", []:
                purpose = request.query.get("purpose")
                rows = [f for f in self._files.values() if purpose in (None, f["purpose"])]
                return answer(*page(rows, request.query))
            case "GET", [name] if name in self._files:
                return answer(200, self._files[name])
            case "GET", [name, "content"] if name in self._files:
                return self._content(name)
            case "DELETE", [name] if name in self._files:
                del self._files[name]
                return answer(200, {"id": name, "object": "file", "deleted": True})
            case _, [name, *_]:
                return answer(*wrong(404, f"No such File object: {name}", param="id"))
        return answer(*wrong(404, f"Invalid URL ({request.method} {request.path})"))

    def _upload(self, headers: dict[str, str], data: bytes) -> Response:
        form = _form(headers.get("content-type", ""), data)
        name, content = form.get("file", ("", b""))
        purpose = form.get("purpose", ("", b""))[1].decode()
        wrong = llm_checks.error
        if "file" not in form:
            return self._server.json(*wrong(400, "'file' is a required property"))
        if purpose != "batch":
            message = f"'{purpose}' is not one of ['batch'] - 'purpose'"
            return self._server.json(*wrong(400, message, param="purpose"))
        if len(content) > MOST_BYTES:
            return self._server.json(*wrong(413, "Maximum file size exceeded."))
        identity = hashlib.blake2b(content, digest_size=12).hexdigest()
        if self._server.file_fault("upload_500", identity):
            return self._server.json(*wrong(500, "The server had an error.", kind="server_error"))
        return self._server.json(200, self.keep(name, "batch", content))

    def _content(self, name: str) -> Response:
        content = self.read(name)
        identity = hashlib.blake2b(content, digest_size=12).hexdigest()
        if self._server.file_fault("content_500", identity):
            body = llm_checks.error(500, "The server had an error.", kind="server_error")
            return self._server.json(*body)
        return self._server.raw(content)

    def keep(self, filename: str, purpose: str, content: bytes) -> dict[str, Any]:
        """Stores a new file; returns its object."""
        self._kept += 1
        file = {
            "id": f"file-{self._kept:06d}{hashlib.blake2b(content, digest_size=4).hexdigest()}",
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "expires_at": None,
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
            "status_details": None,
        }
        if self._folder:
            (self._folder / file["id"]).write_bytes(content)
        else:
            self._contents[file["id"]] = content
        self._files[file["id"]] = file
        self._server.counts.add("file", file=file)
        return file

    def read(self, name: str) -> bytes:
        """A file's content."""
        return (self._folder / name).read_bytes() if self._folder else self._contents[name]


def _form(content_type: str, data: bytes) -> dict[str, tuple[str, bytes]]:
    """Field -> (file name, content) of multipart/form-data."""
    found = re.search(r'boundary="?([^";]+)', content_type)
    return dict(_parts(data, b"--" + found[1].encode())) if found else {}


def _parts(data: bytes, boundary: bytes) -> Iterator[tuple[str, tuple[str, bytes]]]:
    for part in data.split(boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        names = dict(re.findall(r'(\w+)="([^"]*)"', head.decode()))
        yield names.get("name", ""), (names.get("filename", ""), content.removesuffix(b"\r\n"))
