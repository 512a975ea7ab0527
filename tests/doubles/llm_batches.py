"""Batches of the local server, from submission to their result files."""

import asyncio
import hashlib
import json
import time
from typing import Any

import llm_checks
from llm_faults import GOOD, REFUSALS, ROW_REFUSALS, ROWS, SPOILING, WRAPPING
from llm_model import request_hash, stage_of
from llm_wire import Request, Response, page

MOST_ROWS = 50_000
_URL = "/v1/chat/completions"
_TIMES = (
    *("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at"),
    *("cancelling_at", "cancelled_at"),
)
_OPEN = ("validating", "in_progress", "finalizing", "cancelling")
_EXPIRED = "This request could not be executed before the completion window expired."


class Batches:
    """The batches of a server; with a state directory they survive a restart."""

    def __init__(self, server: Any):
        self._server = server
        self._batches: dict[str, dict[str, Any]] = {}
        self._hashes: dict[str, str] = {}  # batch -> hash of its input
        self._tasks: set[asyncio.Task] = set()
        for event in server.counts.earlier:
            if event["event"] == "batch":
                batch = event["batch"]
                self._batches[batch["id"]], self._hashes[batch["id"]] = batch, event["input"]

    def resume(self) -> None:
        """Continues the batches that a killed server left unfinished."""
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

    def route(self, request: Request) -> Response:
        """The response to a request below /v1/batches."""
        answer, wrong = self._server.json, llm_checks.error
        match request.method, request.path.split("/")[3:]:
            case "POST", []:
                return self._create(request.body)
            case "GET", []:
                return answer(*page(list(self._batches.values()), request.query))
            case "GET", [name] if name in self._batches:
                return answer(200, self._batches[name])
            case "POST", [name, "cancel"] if name in self._batches:
                return self._cancel(self._batches[name])
            case _, [name, *_]:
                return answer(*wrong(404, f"No batch found with id '{name}'."))
        return answer(*wrong(404, f"Invalid URL ({request.method} {request.path})"))

    def _create(self, data: bytes) -> Response:
        answer, wrong = self._server.json, llm_checks.error
        try:
            given = json.loads(data)
        except ValueError:
            return answer(*wrong(400, "We could not parse the JSON body of your request."))
        name, metadata = given.get("input_file_id"), given.get("metadata")
        files = self._server.files
        if name not in files or files[name]["purpose"] != "batch":
            message = f"Cannot find file {name}, or project does not have access to it."
            return answer(*wrong(400, message, param="file_id"))
        if given.get("endpoint") != _URL or given.get("completion_window") != "24h":
            return answer(*wrong(400, "Invalid 'endpoint' or 'completion_window'."))
        if metadata is not None and not _valid_metadata(metadata):
            return answer(*wrong(400, "Invalid 'metadata'.", param="metadata"))
        identity = hashlib.blake2b(files.read(name), digest_size=12).hexdigest()
        if self._server.file_fault("batch_create_500", identity):
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
        lost = self._server.file_fault("batch_create_lost", identity)
        return answer(200, batch)._replace(rule=lost)

    def _cancel(self, batch: dict[str, Any]) -> Response:
        if batch["status"] not in ("validating", "in_progress"):
            message = f"Cannot cancel a batch with status '{batch['status']}'."
            return self._server.json(*llm_checks.error(409, message))
        self._set_status(batch, "cancelling")
        return self._server.json(200, batch)

    def _start(self, batch: dict[str, Any]) -> None:
        task = asyncio.create_task(self._run(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: dict[str, Any]) -> None:
        """Takes a batch to its end. Nothing is counted before its files are written."""
        step = self._server.options.batch_step_s
        identity = self._hashes[batch["id"]]
        await asyncio.sleep(step)
        while self._server.faults.stuck():
            await asyncio.sleep(0.01)
        rows, errors = self._validated(self._server.files.read(batch["input_file_id"]))
        if failing := self._server.file_fault("batch_failed", identity):
            code = failing.get("code", "token_limit_exceeded")
            errors = [_problem(code, None, "Enqueued token limit reached for the organization.")]
        if errors:
            batch["errors"] = {"object": "list", "data": errors}
            self._set_status(batch, "failed")
            return
        batch["model"] = rows[0]["body"]["model"]
        batch["request_counts"] = {"total": len(rows), "completed": 0, "failed": 0}
        if batch["status"] == "validating":
            self._set_status(batch, "in_progress")
        expiring = self._server.file_fault("batch_expired", identity)
        most = int(len(rows) * expiring.get("fraction", 0.5)) if expiring else len(rows)
        await asyncio.sleep(step)
        done = 0
        while done < most and batch["status"] == "in_progress":
            done = min(most, done + 100)
            batch["request_counts"]["completed"] = done
            await self._work(batch, 100 / self._server.options.batch_rows_per_s)
        cancelled = batch["status"] == "cancelling"
        if not cancelled and not expiring:
            self._set_status(batch, "finalizing")
            await asyncio.sleep(step)
        self._finish(batch, rows, done if cancelled or expiring else len(rows))
        end = "cancelled" if cancelled else "expired" if expiring else "completed"
        self._set_status(batch, end)

    async def _work(self, batch: dict[str, Any], seconds: float) -> None:
        """Waits, as long as the batch is in progress."""
        until = time.monotonic() + seconds
        while batch["status"] == "in_progress" and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.05))

    def _finish(self, batch: dict[str, Any], rows: list[dict[str, Any]], done: int) -> None:
        """Writes the result files of a batch of which the first `done` rows were processed."""
        output, failed = [], []
        for number, row in enumerate(rows):
            result = {"id": f"batch_req_{number:06d}{batch['id'][6:12]}"}
            result |= {"custom_id": row["custom_id"], "response": None, "error": None}
            if number >= done:
                if batch["status"] != "cancelling":
                    result["error"] = {"code": "batch_expired", "message": _EXPIRED}
                    failed.append(result)
                continue
            self._row(row["body"], result, failed, output)
        batch["request_counts"] = {
            "total": len(rows),
            "completed": sum((r["response"] or {}).get("status_code") == 200 for r in output),
            "failed": len(failed) + sum(r["response"]["status_code"] != 200 for r in output),
        }
        for name, lines in (("output_file_id", output), ("error_file_id", failed)):
            if lines:
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                filename = f"{batch['id']}_{name}.jsonl"
                file = self._server.files.keep(filename, "batch_output", text.encode())
                batch[name] = file["id"]

    def _row(self, body: dict[str, Any], result: dict, failed: list, output: list) -> None:
        server, identity = self._server, request_hash(body)
        stage, model = stage_of(body), str(body.get("model"))
        attempt = server.counts.attempts(identity)
        server.counts.add("received", hash=identity, stage=stage, model=model)
        of = {"stage": stage, "model": model, "text": json.dumps(body.get("messages"))}
        kinds = (*ROWS, *ROW_REFUSALS, *SPOILING, *WRAPPING)
        rule = server.fault(kinds, identity, attempt, **of)
        kind = rule["kind"] if rule else ""
        wrong = server.wrong(body)
        if kind in ("row_500", "row_error"):
            wrong = llm_checks.error(500, "The server had an error.", kind="server_error")
        elif kind in ROW_REFUSALS:
            status, message, code, of_type = REFUSALS[kind]
            wrong = llm_checks.error(status, message, code=code, kind=of_type)
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
        if kind in (*GOOD, "timeout", "drop", "malformed_json"):  # the last ones are of the wire
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
        return sum(self._server.files[name]["bytes"] // 4 for name in files)

    def _set_status(self, batch: dict[str, Any], status: str) -> None:
        batch["status"], batch[f"{status}_at"] = status, int(time.time())
        self._log(batch)

    def _log(self, batch: dict[str, Any]) -> None:
        self._server.counts.add("batch", batch=batch, input=self._hashes[batch["id"]])


def _problem(code: str, line: int | None, message: str) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": None}


def _valid_metadata(metadata: Any) -> bool:
    return (
        isinstance(metadata, dict)
        and len(metadata) <= 16
        and all(isinstance(v, str) and len(k) <= 64 and len(v) <= 512 for k, v in metadata.items())
    )
