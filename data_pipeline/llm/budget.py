"""Prices of models, upper bounds of a request's cost, and the cap on what a corpus may cost."""

import asyncio
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.llm.journal import Journal
from data_pipeline.llm.request import Request
from inf_jax.core.errors import UserError

BATCH_FACTOR = 0.5
PRICES_FILE = Path(__file__).parent / "prices.json"
_MILLION = 1e6
_ROUNDING_USD = 1e-9  # sums of floats this small are zero
_CHARS_PER_TOKEN = 4.0  # of English; for estimates only
_MAX_TOKENS = 10**9  # of one answer; a larger number in `usage` is an error
_OVERHEAD = 64  # upper bound of the tokens that an endpoint adds to a request


@dataclasses.dataclass(frozen=True)
class Price:
    """Price of a model, in USD per million tokens."""

    input: float
    cached_input: float
    output: float

    def paid(self, usage: "Usage", upper_bound: float, *, batch: bool, beyond: int = 0) -> float:
        """USD paid for an answer.

        Args:
          upper_bound: that of its request, which counts if the endpoint reports no tokens.
          beyond: tokens that the answer may have above its limit.
        """
        if usage.reported:
            return self.usd(usage, batch=batch)
        return upper_bound + self.usd(Usage(0, 0, max(0, beyond)), batch=batch)

    def usd(self, usage: "Usage", *, batch: bool) -> float:
        """USD for this number of tokens."""
        prompt, cached = usage.prompt_tokens, usage.cached_tokens
        usd = (prompt - cached) * self.input + cached * self.cached_input
        usd = (usd + usage.completion_tokens * self.output) / _MILLION
        return usd * (BATCH_FACTOR if batch else 1.0)

    def upper_bound(self, request: Request, *, batch: bool, most_tokens: int = 0) -> float:
        """Highest possible cost of a request in USD: a token is at least one byte of UTF-8.

        An answer has at most as many tokens as the request allows, or `most_tokens` if more.
        """
        most = max(request.max_completion_tokens, most_tokens)
        usage = Usage(request.bytes + _OVERHEAD, 0, most)
        return self.usd(usage, batch=batch)


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of one answer; `prompt_tokens` includes the cached ones."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def reported(self) -> bool:
        """Whether the endpoint reported the tokens; every prompt has some."""
        return self.prompt_tokens > 0

    @classmethod
    def parse(cls, usage: Mapping[str, Any] | None) -> "Usage":
        """From an answer's `usage` object; zeros without one.

        Raises:
          AttributeError, TypeError, ValueError, OverflowError: malformed.
        """
        usage = usage or {}
        details = usage.get("prompt_tokens_details") or {}
        prompt = _tokens(usage.get("prompt_tokens") or usage.get("input_tokens"))
        completion = _tokens(usage.get("completion_tokens") or usage.get("output_tokens"))
        # xAI and Gemini leave the thoughts out of it, but not out of the total
        completion = max(completion, _tokens(usage.get("total_tokens")) - prompt)
        return cls(prompt, min(prompt, _tokens(details.get("cached_tokens"))), completion)


def _tokens(value: Any) -> int:
    return min(_MAX_TOKENS, max(0, int(value or 0)))


def price_of(model: str, own: tuple[float, ...] = ()) -> Price:
    """The price of a model: `own` if given, else the one in prices.json.

    Args:
      model: the model's name; a dated snapshot costs what its model costs.
      own: (input, output) or (input, cached input, output), USD per million tokens.

    Raises:
      UserError: `own` is malformed, or the model is not in prices.json.
    """
    if own:
        if len(own) not in (2, 3) or not all(0 <= usd < math.inf for usd in own):
            raise UserError(
                f"price {tuple(own)} of {model}: give (input, output) or (input, cached input, "
                "output), USD per million tokens"
            )
        return Price(own[0], own[1] if len(own) == 3 else own[0], own[-1])
    table = json.loads(PRICES_FILE.read_text())["models"]
    name = model if model in table else re.sub(r"-20\d\d-\d\d-\d\d$", "", model)
    if name not in table:
        raise UserError(
            f"no price of model {model!r} in {PRICES_FILE.name}; give it as the stage's `price`: "
            "(input, output) in USD per million tokens, (0, 0) for a server of your own"
        )
    return Price(**table[name])


def estimated_tokens(request: Request) -> float:
    """Expected number of prompt tokens; for an upper bound see `Price.upper_bound`."""
    return request.bytes / _CHARS_PER_TOKEN


class Budget:
    """Keeps the sum of costs, reservations and possibly billed requests below a cap.

    Args:
      journal: holds what all runs so far have spent.
      max_usd: cap on the whole cost of the corpus; None for no cap.

    Attributes:
      usd: USD spent.
    """

    def __init__(self, journal: Journal, max_usd: float | None):
        self.max_usd = max_usd
        self.usd, self._unknown = journal.spent()
        self._reserved = 0.0
        self._settled = asyncio.Event()

    @property
    def worst_case(self) -> float:
        """USD spent, reserved, or possibly billed without an answer."""
        return self.usd + self._unknown + self._reserved

    def fits(self, usd: float) -> bool:
        """Whether this amount can be reserved now."""
        return self.max_usd is None or usd <= 0 or self.worst_case + usd <= self.max_usd

    async def reserve(self, usd: float) -> None:
        """Reserves an upper bound of a request's cost; waits while active requests may free it.

        Raises:
          BudgetReached: the cap leaves no room and no reservation is left that could free some.
        """
        while not self.fits(usd):
            if self._reserved <= _ROUNDING_USD:
                raise BudgetReached(
                    f"the cap of {self.max_usd:g} USD is reached: {self.usd:.4f} spent, "
                    f"{self._unknown:.4f} possibly billed for requests without an answer, "
                    f"and the next request may cost {usd:.4f}; all answers are kept: raise "
                    "--max-usd and run again to continue"
                )
            self._settled.clear()
            await self._settled.wait()
        self._reserved += usd

    def settle(
        self, reserved: float, usd: float, *, unknown: bool = False, earlier: bool = False
    ) -> None:
        """Replaces a reservation by its cost, or counts all of it as possibly billed (unknown).

        An `earlier` run's request is no reservation: it is counted as possibly billed so far.
        """
        if earlier:
            self._unknown = max(0.0, self._unknown - (0.0 if unknown else reserved))
        else:
            self._reserved = max(0.0, self._reserved - reserved)
            self._unknown += reserved if unknown else 0.0
        self.usd += usd
        self._settled.set()


class BudgetReached(UserError):
    """The cap on the cost leaves no room for another request."""
