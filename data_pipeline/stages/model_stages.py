"""The stages that ask models (generate, filter, judge), run together as one stream of items.

An example goes to the judges as soon as it is generated, so that a budget that runs out leaves
complete examples, not a corpus without judgements.
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from data_pipeline.config import FactoryConfig, StageConfig
from data_pipeline.items import Item
from data_pipeline.llm.async_asker import AsyncAsker
from data_pipeline.llm.batch_asker import BatchAsker
from data_pipeline.llm.batch_lifecycle import BatchLifecycle
from data_pipeline.llm.budget import Budget, BudgetReached, Price, price_of
from data_pipeline.llm.client import Endpoint
from data_pipeline.llm.journal import Journal
from data_pipeline.llm.request import Prompt, RequestTemplate
from data_pipeline.stages.generate import generate
from data_pipeline.stages.judge import Judges, judge
from data_pipeline.stages.progress import Progress
from data_pipeline.stages.stage_files import StageFile
from data_pipeline.stages.streams import as_stream, mapped, ordered, tapped
from inf_jax.core.errors import UserError


class ModelSettings:
    """Request templates and prices of the stages that ask models, from the config.

    Attributes:
      query, triplet: templates of the stages query and generate.
      judges: templates of the stage judge.
      prices: model -> price.

    Raises:
      UserError: a prompt or a price is missing, or two stages give a model different prices.
    """

    def __init__(self, config: FactoryConfig):
        self.prices: dict[str, Price] = {}
        self.query = self._template("query", "query", config.query)
        self.triplet = self._template("generate", "generate", config.generate)
        first, second = self._template("judge", "judge", config.judge), None
        if config.judge_2.model:
            second = self._template("judge_2", "judge", config.judge_2)
        self.judges = Judges(first, second, config.judge_2.share, config.judge.full_table)

    def fingerprint_settings(self) -> dict[str, list]:
        """Stage -> everything that its answers depend on, as JSON."""
        judges = [one.settings() for one in (self.judges.first, self.judges.second) if one]
        return {
            "generate": [self.query.settings(), self.triplet.settings()],
            "judge": [*judges, self.judges.share, self.judges.full_table],
        }

    def _template(self, name: str, stage: str, section: StageConfig) -> RequestTemplate:
        options = {}
        if section.temperature >= 0:
            options["temperature"] = section.temperature
        if section.reasoning_effort:
            options["reasoning_effort"] = section.reasoning_effort
        if section.seed >= 0:
            options["seed"] = section.seed
        price = price_of(section.model, tuple(section.price))
        if self.prices.setdefault(section.model, price) != price:
            raise UserError(
                f"{name}.price={tuple(section.price)}: another stage gives {section.model} another "
                "price; use the same price in all stages"
            )
        prompt = Prompt.read(section.prompt)
        return RequestTemplate(
            stage,
            section.model,
            prompt,
            section.max_completion_tokens,
            options,
            section.response_format,
            section.token_limit,
        )


class ModelStages:
    """Runs the stages that ask models against one endpoint, journal and budget.

    Args:
      forget_batches: give up the batches of earlier runs, which stay possibly billed.
    """

    def __init__(
        self,
        config: FactoryConfig,
        settings: ModelSettings,
        journal: Journal,
        budget: Budget,
        *,
        forget_batches: bool,
    ):
        self._llm, self._batches_dir = config.llm, Path(config.out_dir) / "batches"
        self._settings, self._journal, self._budget = settings, journal, budget
        self._forget_batches = forget_batches
        self.cap: BudgetReached | None = None  # the error that says the cap was reached
        self._endpoint: Endpoint | None = None
        self._asker: AsyncAsker | BatchAsker | None = None

    def connect(self) -> None:
        """Creates the client, before any long work; raises UserError without an API key."""
        llm = self._llm
        self._endpoint = self._endpoint or Endpoint(
            base_url=llm.base_url, key_env=llm.key_env, timeout_s=llm.timeout_s
        )

    async def run(
        self,
        items: Iterator[Item],
        total: int,
        files: dict[str, StageFile],
        *,
        check: Callable[[Item], Item] | None,
    ) -> None:
        """Takes items through consecutive stages of generate, filter and judge.

        Args:
          items: output of the stage before.
          total: number of items.
          files: stage -> its output file, for the stages to run.
          check: the stage filter, if it is one of them.

        Raises:
          UserError: what stops a run; all answers are in the journal, and no file is written.
        """
        self.connect()
        try:
            asker = self._asker = await self._make_asker()
            steps = {
                "generate": lambda stream: ordered(stream, self._generate, window=asker.window),
                "filter": lambda stream: mapped(stream, check),
                "judge": lambda stream: ordered(stream, self._judge, window=asker.window),
            }
            progress = Progress(dict.fromkeys(files, total), self._status)
            if isinstance(asker, BatchAsker):
                asker.on_change = progress.refresh
            with contextlib.ExitStack() as stack, self._interrupts(asker):
                stack.callback(progress.close)
                stream = as_stream(items)
                for stage, file in files.items():
                    write = stack.enter_context(file.writing())
                    stream = tapped(steps[stage](stream), write)
                    stream = tapped(stream, lambda _, stage=stage: progress.advance(stage))
                async for _ in stream:
                    pass
        finally:
            if self._asker:
                await self._asker.settle()
            await self._endpoint.close()
            self._endpoint = self._asker = None

    async def _make_asker(self) -> AsyncAsker | BatchAsker:
        llm = self._llm
        lifecycle = BatchLifecycle(
            self._endpoint,
            self._journal,
            self._batches_dir,
            poll_s=llm.batch_poll_s,
            give_up_s=llm.give_up_s,
        )
        if self._forget_batches and (count := lifecycle.forget()):
            print(f"gave up {count} batches of earlier runs")
        shared = self._endpoint, self._journal, self._budget, self._settings.prices
        batches = BatchAsker(
            *shared,
            lifecycle=lifecycle,
            batch_requests=llm.batch_requests,
            max_attempts=llm.max_attempts,
        )
        if llm.mode == "batch":
            return batches
        try:
            if batches.active:
                print(f"waiting for {batches.active} batches of an earlier run first")
                await batches.wait_for_batches()
        finally:
            await batches.settle()
        return AsyncAsker(
            *shared,
            concurrency=llm.concurrency,
            max_attempts=llm.max_attempts,
            give_up_s=llm.give_up_s,
        )

    @contextlib.contextmanager
    def _interrupts(self, asker: AsyncAsker | BatchAsker) -> Iterator[None]:
        """On SIGINT or SIGTERM sends nothing more and waits for active requests."""
        loop, caught = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)

        def stop() -> None:
            asker.stop(UserError("interrupted; all answers are kept: run again to continue"))
            for number in caught:  # the next signal ends the process
                loop.remove_signal_handler(number)

        for number in caught:
            loop.add_signal_handler(number, stop)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    async def _generate(self, item: Item) -> Item:
        query, triplet = self._settings.query, self._settings.triplet
        work = generate(item, self._asker, query=query, triplet=triplet)
        return await self._within_cap("generate", item, work)

    async def _judge(self, item: Item) -> Item:
        work = judge(item, self._asker, judges=self._settings.judges)
        return await self._within_cap("judge", item, work)

    async def _within_cap(self, stage: str, item: Item, work: Awaitable[Item]) -> Item:
        try:
            return await work
        except BudgetReached as error:
            self.cap = error
            return item.drop(stage, "budget")

    def _status(self) -> str:
        cap = "" if self._budget.max_usd is None else f" of {self._budget.max_usd:g}"
        return f"${self._budget.usd:.4f}{cap}, {self._asker.status()}"
