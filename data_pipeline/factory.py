"""The triplet factory: its stages in order, each from the file of the one before.

    pairs     the source's pairs: checked, sampled, each with a type of instruction    pairs.jsonl
    generate  a model makes triplets of them                                       generated.jsonl
    filter    rules, near duplicates, texts of the evaluation                       filtered.jsonl
    judge     a model checks each relevance table                                     judged.jsonl
    score     cosines by a model of our own, where one is named                       scored.jsonl
    corpus    the human review, where there is one; one outcome a pair              outcomes.jsonl
              and what is kept, with InF-IR's field names                       corpus/train.jsonl
    report    report.json, audit.html, DATA_CARD.md
    build     the TFDS dataset inf_ir/<corpus.name>, which training reads

All but journal.sqlite is made from what is before it: any stage can be run again, at any time.
"""

STAGES = ("pairs", "generate", "filter", "judge", "score", "corpus", "report", "build")
_ASKING = ("generate", "filter", "judge")
_FILES = {
    "pairs": "pairs",
    "generate": "generated",
    "filter": "filtered",
    "judge": "judged",
    "score": "scored",
    "corpus": "outcomes",
}


class Factory:
    """One corpus.

    Args:
      config: checked.
      max_usd: cap on its whole cost, over all runs; None for none.

    Raises:
      UserError: a prompt or a price is missing, two stages give a model two prices, the key is not
        set, another run has the journal, or the journal is damaged.
    """

    def __init__(self, config: ReadLog, *, max_usd: float | None = None):
        self._config, self._max_usd = config, max_usd
        self.out_dir = Path(config.out_dir)
        self._models = Models(config)
        self.journal = Journal(self.out_dir / "journal.sqlite")
        self._asking = Asking(
            config,
            out_dir=self.out_dir,
            journal=self.journal,
            models=self._models,
            max_usd=max_usd,
        )
        self._files = self._stage_files()

    def run(self, stages: Sequence[str]) -> None:
        """Runs the stages that are named, or finds that they are done.

        Raises:
          UserError: bad input, an endpoint that refuses, a full disk; what stages have written
            before stays. BudgetReached, at the end: what the cap allowed is done.
        """
        for stage in stages:
            if stage in _ASKING:
                wanted = [s for s in _ASKING if s in stages]
                if stage == wanted[0]:
                    self._ask(wanted)
            else:
                getattr(self, f"_{stage}")()
        if self._asking.cap:
            raise self._asking.cap

    def estimate(self) -> list[StageEstimate]:
        """What the run still has to ask, after the stage pairs."""
        llm = self._config.llm
        estimator = Estimator(
            self.journal,
            self._models.prices,
            batch=llm.mode == "batch",
            max_attempts=llm.max_attempts,
        )
        return estimator.estimate(
            self._files["pairs"].read(),
            query=self._models.query,
            triplet=self._models.triplet,
            judges=self._models.judges,
        )

    def close(self) -> None:
        """Lets another process have the journal."""
        self.journal.close()
