"""The journal: an append-only SQLite file of every request sent and every reply received.

A request is written before it is sent and its reply before it is used, so a kill at any point
loses no reply that had arrived; a request in flight at a kill has a row in `sent` and none in
`received`. Replies are looked up by the content hash of their request: no request is paid for
twice, and a changed prompt or model sends only the requests that it changes.
"""

import contextlib
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from inf_jax.core.errors import UserError
from inf_jax.io.locks import try_lock

_FORMAT = "inf_jax journal 1"
# Outcomes of a request.
ANSWER = "answer"  # valid
UNUSABLE = ("refusal", "schema", "truncated", "content_filter")
PAID = (ANSWER, *UNUSABLE)
REJECTED = "rejected"  # the endpoint does not accept this request; not paid
MODERATED = "moderated"  # rejected for its content, by the endpoint's own account
TOO_LONG = "too_long"  # rejected for its length, by the endpoint's own account
REJECTIONS = (REJECTED, MODERATED, TOO_LONG)
UNPAID = "unpaid"  # rate limit, server error, no connection: nothing was computed
UNKNOWN = "unknown"  # sent, but no answer arrived: may have been paid
# SQLite error codes of the disk or the permissions, not of a damaged file.
_IO_ERRORS = (
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM),
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
)
_SMALLEST = 512  # bytes of the smallest SQLite database
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (id INTEGER PRIMARY KEY, at REAL NOT NULL);
CREATE TABLE sent (
  id INTEGER PRIMARY KEY, run INTEGER NOT NULL, key TEXT NOT NULL, stage TEXT NOT NULL,
  model TEXT NOT NULL, batch TEXT, reserved REAL NOT NULL, at REAL NOT NULL);
CREATE INDEX sent_key ON sent (key);
CREATE INDEX sent_batch ON sent (batch) WHERE batch IS NOT NULL;
CREATE TABLE received (
  sent INTEGER PRIMARY KEY, outcome TEXT NOT NULL, text TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, usd REAL NOT NULL,
  at REAL NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE batch_events (
  batch TEXT NOT NULL, event TEXT NOT NULL, value TEXT NOT NULL, at REAL NOT NULL);
"""


class Sent(NamedTuple):
    """One attempt of a request; `reserved` is an upper bound of its cost in USD."""

    id: int
    key: str
    stage: str
    model: str
    reserved: float
    batch: str | None = None


class Received(NamedTuple):
    """The reply to one attempt; `text` is the answer's content, or what went wrong."""

    sent: int
    outcome: str
    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0


class Journal:
    """The journal of one corpus, locked for one process at a time.

    Args:
      path: the SQLite file, created if missing; `<path>.lock` is its lock file.
      retry_rejected: whether all rejections of earlier runs are void, not the unexplained alone.

    Raises:
      UserError: another run holds the lock, the file is damaged, not a journal, or not writable.
    """

    def __init__(self, path: str | os.PathLike, *, retry_rejected: bool = False):
        self.path = Path(path)
        self._void = REJECTIONS if retry_rejected else (REJECTED,)
        with contextlib.ExitStack() as opened, self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = opened.enter_context(_locked(self.path))
            if self.path.exists() and 0 < self.path.stat().st_size < _SMALLEST:
                raise sqlite3.DatabaseError("it is cut off")  # SQLite would start an empty one
            # threads take turns
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            opened.callback(self._db.close)
            self._open()
            self.run = self._scalar("SELECT coalesce(max(id), 0) + 1 FROM runs")
            with self._transaction() as db:
                db.execute("INSERT INTO runs VALUES (?, ?)", (self.run, time.time()))
            self._next = self._scalar("SELECT coalesce(max(id), 0) + 1 FROM sent")
            opened.pop_all()

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # answers survive a power cut
        problem = self._scalar("PRAGMA quick_check(1)")
        if problem != "ok":
            raise sqlite3.DatabaseError(problem)
        if not self._scalar("SELECT count(*) FROM sqlite_master"):
            triggers = "".join(
                f"CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table} "
                "BEGIN SELECT raise(ABORT, 'the journal is append-only'); END;\n"
                for table in ("meta", "runs", "sent", "received", "batch_events")
                for verb in ("UPDATE", "DELETE")
            )
            self._db.executescript(
                f"BEGIN;{_TABLES}{triggers}INSERT INTO meta VALUES ('format', '{_FORMAT}');COMMIT;"
            )
        version = self._scalar("SELECT value FROM meta WHERE name = 'format'")
        if version != _FORMAT:
            raise UserError(
                f"{self.path} is of another version ({version!r}, this is {_FORMAT!r}); "
                "choose a new out_dir, or use the version of inf_jax that wrote it"
            )

    def close(self) -> None:
        """Closes the file and releases the lock; all rows are on disk already."""
        self._db.close()
        self._lock.close()

    def new_id(self) -> int:
        """The id for the next `Sent` row."""
        self._next += 1
        return self._next - 1

    def write(
        self, rows: Iterable[Sent | Received], *, event: tuple[str, str, Any] | None = None
    ) -> None:
        """Writes the rows in one transaction; they are on disk when this returns.

        Args:
          event: (batch, event, value) written in the same transaction, see `batch_event`.

        Raises:
          UserError: the disk is full or the file damaged; none of the rows is written then.
        """
        now = time.time()
        sent, received = [], []
        for row in rows:
            if isinstance(row, Sent):
                sent.append((row.id, self.run, *row[1:4], row.batch, row.reserved, now))
            else:
                received.append((*row, now, _crc(row.outcome, row.text)))
        with self._errors(), self._transaction() as db:
            db.executemany("INSERT INTO sent VALUES (?, ?, ?, ?, ?, ?, ?, ?)", sent)
            db.executemany("INSERT INTO received VALUES (?, ?, ?, ?, ?, ?, ?, ?)", received)
            if event:
                _insert_event(db, *event)

    def outcomes(self, key: str) -> list[tuple[str, str]]:
        """(outcome, text) of all replies to a request that count now, oldest first.

        A rejection without an explanation counts in its own run alone: it may have been the
        endpoint's bad day.
        """
        query = "SELECT outcome, text, crc, run FROM sent JOIN received ON sent = id WHERE key = ?"
        with self._errors():
            rows = self._db.execute(f"{query} ORDER BY id", (key,)).fetchall()
            if any(_crc(outcome, text) != crc for outcome, text, crc, _ in rows):
                raise sqlite3.DatabaseError("the checksum of an answer is wrong")
        return [row[:2] for row in rows if row[3] == self.run or row[0] not in self._void]

    def rejected_before(self, key: str) -> bool:
        """Whether an earlier run has a rejection of this request."""
        query = (
            "SELECT count(*) FROM sent JOIN received ON sent = id "
            f"WHERE key = ? AND run < ? AND outcome IN {REJECTIONS}"
        )
        with self._errors():
            return bool(self._db.execute(query, (key, self.run)).fetchone()[0])

    def ever_answered(self, stage: str, model: str) -> bool:
        """Whether the model has answered a request of the stage, in any run."""
        query = (
            "SELECT EXISTS (SELECT 1 FROM sent JOIN received ON sent = id "
            f"WHERE stage = ? AND model = ? AND outcome IN {PAID})"
        )
        with self._errors():
            return bool(self._db.execute(query, (stage, model)).fetchone()[0])

    def batch_event(self, batch: str, event: str, value: Any = "") -> None:
        """Writes an event of a batch, see `data_pipeline.llm.batch_lifecycle`."""
        with self._errors(), self._transaction() as db:
            _insert_event(db, batch, event, value)

    def batches(self) -> dict[str, dict[str, Any]]:
        """Batch -> event -> value; batches in the order of their first event."""
        batches: dict[str, dict[str, Any]] = {}
        query = "SELECT batch, event, value FROM batch_events ORDER BY rowid"
        with self._errors():
            for batch, event, value in self._db.execute(query):
                batches.setdefault(batch, {})[event] = json.loads(value)
        return batches

    def pending_in_batch(self, batch: str) -> dict[str, Sent]:
        """Key -> `Sent` row of the batch's requests that have no reply."""
        query = (
            "SELECT id, key, stage, model, reserved, batch FROM sent LEFT JOIN received "
            "ON sent = id WHERE batch = ? AND outcome IS NULL"
        )
        with self._errors():
            return {row[1]: Sent(*row) for row in self._db.execute(query, (batch,))}

    def spent(self) -> tuple[float, float]:
        """(USD paid, upper bound in USD for requests without a reply), over all runs."""
        paid = "SELECT coalesce(sum(usd), 0.0) FROM received"
        unknown = (
            "SELECT coalesce(sum(reserved), 0.0) FROM sent LEFT JOIN received ON sent = id "
            f"WHERE outcome IS NULL OR outcome = '{UNKNOWN}'"
        )
        with self._errors():
            return self._scalar(paid), self._scalar(unknown)

    def mean_tokens(self, stage: str, model: str) -> tuple[float, float] | None:
        """Mean prompt and completion tokens of a stage's paid replies; None without any."""
        query = (
            "SELECT avg(prompt_tokens), avg(completion_tokens) FROM sent JOIN received ON sent = id"
            " WHERE stage = ? AND model = ? AND completion_tokens > 0"
        )
        with self._errors():
            means = self._db.execute(query, (stage, model)).fetchone()
        return None if means[0] is None else means

    def usage(self) -> dict[str, Any]:
        """Requests, answers, tokens and USD by stage and in total, over all runs."""
        query = (
            "SELECT stage, model, batch IS NOT NULL, outcome, count(*), sum(prompt_tokens), "
            "sum(completion_tokens), sum(usd), sum(reserved) FROM sent LEFT JOIN received "
            "ON sent = id GROUP BY 1, 2, 3, 4 ORDER BY min(id)"
        )
        stages: dict[str, Any] = {}
        with self._errors():
            rows = self._db.execute(query).fetchall()
            in_flight = self._scalar(
                "SELECT count(*) FROM sent LEFT JOIN received ON sent = id "
                "WHERE outcome IS NULL AND batch IS NULL"
            )
        for stage, model, batch, outcome, count, prompt, completion, usd, reserved in rows:
            mode = "batch" if batch else "async"
            zeros = dict.fromkeys(("requests", "answers", "prompt_tokens", "completion_tokens"), 0)
            zeros |= {"usd": 0.0, "usd_unknown": 0.0, "failed": {}}
            one = stages.setdefault(stage, {"model": model, "mode": mode} | zeros)
            for name, value in (("model", model), ("mode", mode)):
                if value not in one[name].split(" + "):
                    one[name] += f" + {value}"
            one["requests"] += count
            one["prompt_tokens"] += prompt or 0
            one["completion_tokens"] += completion or 0
            one["usd"] += usd or 0.0
            one["usd_unknown"] += reserved if outcome in (None, UNKNOWN) else 0.0
            if outcome == ANSWER:
                one["answers"] += count
            else:
                name = outcome or "in flight at a kill"
                one["failed"][name] = one["failed"].get(name, 0) + count
        return {
            "stages": stages,
            "usd": sum(one["usd"] for one in stages.values()),
            "usd_unknown": sum(one["usd_unknown"] for one in stages.values()),
            "runs": self.run,
            "in_flight_at_kills": in_flight,
        }

    def _scalar(self, query: str) -> Any:
        return self._db.execute(query).fetchone()[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk rolls back by itself
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeError) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _IO_ERRORS:
                raise UserError(
                    f"{self.path}: {error}; check the free space and the permissions of "
                    f"{self.path.parent}, then run again: the answers written so far are kept"
                ) from error
            if "UTF-8" in str(error):  # the message contains the text
                error = "invalid UTF-8"
            raise UserError(
                f"{self.path} is damaged or not a journal ({error}); restore a copy, or recover "
                f"what is left with `sqlite3 {self.path.name} .recover`, or move it away to start "
                "over and pay again"
            ) from None
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}; choose another out_dir") from error


def _crc(outcome: str, text: str) -> int:
    return zlib.crc32(f"{outcome}\0{text}".encode())


def _insert_event(db: sqlite3.Connection, batch: str, event: str, value: Any) -> None:
    row = (batch, event, json.dumps(value), time.time())
    db.execute("INSERT INTO batch_events VALUES (?, ?, ?, ?)", row)


def _locked(path: Path) -> TextIO:
    """The open lock file of a journal; closing it releases the lock."""
    lock = open(f"{path}.lock", "a")  # noqa: SIM115 (open as long as the journal)
    if not try_lock(lock.fileno(), if_unsupported=True):
        lock.close()
        raise UserError(
            f"{path}: another run is using this journal; wait for it, or choose another out_dir"
        )
    return lock
