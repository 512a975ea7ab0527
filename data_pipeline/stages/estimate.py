"""Estimates what a run will cost before anything is sent."""

import dataclasses
from collections.abc import Iterable

from data_pipeline.items import Item
from data_pipeline.llm.ask import Result, recorded_result
from data_pipeline.llm.budget import Price, Usage, estimated_tokens
from data_pipeline.llm.journal import Journal
from data_pipeline.llm.request import Request, RequestTemplate
from data_pipeline.llm.schemas import JudgeAnswer, QueryAnswer
from data_pipeline.stages.generate import example_of, triplet_payload
from data_pipeline.stages.judge import CROSSED, DIAGONAL, Judges, judge_payload
from inf_jax.data.records import Example

# Expected tokens of an answer if the journal has none of the stage and model yet.
_COMPLETION = {"query": 15.0, "generate": 600.0, "judge": 80.0}
_REASONING = 400.0  # additional tokens of reasoning models
_REASONING_MODELS = ("o1", "o3", "o4", "gpt-5")
_DIAGONAL_HOLDS = 0.7  # share of the examples that pass the diagonal
_QUERY = "x" * 50  # placeholder for a query, and twice for an instruction, not generated yet


@dataclasses.dataclass
class StageEstimate:
    """The requests of one stage."""

    stage: str
    model: str
    known: int = 0  # requests with a result in the journal
    requests: float = 0.0  # expected number left to send; the rest is about these
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    usd: float = 0.0


class Estimator:
    """Estimates the requests left for a corpus.

    Args:
      journal: holds the results so far, and the mean length of answers.
      prices: by model.
      batch: whether to use the Batch API's price.
    """

    def __init__(
        self, journal: Journal, prices: dict[str, Price], *, batch: bool, max_attempts: int
    ):
        self._journal, self._prices = journal, prices
        self._batch, self._max_attempts = batch, max_attempts
        self._means: dict[tuple[str, str], tuple[float, float] | None] = {}

    def estimate(
        self,
        items: Iterable[Item],
        *,
        query: RequestTemplate,
        triplet: RequestTemplate,
        judges: Judges,
    ) -> list[StageEstimate]:
        """Estimates all model stages in one pass over the output of the stage pairs.

        Assumes that examples not generated yet are as long as their pair, that all of them reach
        the judges, and that a share of those not judged yet needs the whole table.
        """
        stages = {
            "query": StageEstimate("query", query.model),
            "generate": StageEstimate("generate", triplet.model),
            "judge": StageEstimate("judge", judges.first.model),
        }
        if judges.second:
            stages["judge_2"] = StageEstimate("judge_2", judges.second.model)
        for item in items:
            text = item.query
            if not text:
                result = self._add(stages["query"], query.request({"passage": item.passage}))
                text = QueryAnswer.model_validate_json(result.text).query if result.text else _QUERY
            result = self._add(stages["generate"], triplet.request(triplet_payload(item, text)))
            if result.failure:
                continue
            example = example_of(item, text, result.text) if result.text else None
            for name, judge in judges.of(item).items():
                self._add_table(stages[name], judge, item, text, example, judges.full_table)
        return [stage for stage in stages.values() if stage.requests or stage.known]

    def _add_table(
        self,
        stage: StageEstimate,
        judge: RequestTemplate,
        item: Item,
        query: str,
        example: Example | None,
        full: bool,
    ) -> None:
        if example is None:
            payload = {"instruction": 2 * _QUERY, "query": query, "passage": item.passage}
            count = len(DIAGONAL) + len(CROSSED) * (1.0 if full else _DIAGONAL_HOLDS)
            self._add(stage, judge.request(payload), count=count)
            return
        share = 1.0  # expected, of the crossed combinations
        for combination in DIAGONAL:
            result = self._add(stage, judge.request(judge_payload(example, *combination)))
            relevant = result.text and JudgeAnswer.model_validate_json(result.text).relevant
            if not full and not relevant:
                share = min(share, 0.0 if result.text or result.failure else _DIAGONAL_HOLDS)
        for combination in CROSSED if share else ():
            self._add(stage, judge.request(judge_payload(example, *combination)), count=share)

    def _add(self, stage: StageEstimate, request: Request, *, count: float = 1.0) -> Result:
        """Counts a request; returns its result from the journal, or an empty one."""
        if result := recorded_result(self._journal, request.key, self._max_attempts):
            stage.known += 1
            return result
        prompt, completion = self._tokens(request)
        stage.requests += count
        stage.prompt_tokens += count * prompt
        stage.completion_tokens += count * completion
        # prices are linear in the tokens, so fractions add up
        usage = Usage(prompt, 0, completion)
        stage.usd += count * self._prices[request.model].usd(usage, batch=self._batch)
        return Result()

    def _tokens(self, request: Request) -> tuple[float, float]:
        key = request.stage, request.model
        if key not in self._means:
            self._means[key] = self._journal.mean_tokens(*key)
        if means := self._means[key]:
            completion = means[1]
        else:
            reasons = request.model.startswith(_REASONING_MODELS)
            completion = _COMPLETION[request.stage] + (_REASONING if reasons else 0.0)
        return estimated_tokens(request), min(completion, request.max_completion_tokens)
