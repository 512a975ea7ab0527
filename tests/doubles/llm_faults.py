"""Scripted, reproducible faults: which requests or batches fail, and in which way.

A rule is a dict: `kind`; `rate` (share of the attempts, default 1.0); `times` (maximum for one
request, default 2, so that it succeeds in the end); `stage`, `model` and `contains`, a part of the
messages (restrict the rule); and by kind `retry_after` (the header's value), `seconds` (duration of
a hang or a slow answer), `code`.
"""

import json
from typing import Any

from llm_model import draw

# Strike before an answer is computed: nothing is billed.
REFUSING = (
    *("429", "500", "503", "quota", "not_json", "drop_before", "unauthorized"),
    *("error_200", "bad_request", "moderated", "content_policy", "forbidden"),
)
# Their responses: status, message, code and type; not_json and drop_before have none.
REFUSALS: dict[str, tuple[int, str, Any, str]] = {
    "429": (429, "Rate limit reached for requests", "rate_limit_exceeded", "requests"),
    "500": (500, "The server had an error while processing.", None, "server_error"),
    "503": (503, "The engine is currently overloaded.", None, "server_error"),
    "quota": (429, "You exceeded your current quota.", *["insufficient_quota"] * 2),
    "unauthorized": (401, "The key was revoked.", "invalid_api_key", ""),
    "drop_before": (500, "", None, ""),
    "error_200": (200, "Provider returned error", 429, ""),
    "bad_request": (400, "Bad Request", None, "invalid_request_error"),
    "moderated": (403, "Your chosen model requires moderation: input flagged", 403, ""),
    "content_policy": (400, "Rejected.", "content_policy_violation", ""),
    "forbidden": (403, "Forbidden", None, ""),
}
# Those that the endpoint may give for a row of a batch.
ROW_REFUSALS = ("error_200", "bad_request", "moderated", "content_policy", "forbidden")
# Strike afterwards: the answer is billed, but arrives late, cut off or useless.
SPOILING = (
    *("timeout", "drop", "slow", "malformed_json", "malformed_content", "wrong_schema"),
    *("refusal", "truncated", "content_filter", "no_usage"),
)
# Valid answers as other endpoints wrap them.
WRAPPING = ("fence", "think", "parts", "bom", "prose", "as_thoughts", "long")
GOOD = ("", "slow", "no_usage", *WRAPPING)
# Rows of a batch, whole batches, files.
ROWS = ("row_500", "row_error", "row_missing")
BATCHES = ("batch_stuck", "batch_failed", "batch_expired", "batch_create_500", "batch_create_lost")
FILES = ("upload_500", "content_500")
KINDS = (*REFUSING, *SPOILING, *WRAPPING, *ROWS, *BATCHES, *FILES)

_TRANSIENT = [
    {"kind": "429", "rate": 0.04, "retry_after": "0.05"},
    {"kind": "500", "rate": 0.02},
    {"kind": "503", "rate": 0.02},
    {"kind": "not_json", "rate": 0.01},
    {"kind": "drop_before", "rate": 0.02},
]
_LOST = [
    {"kind": "drop", "rate": 0.02},
    {"kind": "malformed_json", "rate": 0.01},
    {"kind": "slow", "rate": 0.02, "seconds": 0.3},
    {"kind": "timeout", "rate": 0.005, "times": 1, "seconds": 1.0},
]
_PAID = [  # one of them per request: rules of one `group` share their `times`
    {"kind": "wrong_schema", "rate": 0.02, "times": 1, "group": "paid"},
    {"kind": "malformed_content", "rate": 0.01, "times": 1, "group": "paid"},
    {"kind": "refusal", "rate": 0.01, "times": 1, "group": "paid"},
    {"kind": "truncated", "rate": 0.01, "times": 1, "group": "paid"},
    {"kind": "content_filter", "rate": 0.01, "times": 1, "group": "paid"},
]
_BATCH = [
    {"kind": "row_500", "rate": 0.03},
    {"kind": "row_error", "rate": 0.03},
    {"kind": "row_missing", "rate": 0.03},
    {"kind": "batch_expired", "rate": 0.2, "times": 1},
    {"kind": "batch_failed", "rate": 0.2, "times": 1},
    {"kind": "upload_500", "rate": 0.2, "times": 1},
    {"kind": "content_500", "rate": 0.2, "times": 1},
]
PRESETS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "transient": _TRANSIENT,
    "lost": _LOST,
    "paid": _PAID,
    "batch": _BATCH,
    "all": [*_TRANSIENT, *_LOST, *_PAID, *_BATCH],
}


def read_rules(text: str) -> list[dict[str, Any]]:
    """Parses `--faults`: names of presets joined by commas, or a JSON list of rules."""
    if text.lstrip().startswith("["):
        rules = json.loads(text)
    else:
        rules = [rule for name in text.split(",") if name for rule in PRESETS[name]]
    for rule in rules:
        if rule.get("kind") not in KINDS:
            raise SystemExit(f"fault {rule}: unknown kind; choose from {', '.join(KINDS)}")
    return rules


class Faults:
    """Picks the fault of each attempt.

    Args:
      rules: see above; the first that applies is taken.
      seed: of the random draws.

    Attributes:
      fired: (group, hash) -> number of strikes; restored from the log after a restart.
    """

    def __init__(self, rules: list[dict[str, Any]], seed: int):
        self.rules, self._seed = rules, seed
        self.fired: dict[tuple[str, str], int] = {}

    def pick(
        self,
        kinds: tuple[str, ...],
        identity: str,
        attempt: int,
        *,
        stage: str = "",
        model: str = "*",
        text: str = "",
    ) -> dict[str, Any] | None:
        """The rule that applies to this attempt, if any."""
        for number, rule in enumerate(self.rules):
            if rule["kind"] not in kinds or rule.get("stage", stage) != stage:
                continue
            if rule.get("model", model) != model:
                continue
            if rule.get("contains", "") not in text:
                continue
            if draw(self._seed, number, identity, attempt) >= rule.get("rate", 1.0):
                continue
            if self.fired.get((self.group(rule), identity), 0) >= rule.get("times", 2):
                continue
            self.count(rule, identity)
            return rule
        return None

    def stuck(self) -> bool:
        """Whether a rule keeps all batches in their first state until the rules change."""
        return any(rule["kind"] == "batch_stuck" for rule in self.rules)

    def group(self, rule: dict[str, Any]) -> str:
        """The key under which a rule's `times` are counted."""
        return rule.get("group") or str(self.rules.index(rule))

    def count(self, rule: dict[str, Any], identity: str) -> None:
        """Counts one strike of a rule."""
        key = (self.group(rule), identity)
        self.fired[key] = self.fired.get(key, 0) + 1
