"""What requests cost: prices, the most one can cost before it is sent, and the cap on their sum."""

import asyncio
import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.llm.journal import Journal
from data_pipeline.llm.request import Request
from inf_jax.core.errors import UserError

BATCH_FACTOR = 0.5
PRICES_FILE = Path(__file__).parent / "prices.json"
_MILLION = 1e6
_NOTHING_USD = 1e-9  # what sums of floats may leave where nothing is
_CHARS_PER_TOKEN = 4.0  # of English; for estimates only
_MOST_TOKENS = 10**9  # of one answer that are believed
_OVERHEAD = 64  # tokens at the most that an endpoint adds to a request


@dataclasses.dataclass(frozen=True)
class Price:
    """USD for a million tokens."""

    input: float
    cached_input: float
    output: float

    def paid(self, usage: "Usage", most: float, *, batch: bool) -> float:
        """The cost of an answer; `most` where the endpoint tells nothing of its tokens."""
        return self.usd(usage, batch=batch) if usage.told else most

    def usd(self, usage: "Usage", *, batch: bool) -> float:
        """The cost of so many tokens."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        usd = (
            fresh * self.input
            + usage.cached_tokens * self.cached_input
            + usage.completion_tokens * self.output
        ) / _MILLION
        return usd * (BATCH_FACTOR if batch else 1.0)

    def most(self, request: Request, *, batch: bool) -> float:
        """The most that a request can cost: a token is at least one byte of UTF-8."""
        usage = Usage(request.bytes + _OVERHEAD, 0, request.max_completion_tokens)
        return self.usd(usage, batch=batch)


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of one answer; `prompt_tokens` counts the cached ones too."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def told(self) -> bool:
        """Whether the endpoint said anything."""
        return bool(self.prompt_tokens or self.completion_tokens)

    @classmethod
    def of(cls, usage: Mapping[str, Any] | None) -> "Usage":
        """From an answer's `usage`; zeros where an endpoint tells nothing.

        Raises:
          AttributeError, TypeError, ValueError, OverflowError: it is no `usage`.
        """
        usage = usage or {}
        details = usage.get("prompt_tokens_details") or {}
        prompt = _tokens(usage.get("prompt_tokens"))
        return cls(
            prompt,
            min(prompt, _tokens(details.get("cached_tokens"))),
            _tokens(usage.get("completion_tokens")),
        )


def _tokens(value: Any) -> int:
    return min(_MOST_TOKENS, max(0, int(value or 0)))


def price_of(model: str, own: tuple[float, ...] = ()) -> Price:
    """The price of a model: `own` where given, else a known one.

    Args:
      own: (input, output) or (input, cached input, output).

    Raises:
      UserError: neither has it.
    """
    if own:
        if len(own) not in (2, 3) or not all(0 <= usd < math.inf for usd in own):
            raise UserError(
                f"price {tuple(own)} of {model}: give (input, output) or (input, cached input, "
                "output), USD for a million tokens"
            )
        return Price(own[0], own[1] if len(own) == 3 else own[0], own[-1])
    table = json.loads(PRICES_FILE.read_text())["models"]
    name = model
    if name not in table:  # a dated snapshot costs what its model does, but for those in the table
        name = re.sub(r"-20\d\d-\d\d-\d\d$", "", model)
    if name not in table:
        raise UserError(
            f"no price of model {model!r} in {PRICES_FILE.name}; give it as the stage's `price`: "
            "(input, output) in USD for a million tokens, (0, 0) for a server of your own"
        )
    return Price(**table[name])


def estimated_tokens(request: Request) -> float:
    """Prompt tokens to be expected; for what they are at the most see `Price.most`."""
    return request.bytes / _CHARS_PER_TOKEN


class Budget:
    """Keeps what is spent, may be spent and is under way below a cap.

    Args:
      journal: tells what all runs so far have spent.
      max_usd: the cap on the corpus' whole cost; None for none.
    """

    def __init__(self, journal: Journal, max_usd: float | None):
        self.max_usd = max_usd
        self._spent, self._unknown = journal.spent()
        self._under_way = 0.0
        self._settled = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None

    @property
    def usd(self) -> float:
        """USD spent for sure."""
        return self._spent

    @property
    def at_most(self) -> float:
        """USD spent, or under way, or perhaps billed without an answer."""
        return self._spent + self._unknown + self._under_way

    def fits(self, usd: float) -> bool:
        """Whether so much can be set aside now."""
        return self.max_usd is None or usd <= 0 or self.at_most + usd <= self.max_usd

    async def reserve(self, usd: float) -> None:
        """Sets aside what a request can cost; waits while others under way may free it.

        Raises:
          BudgetReached: the cap leaves no room, and nothing under way can change that.
        """
        while not self.fits(usd):
            if self._under_way <= _NOTHING_USD:
                raise BudgetReached(
                    f"the cap of {self.max_usd:g} USD is reached: {self._spent:.4f} spent, "
                    f"{self._unknown:.4f} perhaps billed for requests that were never answered, "
                    f"and the next request may cost {usd:.4f}; all answers are kept: raise "
                    "--max-usd and run again to go on"
                )
            self._settled.clear()
            await self._settled.wait()
        self._under_way += usd

    def settle(self, reserved: float, usd: float, *, unknown: bool = False) -> None:
        """A request has ended: with its cost, or `unknown`, and then its reserve stays spent."""
        self._under_way = max(0.0, self._under_way - reserved)
        self._spent += usd
        self._unknown += reserved if unknown else 0.0
        self._settled.set()
        self.on_change()

    def settle_earlier(self, reserved: float, usd: float, *, unknown: bool = False) -> None:
        """The same for a request that an earlier run sent: its reserve was counted as unknown."""
        self._unknown = max(0.0, self._unknown - (0.0 if unknown else reserved))
        self._spent += usd
        self._settled.set()
        self.on_change()


class BudgetReached(UserError):
    """The cap leaves no room for another request."""
