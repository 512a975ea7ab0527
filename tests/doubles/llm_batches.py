"""Files and batches of the local server."""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llm_checks
from llm_faults import BATCHES, FILES, ROWS, SPOILING
from llm_model import request_hash

MOST_ROWS = 50_000
MOST_BYTES = 200_000_000
_URL = "/v1/chat/completions"
_TIMES = (
    *("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at"),
    *("cancelling_at", "cancelled_at"),
)
_OPEN = ("validating", "in_progress", "finalizing", "cancelling")
_LATE = "This request could not be executed before the completion window expired."


class Batches:
    """Files and batches; both are kept in the state directory, where there is one."""

    def __init__(self, server: Any, state: Path | None):
        self._server = server
        self._folder = state / "files" if state else None
        self._files: dict[str, dict[str, Any]] = {}
        self._kept = 0  # files, deleted ones too: no id comes twice
        self._contents: dict[str, bytes] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._hashes: dict[str, str] = {}  # batch -> hash of its input
        self._tasks: set[asyncio.Task] = set()
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
        for event in server.counts.earlier:
            if event["event"] == "file":
                self._files[event["file"]["id"]] = event["file"]
                self._kept += 1
            elif event["event"] == "batch":
                batch = event["batch"]
                self._batches[batch["id"]], self._hashes[batch["id"]] = batch, event["input"]

    def resume(self) -> None:
        """Goes on with the batches that a killed server left unfinished."""
        for batch in self._batches.values():
            if batch["status"] in _OPEN:
                self._start(batch)

    def summary(self) -> list[dict[str, Any]]:
        """For the tests: every batch with the hash of its input, in order of submission."""
        names = ("id", "status", "metadata", "request_counts")
        return [
            {name: batch[name] for name in names} | {"input": self._hashes[batch["id"]]}
            for batch in self._batches.values()
        ]

    def route(
        self,
        method: str,
        parts: list[str],
        query: dict[str, str],
        headers: dict[str, str],
        data: bytes,
    ) -> Any:
        """The answer to a request below /v1/files or /v1/batches."""
        answer, wrong = self._server.json, llm_checks.error
        match method, parts:
            case "POST", ["files"]:
                return self._upload(headers, data)
            case "GET", ["files"]:
                purpose = query.get("purpose")
                return self._page(
                    [f for f in self._files.values() if purpose in (None, f["purpose"])], query
                )
            case "GET", ["files", name] if name in self._files:
                return answer(200, self._files[name])
            case "GET", ["files", name, "content"] if name in self._files:
                return self._content(name)
            case "DELETE", ["files", name] if name in self._files:
                del self._files[name]
                return answer(200, {"id": name, "object": "file", "deleted": True})
            case _, ["files", name, *_]:
                return answer(*wrong(404, f"No such File object: {name}", param="id"))
            case "POST", ["batches"]:
                return self._create(data)
            case "GET", ["batches"]:
                return self._page(list(self._batches.values()), query)
            case "GET", ["batches", name] if name in self._batches:
                return answer(200, self._batches[name])
            case "POST", ["batches", name, "cancel"] if name in self._batches:
                return self._cancel(self._batches[name])
            case _, ["batches", name, *_]:
                return answer(*wrong(404, f"No batch found with id '{name}'."))
        return answer(*wrong(404, f"Invalid URL ({method} /v1/{'/'.join(parts)})"))

    def _upload(self, headers: dict[str, str], data: bytes) -> Any:
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
        if self._strikes("upload_500", identity):
            return self._server.json(*wrong(500, "The server had an error.", kind="server_error"))
        return self._server.json(200, self._keep(name, "batch", content))

    def _content(self, name: str) -> Any:
        content = self._read(name)
        identity = hashlib.blake2b(content, digest_size=12).hexdigest()
        if self._strikes("content_500", identity):
            body = llm_checks.error(500, "The server had an error.", kind="server_error")
            return self._server.json(*body)
        return self._server.raw(content)

    def _keep(self, filename: str, purpose: str, content: bytes) -> dict[str, Any]:
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

    def _read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes() if self._folder else self._contents[name]

    def _create(self, data: bytes) -> Any:
        answer, wrong = self._server.json, llm_checks.error
        try:
            given = json.loads(data)
        except ValueError:
            return answer(*wrong(400, "We could not parse the JSON body of your request."))
        name, metadata = given.get("input_file_id"), given.get("metadata")
        if name not in self._files or self._files[name]["purpose"] != "batch":
            message = f"Cannot find file {name}, or project does not have access to it."
            return answer(*wrong(400, message, param="file_id"))
        if given.get("endpoint") != _URL or given.get("completion_window") != "24h":
            return answer(*wrong(400, "Invalid 'endpoint' or 'completion_window'."))
        if metadata is not None and not _sound(metadata):
            return answer(*wrong(400, "Invalid 'metadata'.", param="metadata"))
        identity = hashlib.blake2b(self._read(name), digest_size=12).hexdigest()
        if self._strikes("batch_create_500", identity):
            return answer(*wrong(500, "The server had an error.", kind="server_error"))
        now, number = int(time.time()), len(self._batches) + 1
        batch = {
            "id": f"batch_{number:06d}{identity[:8]}",
            "object": "batch",
            "endpoint": _URL,
            "model": None,
            "errors": None,
            "input_file_id": name,
            "completion_window": "24h",
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "expires_at": now + 86_400,
            **dict.fromkeys(_TIMES),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": metadata,
        }
        self._batches[batch["id"]], self._hashes[batch["id"]] = batch, identity
        self._log(batch)
        self._start(batch)
        lost = self._strikes("batch_create_lost", identity)
        return answer(200, batch)._replace(rule=lost)

    def _cancel(self, batch: dict[str, Any]) -> Any:
        if batch["status"] not in ("validating", "in_progress"):
            message = f"Cannot cancel a batch with status '{batch['status']}'."
            return self._server.json(*llm_checks.error(409, message))
        self._turn(batch, "cancelling")
        return self._server.json(200, batch)

    def _page(self, rows: list[dict[str, Any]], query: dict[str, str]) -> Any:
        """Newest first."""
        rows, after = rows[::-1], query.get("after")
        ids = [row["id"] for row in rows]
        if after is not None and after not in ids:
            return self._server.json(*llm_checks.error(400, f"No such id: {after}", param="after"))
        start = ids.index(after) + 1 if after else 0
        limit = min(100, int(query.get("limit", 20)))
        page = rows[start : start + limit]
        value = {"object": "list", "data": page, "has_more": start + limit < len(rows)}
        value |= {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        return self._server.json(200, value)

    def _start(self, batch: dict[str, Any]) -> None:
        task = asyncio.create_task(self._run(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: dict[str, Any]) -> None:
        """A batch's life. Nothing is counted before its files are written."""
        step = self._server.options.batch_step_s
        identity = self._hashes[batch["id"]]
        await asyncio.sleep(step)
        rows, errors = self._validated(self._read(batch["input_file_id"]))
        if failing := self._strikes("batch_failed", identity):
            code = failing.get("code", "token_limit_exceeded")
            errors = [_problem(code, None, "Enqueued token limit reached for the organization.")]
        if errors:
            batch["errors"] = {"object": "list", "data": errors}
            self._turn(batch, "failed")
            return
        batch["model"] = rows[0]["body"]["model"]
        batch["request_counts"] = {"total": len(rows), "completed": 0, "failed": 0}
        if batch["status"] == "validating":
            self._turn(batch, "in_progress")
        expiring = self._strikes("batch_expired", identity)
        most = int(len(rows) * expiring.get("fraction", 0.5)) if expiring else len(rows)
        await asyncio.sleep(step)
        done = 0
        while done < most and batch["status"] == "in_progress":
            done = min(most, done + 100)
            batch["request_counts"]["completed"] = done
            await asyncio.sleep(100 / self._server.options.batch_rows_per_s)
        cancelled = batch["status"] == "cancelling"
        if not cancelled and not expiring:
            self._turn(batch, "finalizing")
            await asyncio.sleep(step)
        self._finish(batch, rows, done if cancelled or expiring else len(rows))
        end = "cancelled" if cancelled else "expired" if expiring else "completed"
        self._turn(batch, end)

    def _finish(self, batch: dict[str, Any], rows: list[dict[str, Any]], done: int) -> None:
        """Writes the files of a batch of which `done` rows were worked on."""
        output, failed = [], []
        for number, row in enumerate(rows):
            result = {"id": f"batch_req_{number:06d}{batch['id'][6:12]}"}
            result |= {"custom_id": row["custom_id"], "response": None, "error": None}
            if number >= done:
                if batch["status"] != "cancelling":
                    result["error"] = {"code": "batch_expired", "message": _LATE}
                    failed.append(result)
                continue
            (self._row(row["body"], result, failed, output))
        batch["request_counts"] = {
            "total": len(rows),
            "completed": sum((r["response"] or {}).get("status_code") == 200 for r in output),
            "failed": len(failed) + sum(r["response"]["status_code"] != 200 for r in output),
        }
        for name, lines in (("output_file_id", output), ("error_file_id", failed)):
            if lines:
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                file = self._keep(f"{batch['id']}_{name}.jsonl", "batch_output", text.encode())
                batch[name] = file["id"]

    def _row(self, body: dict[str, Any], result: dict, failed: list, output: list) -> None:
        server, identity = self._server, request_hash(body)
        stage, model = server.stage_of(body), str(body.get("model"))
        attempt = server.counts.attempts(identity)
        server.counts.add("received", hash=identity, stage=stage, model=model)
        rule = server.fault((*ROWS, *SPOILING), identity, attempt, stage=stage, model=model)
        kind = rule["kind"] if rule else ""
        wrong = llm_checks.check(body, server.models, server.options.max_context)
        if kind in ("row_500", "row_error"):
            wrong = llm_checks.error(500, "The server had an error.", kind="server_error")
        if wrong:
            result["response"] = {"status_code": wrong[0], "request_id": identity, "body": wrong[1]}
            (failed if kind != "row_500" else output).append(result)
            return
        completion = server.completion(body, identity, rule)
        server.counts.bill(identity, completion["usage"])
        if kind == "row_missing":
            return
        result["response"] = {"status_code": 200, "request_id": identity, "body": completion}
        output.append(result)
        server.counts.add("written", hash=identity)
        if not rule or kind in ("timeout", "drop", "slow", "malformed_json"):  # not of a batch
            server.counts.add("answered", hash=identity)

    def _validated(self, data: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        rows, errors, seen, models = [], [], set(), set()
        for line, text in enumerate(data.decode().splitlines(), 1):
            try:
                row = json.loads(text)
                name, method, url, body = (row[n] for n in ("custom_id", "method", "url", "body"))
                models.add(body["model"])
            except (ValueError, LookupError, TypeError):
                errors.append(_problem("invalid_json_line", line, "This line is no request."))
                continue
            if name in seen:
                errors.append(_problem("duplicate_custom_id", line, f"'{name}' occurs twice."))
            if method != "POST" or url != _URL:
                errors.append(_problem("invalid_url", line, f"{method} {url}"))
            seen.add(name)
            rows.append(row)
        if not rows and not errors:
            errors.append(_problem("empty_file", None, "The batch input file is empty."))
        if len(rows) > MOST_ROWS:
            errors.append(_problem("too_many_tasks", None, "Too many requests in the file."))
        if len(models) > 1:
            errors.append(_problem("mismatched_model", None, "One model a batch."))
        for name in models - set(self._server.models):
            errors.append(_problem("model_not_found", 1, f"The model '{name}' does not exist."))
        limit = self._server.options.batch_tokens
        if limit and self._enqueued() > limit:
            message = f"Enqueued token limit reached. Limit: {limit:,} enqueued tokens."
            errors.append(_problem("token_limit_exceeded", None, message))
        return rows, errors

    def _enqueued(self) -> int:
        files = (b["input_file_id"] for b in self._batches.values() if b["status"] in _OPEN)
        return sum(self._files[name]["bytes"] // 4 for name in files)

    def _strikes(self, kind: str, identity: str) -> dict[str, Any] | None:
        assert kind in (*BATCHES, *FILES)
        number = self._server.counts.batch_attempts[kind, identity]
        self._server.counts.batch_attempts[kind, identity] += 1
        return self._server.fault((kind,), identity, number)

    def _turn(self, batch: dict[str, Any], status: str) -> None:
        batch["status"], batch[f"{status}_at"] = status, int(time.time())
        self._log(batch)

    def _log(self, batch: dict[str, Any]) -> None:
        self._server.counts.add("batch", batch=batch, input=self._hashes[batch["id"]])


def _problem(code: str, line: int | None, message: str) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": None}


def _sound(metadata: Any) -> bool:
    return (
        isinstance(metadata, dict)
        and len(metadata) <= 16
        and all(isinstance(v, str) and len(k) <= 64 and len(v) <= 512 for k, v in metadata.items())
    )


def _form(content_type: str, data: bytes) -> dict[str, tuple[str, bytes]]:
    """Field -> (file name, content) of multipart/form-data."""
    found = re.search(r'boundary="?([^";]+)', content_type)
    return dict(_parts(data, b"--" + found[1].encode())) if found else {}


def _parts(data: bytes, boundary: bytes) -> Iterator[tuple[str, tuple[str, bytes]]]:
    for part in data.split(boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        names = dict(re.findall(r'(\w+)="([^"]*)"', head.decode()))
        yield names.get("name", ""), (names.get("filename", ""), content.removesuffix(b"\r\n"))
