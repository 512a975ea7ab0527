"""What the local server has seen: the oracle of the tests. With a state directory it survives."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

FIELDS = ("received", "written", "answered", "billed", "prompt", "cached", "completion")


class Counts:
    """Counts by request, and a log of all events.

    Attributes:
      requests: hash of a body -> counts: received; written (a response in full, whatever its
        status); answered (an answer that is as it must be, in full); billed, and the tokens of what
        was billed.
      about: hash -> (stage, model).
      faults: kind -> how often.
      most_active: most chat requests under way at once.
    """

    def __init__(self, state: Path | None):
        self.requests: dict[str, Counter] = {}
        self.about: dict[str, tuple[str, str]] = {}
        self.faults: Counter = Counter()
        self.http: Counter = Counter()
        self.batch_attempts: Counter = Counter()  # (kind of fault, hash of a file)
        self.active = self.most_active = 0
        self._log = None
        self.earlier: list[dict[str, Any]] = []
        if state:
            state.mkdir(parents=True, exist_ok=True)
            path = state / "events.jsonl"
            if path.exists():
                lines = path.read_bytes().split(b"\n")[:-1]  # a line cut by a kill is no event
                path.write_bytes(b"".join(line + b"\n" for line in lines))
                self.earlier = [json.loads(line) for line in lines]
                for event in self.earlier:
                    self._apply(event)
            self._log = open(path, "a", buffering=1)  # noqa: SIM115 (open as long as the process)

    def add(self, event: str, **values: Any) -> None:
        """One event: counted, and a line in the log."""
        values["event"] = event
        self._apply(values)
        if self._log:
            self._log.write(json.dumps(values) + "\n")

    def attempts(self, identity: str) -> int:
        """How often a request came so far."""
        return self.requests.get(identity, Counter())["received"]

    def began(self) -> None:
        """A chat request is under way."""
        self.active += 1
        self.most_active = max(self.most_active, self.active)

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
        """An answer was computed."""
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
