"""Counts what the local server has seen, the tests' oracle; a state directory keeps it on disk."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FIELDS = ("received", "written", "answered", "billed", "prompt", "cached", "completion")


class Counts:
    """Counts by request, and a log of all events.

    Attributes:
      requests: hash of a body -> counts: received; written (complete responses of any status);
        answered (complete and valid answers); billed, and the tokens billed.
      about: hash -> (stage, model).
      faults: kind -> count.
      batch_attempts: (kind of fault, hash of a file) -> attempts.
      most_active: highest number of concurrent chat requests.
    """

    def __init__(self, state: Path | None):
        self.requests: dict[str, Counter] = {}
        self.about: dict[str, tuple[str, str]] = {}
        self.faults: Counter = Counter()
        self.http: Counter = Counter()
        self.batch_attempts: Counter = Counter()
        self.active = self.most_active = 0
        self._log = None
        self.earlier: list[dict[str, Any]] = []
        if state:
            state.mkdir(parents=True, exist_ok=True)
            path = state / "events.jsonl"
            if path.exists():
                lines = path.read_bytes().split(b"\n")[:-1]  # without a cut line
                path.write_bytes(b"".join(line + b"\n" for line in lines))
                self.earlier = [json.loads(line) for line in lines]
                for event in self.earlier:
                    self._apply(event)
            self._log = open(path, "a", buffering=1)  # noqa: SIM115 (open as long as the process)

    def add(self, event: str, **values: Any) -> None:
        """Counts an event and appends it to the log."""
        values["event"] = event
        self._apply(values)
        if self._log:
            self._log.write(json.dumps(values) + "\n")

    def attempts(self, identity: str) -> int:
        """Number of times a request was received so far."""
        return self.requests.get(identity, Counter())["received"]

    @contextlib.contextmanager
    def chat_active(self) -> Iterator[Callable[[], None]]:
        """Counts one chat request as active until the yielded function is called or the end."""
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        with contextlib.ExitStack() as stack:
            stack.callback(self._chat_ended)
            yield stack.close  # closing twice does nothing

    def _chat_ended(self) -> None:
        self.active -= 1

    def _apply(self, event: dict[str, Any]) -> None:
        kind, identity = event["event"], event.get("hash")
        if kind == "fault":
            self.faults[event["kind"]] += 1
        elif identity and kind in FIELDS:
            counts = self.requests.setdefault(identity, Counter())
            counts[kind] += 1
            if kind == "received":
                self.about[identity] = (event["stage"], event["model"])
            elif kind == "billed":
                for name in ("prompt", "cached", "completion"):
                    counts[name] += event[name]

    def bill(self, identity: str, usage: dict[str, Any]) -> None:
        """Counts the tokens of an answer that was computed."""
        self.add(
            "billed",
            hash=identity,
            prompt=usage["prompt_tokens"],
            cached=usage["prompt_tokens_details"]["cached_tokens"],
            completion=usage["completion_tokens"],
        )

    def summary(self, *, requests: bool) -> dict[str, Any]:
        """The counts as JSON."""
        totals, models = Counter(), {}
        for identity, counts in self.requests.items():
            totals.update(counts)
            models.setdefault(self.about[identity][1], Counter()).update(counts)
        result = {
            "totals": {name: totals[name] for name in FIELDS},
            "models": {name: dict(counts) for name, counts in models.items()},
            "distinct": len(self.requests),
            "faults": dict(self.faults),
            "http": dict(self.http),
            "most_active": self.most_active,
        }
        if requests:
            result["requests"] = {
                identity: {
                    **{name: counts[name] for name in FIELDS},
                    "stage": self.about[identity][0],
                    "model": self.about[identity][1],
                }
                for identity, counts in self.requests.items()
            }
        return result
