"""The stages that ask models, run together: generate, filter and judge in one flow.

An example goes to the judges as soon as it is generated, so that a budget that runs out leaves
whole examples, not a corpus that nobody has judged.
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
from data_pipeline.stages.streams import each, one_by_one, ordered, tapped
from inf_jax.core.errors import UserError


class Models:
    """Who is asked what, from the config.

    Attributes:
      query, triplet: of the stages query and generate.
      judges: of the stage judge.
      prices: by model.
    """

    def __init__(self, config: FactoryConfig):
        self.prices: dict[str, Price] = {}
        self.query = self._asker("query", "query", config.query)
        self.triplet = self._asker("generate", "generate", config.generate)
        first = self._asker("judge", "judge", config.judge)
        share, full = config.judge_2.share, config.judge.full_table
        second = self._asker("judge_2", "judge", config.judge_2) if config.judge_2.model else None
        self.judges = Judges(first, second, share=share, full_table=full)

    def settings(self) -> dict[str, list]:
        """What the answers depend on, by stage."""
        judges = [one.settings() for one in (self.judges.first, self.judges.second) if one]
        return {
            "generate": [self.query.settings(), self.triplet.settings()],
            "judge": [*judges, self.judges.share, self.judges.full_table],
        }

    def _asker(self, name: str, stage: str, section: StageConfig) -> RequestTemplate:
        options = {
            key: value
            for key, value, given in (
                ("temperature", section.temperature, section.temperature >= 0),
                ("reasoning_effort", section.reasoning_effort, section.reasoning_effort),
                ("seed", section.seed, section.seed >= 0),
            )
            if given
        }
        price = price_of(section.model, tuple(section.price))
        if self.prices.setdefault(section.model, price) != price:
            raise UserError(
                f"{name}.price={tuple(section.price)}: another stage gives {section.model} another "
                "price; a model has one"
            )
        prompt = Prompt.read(section.prompt)
        return RequestTemplate(stage, section.model, prompt, section.max_completion_tokens, options)


class Asking:
    """One process's asking: the endpoint, the journal, the budget, and the asker of the mode.

    Args:
      config: the factory's.
      out_dir: where the batches' files are.
      journal: of the corpus.
      models: see there.
      max_usd: cap on the corpus' whole cost; None for none.
      forget_batches: give up the batches of earlier runs, whatever they may have cost.
    """

    def __init__(
        self,
        config: FactoryConfig,
        *,
        out_dir: Path,
        journal: Journal,
        models: Models,
        max_usd: float | None,
        forget_batches: bool,
    ):
        llm = config.llm
        self._forget = forget_batches
        self._base_url, self._key_env, self._timeout_s = llm.base_url, llm.key_env, llm.timeout_s
        self._endpoint: Endpoint | None = None
        self._out_dir, self._journal, self._models = out_dir, journal, models
        self.budget = Budget(journal, max_usd)
        self._mode, self._max_attempts = llm.mode, llm.max_attempts
        self._concurrency, self._give_up_s = llm.concurrency, llm.give_up_s
        self._batch_requests, self._poll_s = llm.batch_requests, llm.batch_poll_s
        self.cap: BudgetReached | None = None
        self._asker: AsyncAsker | BatchAsker | None = None

    def connect(self) -> None:
        """Makes the client; raises UserError where there is no key, before any long work."""
        self._endpoint = self._endpoint or Endpoint(
            base_url=self._base_url, key_env=self._key_env, timeout_s=self._timeout_s
        )

    def run(
        self,
        items: Iterator[Item],
        total: int,
        files: dict[str, StageFile],
        *,
        check: Callable[[Item], Item],
    ) -> None:
        """Takes the items through the stages that `files` has, of generate, filter and judge.

        Args:
          items: from the file before the first of these stages.
          total: their number.
          files: stage -> its file.
          check: the stage filter.

        Raises:
          UserError: what stops a run; all answers are in the journal then, and no file is written.
        """
        self.connect()
        asyncio.run(self._run(items, total, files, check))

    async def _run(
        self,
        items: Iterator[Item],
        total: int,
        files: dict[str, StageFile],
        check: Callable[[Item], Item],
    ) -> None:
        try:
            asker = self._asker = await self._make_asker()
            await self._flow(asker, items, total, files, check)
        finally:
            if self._asker:
                await self._asker.settle()
            await self._endpoint.close()
            self._endpoint = self._asker = None

    async def _flow(
        self,
        asker: AsyncAsker | BatchAsker,
        items: Iterator[Item],
        total: int,
        files: dict[str, StageFile],
        check: Callable[[Item], Item],
    ) -> None:
        steps = {
            "generate": lambda flow: ordered(flow, self._generate, window=asker.window),
            "filter": lambda flow: one_by_one(flow, check),
            "judge": lambda flow: ordered(flow, self._judge, window=asker.window),
        }
        progress = Progress(dict.fromkeys(files, total), self._status)
        if isinstance(asker, BatchAsker):
            asker.on_change = progress.refresh
        with contextlib.ExitStack() as stack, self._interrupts(asker):
            stack.callback(progress.close)
            flow = each(items)
            for stage, file in files.items():
                write = stack.enter_context(file.writing())
                flow = tapped(steps[stage](flow), self._tap(stage, write, progress))
            async for _ in flow:
                pass

    async def _make_asker(self) -> AsyncAsker | BatchAsker:
        lifecycle = BatchLifecycle(
            self._endpoint,
            self._journal,
            self._out_dir / "batches",
            poll_s=self._poll_s,
            give_up_s=self._give_up_s,
        )
        if self._forget and (count := lifecycle.forget()):
            print(f"{count} batches of earlier runs are given up")
        batches = BatchAsker(
            self._endpoint,
            self._journal,
            self.budget,
            self._models.prices,
            lifecycle=lifecycle,
            batch_requests=self._batch_requests,
            max_attempts=self._max_attempts,
        )
        if self._mode == "batch":
            return batches
        try:
            if batches.active:
                print(f"looking for {batches.active} batches of an earlier run first")
                await batches.wait_for_batches()
        finally:
            await batches.settle()
        return AsyncAsker(
            self._endpoint,
            self._journal,
            self.budget,
            self._models.prices,
            concurrency=self._concurrency,
            max_attempts=self._max_attempts,
            give_up_s=self._give_up_s,
        )

    @contextlib.contextmanager
    def _interrupts(self, asker: AsyncAsker | BatchAsker) -> Iterator[None]:
        """SIGINT and SIGTERM: nothing more is sent, what is under way is waited for."""
        loop, caught = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)

        def stop() -> None:
            asker.stop(UserError("interrupted; all answers are kept: run again to go on"))
            for each_signal in caught:  # the next one ends the process
                loop.remove_signal_handler(each_signal)

        for each_signal in caught:
            loop.add_signal_handler(each_signal, stop)
        try:
            yield
        finally:
            for each_signal in caught:
                loop.remove_signal_handler(each_signal)

    def _tap(
        self, stage: str, write: Callable[[Item], None], progress: Progress
    ) -> Callable[[Item], None]:
        def tap(item: Item) -> None:
            write(item)
            progress.advance(stage)

        return tap

    async def _generate(self, item: Item) -> Item:
        query, triplet = self._models.query, self._models.triplet
        return await self._within_cap(
            "generate", item, generate(item, self._asker, query=query, triplet=triplet)
        )

    async def _judge(self, item: Item) -> Item:
        return await self._within_cap(
            "judge", item, judge(item, self._asker, judges=self._models.judges)
        )

    async def _within_cap(self, stage: str, item: Item, work: Awaitable[Item]) -> Item:
        try:
            return await work
        except BudgetReached as error:
            self.cap = error
            return item.drop(stage, "budget")

    def _status(self) -> str:
        cap = "" if self.budget.max_usd is None else f" of {self.budget.max_usd:g}"
        return f"${self.budget.usd:.4f}{cap}, {self._asker.status()}"
