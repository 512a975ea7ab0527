"""The triplet factory: runs the stages in order, each on the output file of the one before.

    pairs     pairs of the source: filtered, sampled, with an instruction type         pairs.jsonl
    generate  a model writes triplets for them                                     generated.jsonl
    filter    rules, near duplicates, benchmark contamination                       filtered.jsonl
    judge     a model checks each relevance table                                     judged.jsonl
    score     cosines of an embedding model (optional)                                scored.jsonl
    corpus    the human review (optional); one outcome per pair                     outcomes.jsonl
              and the kept examples with InF-IR's field names                   corpus/train.jsonl
              and all examples, those that were dropped too                corpus/unfiltered.jsonl
    report    report.json, audit.html, DATA_CARD.md
    build     the TFDS dataset data/inf_ir/factory, which training reads

Everything but journal.sqlite can be regenerated from the stage before, at any time.
"""

import asyncio
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.config import FactoryConfig
from data_pipeline.items import Item
from data_pipeline.llm.budget import Budget
from data_pipeline.llm.journal import Journal
from data_pipeline.quality.contamination import BenchmarkTexts
from data_pipeline.quality.filters import FilterSettings, ItemFilter
from data_pipeline.quality.rules import Limits
from data_pipeline.report.audit import write_audit
from data_pipeline.report.data_card import CardInfo, write_data_card
from data_pipeline.report.sample import AuditSample
from data_pipeline.report.summary import summarise
from data_pipeline.stages.estimate import Estimator, StageEstimate
from data_pipeline.stages.model_stages import ModelSettings, ModelStages
from data_pipeline.stages.pairs import make_items, source_pairs
from data_pipeline.stages.review import apply_review, read_review
from data_pipeline.stages.score import score_items
from data_pipeline.stages.stage_files import StageFile, stage_files
from inf_jax.config.command_line import command_line
from inf_jax.core.errors import UserError
from inf_jax.io.atomic import atomic_file
from inf_jax.io.json_files import sha256_of_file, write_json

STAGES = ("pairs", "generate", "filter", "judge", "score", "corpus", "report", "build")
_MODEL_STAGES = ("generate", "filter", "judge")


class Factory:
    """Makes one corpus.

    Args:
      config: checked.
      max_usd: cap on the whole cost of the corpus, over all runs; None for no cap.
      forget_batches: give up the batches of earlier runs.
      retry_rejected: ask again what the endpoint rejected in earlier runs.

    Attributes:
      files: stage -> its output file.
      report: None before the stage report.
      dataset: the dataset's directory; None before the stage build.

    Raises:
      UserError: a prompt or a price is missing, two stages give a model different prices, the
        journal is damaged, or another run is using it.
    """

    def __init__(
        self,
        config: FactoryConfig,
        *,
        max_usd: float | None = None,
        forget_batches: bool = False,
        retry_rejected: bool = False,
    ):
        self._config = config
        self.report: dict[str, Any] | None = None
        self.dataset: Path | None = None
        self.out_dir = Path(config.out_dir)
        self._settings = ModelSettings(config)
        self.files = stage_files(config, self._settings.fingerprint_settings())
        self._retry_rejected = retry_rejected
        path = self.out_dir / "journal.sqlite"
        self.journal = Journal(path, retry_rejected=retry_rejected)
        budget = Budget(self.journal, max_usd)
        self._model_stages = ModelStages(
            config, self._settings, self.journal, budget, forget_batches=forget_batches
        )

    def run(self, stages: Sequence[str]) -> None:
        """Runs the given stages; a stage whose output is complete and up to date is skipped.

        Raises:
          UserError: bad input, an endpoint that refuses, a full disk; outputs of earlier stages
            are kept.
          BudgetReached: at the end, after everything that the cap allows is done.
        """
        if set(stages) & set(_MODEL_STAGES):
            self._model_stages.connect()
        try:
            for group in _groups(stages):
                if group[0] in _MODEL_STAGES:
                    self._run_model_stages(group)
                else:
                    getattr(self, f"_{group[0]}")()
        except UserError as error:
            if self._model_stages.cap:  # the cause, e.g. of too few examples for two splits
                raise self._model_stages.cap from error
            raise
        if self._model_stages.cap:
            raise self._model_stages.cap

    def estimate(self) -> list[StageEstimate]:
        """Estimates what is left to ask; needs the output of the stage pairs."""
        batch, max_attempts = self._config.llm.mode == "batch", self._config.llm.max_attempts
        settings = self._settings
        estimator = Estimator(self.journal, settings.prices, batch=batch, max_attempts=max_attempts)
        return estimator.estimate(
            self.files["pairs"].read(),
            query=settings.query,
            triplet=settings.triplet,
            judges=settings.judges,
        )

    def close(self) -> None:
        """Closes and unlocks the journal."""
        self.journal.close()

    def _before(self, stage: str) -> StageFile:
        """The output that a stage reads; raises UserError if it is missing."""
        names = list(self.files)
        source = names[names.index(stage) - 1] if stage in names else names[-1]
        file = self.files[source]
        if not file.metadata():
            raise UserError(
                f"{file.path} is missing, damaged or made with other settings; run all stages, or "
                f"run --stages={source} first"
            )
        return file

    def _done(self, stage: str) -> bool:
        if self._retry_rejected and stage != "pairs":
            return False  # the answers so far come from the journal
        metadata = self.files[stage].metadata()
        if done := bool(metadata and metadata["complete"]):
            print(f"{stage}: reusing {self.files[stage].path} ({metadata['items']:,} pairs)")
        return done

    def _pairs(self) -> None:
        if self._done("pairs"):
            return
        config, source, dropped = self._config, self._config.source, Counter()
        types, weights = config.generate.types, config.generate.type_weights
        items = make_items(
            source_pairs(source, dropped=dropped),
            dropped=dropped,
            limits=Limits(query_words=source.query_words, document_words=source.passage_words),
            evaluation=self._evaluation(),
            count=source.count or None,
            seed=config.seed,
            types=dict(zip(types, weights or [1.0] * len(types), strict=True)),
        )
        with self.files["pairs"].writing(lambda: {"dropped": dict(dropped)}) as write:
            for item in tqdm(items, desc="pairs", unit=" pairs", disable=None):
                write(item)

    def _evaluation(self) -> BenchmarkTexts | None:
        paths, threshold = self._config.evaluation.paths, self._config.evaluation.threshold
        return BenchmarkTexts.read(paths, threshold=threshold) if paths else None

    def _run_model_stages(self, stages: list[str]) -> None:
        while stages and self._done(stages[0]):
            stages = stages[1:]
        if not stages:
            return
        before = self._before(stages[0])
        check = self._item_filter() if "filter" in stages else None
        files = {stage: self.files[stage] for stage in stages}
        total = before.metadata()["items"]
        asyncio.run(self._model_stages.run(before.read(), total, files, check=check))

    def _item_filter(self) -> ItemFilter:
        own, source = self._config.filter, self._config.source
        settings = FilterSettings(
            limits=Limits(
                query_words=source.query_words,
                instruction_words=own.instruction_words,
                document_words=own.document_words,
            ),
            languages=own.languages,
            near_duplicate=own.near_duplicate,
            near_same=own.near_same,
            leak_words=own.leak_words,
        )
        return ItemFilter(settings, self._evaluation())

    def _score(self) -> None:
        if "score" not in self.files or self._done("score"):
            return
        config, items = self._config.score, self._before("score").read()
        scored = score_items(items, model=config.model, band=(config.low, config.high), batch=32)
        with self.files["score"].writing() as write:
            for item in tqdm(scored, desc="score", unit=" pairs", disable=None):
                write(item)

    def _corpus(self) -> None:
        path = self.out_dir / "corpus" / "train.jsonl"
        every = path.with_name("unfiltered.jsonl")
        metadata = self.files["corpus"].metadata()
        recorded = metadata["extra"].get("corpus") if metadata else None
        complete = path.exists() and every.exists() and recorded == sha256_of_file(path)
        if complete and self._done("corpus"):
            return
        items = self._before("corpus").read()
        review = self._config.review
        if review.path:
            decisions = read_review(review.path)
            items = apply_review(items, decisions, accept_overrides=review.accept_overrides)
        # the metadata of the outcomes, which says that both are complete, is written last
        with (
            self.files["corpus"].writing(lambda: {"corpus": sha256_of_file(path)}) as write,
            atomic_file(path) as corpus,
            atomic_file(every) as unfiltered,
        ):
            for item in items:
                write(item)
                if item.example:
                    row = _row(item).encode() + b"\n"
                    unfiltered.write(row)
                    if item.alive:
                        corpus.write(row)

    def _report(self) -> None:
        outcomes, config = self._before("report"), self._config
        pairs_report = (self.files["pairs"].metadata() or {"extra": {}})["extra"]
        sample = AuditSample(kept=config.audit.count, dropped=config.audit.count, seed=config.seed)
        self.report = report = summarise(
            outcomes.read(), self.journal.usage(), pairs_report=pairs_report, tap=sample.add
        )
        name = config.corpus.name or self.out_dir.name
        write_json(self.out_dir / "report.json", report)
        write_audit(self.out_dir / "audit.html", report, sample.items(), title=name)
        info = CardInfo(
            name=name,
            source=f"`{config.source.kind}`: {Path(config.source.path).name}",
            licence=config.source.license,
            languages=config.filter.languages,
            config=dataclasses.asdict(config),
            command=command_line(),
        )
        write_data_card(self.out_dir / "DATA_CARD.md", report, info)

    def _build(self) -> None:
        from data_pipeline.dataset.build import build  # imports TFDS, which is slow

        outcomes, corpus = self._before("build").metadata(), self._config.corpus
        if not outcomes["alive"]:
            reasons = Counter(item.reasons[0] for item in self.files["corpus"].read())
            most = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(3))
            raise UserError(f"none of {outcomes['items']:,} pairs was kept: {most}")
        data_dir = corpus.data_dir or self.out_dir / "data"
        path = self.out_dir / "corpus" / "train.jsonl"
        options = {"path_train": path, "dev_fraction": corpus.dev_fraction}
        try:
            self.dataset, _ = build("factory", data_dir, **options)
        except UserError:
            if corpus.data_dir:
                raise
            # the dataset of an older corpus in our own directory may be replaced
            self.dataset, _ = build("factory", data_dir, **options, overwrite=True)


def _groups(stages: Sequence[str]) -> list[list[str]]:
    """The stages in groups: consecutive model stages together, others alone."""
    groups: list[list[str]] = []
    for stage in stages:
        before = STAGES[STAGES.index(stage) - 1]
        if stage in _MODEL_STAGES[1:] and groups and groups[-1][-1] == before:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return groups


def _row(item: Item) -> str:
    """A line of the corpus: InF-IR's fields, provenance and scores."""
    row = dataclasses.asdict(item.example) | {
        "instruction_type": item.instruction_type,
        "provenance": item.provenance,
        "scores": item.scores,
    }
    return json.dumps(row, ensure_ascii=False)
