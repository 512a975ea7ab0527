"""What a run will cost, before anything is sent."""

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

# Tokens of an answer where the journal holds none of the stage and model yet.
_COMPLETION = {"query": 15.0, "generate": 600.0, "judge": 80.0}
_REASONING = 400.0  # more, of models that think first
_REASONING_MODELS = ("o1", "o3", "o4", "gpt-5")
_DIAGONAL_HOLDS = 0.7  # share of the examples whose crossed combinations are asked for
_QUERY = "x" * 50  # stands for a query, and twice for an instruction, that is not generated yet


@dataclasses.dataclass
class StageEstimate:
    """What a stage still has to ask.

    Attributes:
      stage, model: which.
      known: questions that the journal answers.
      requests: to be sent.
      prompt_tokens, completion_tokens: expected of these.
      usd: expected.
    """

    stage: str
    model: str
    known: int = 0
    requests: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    usd: float = 0.0


class Estimator:
    """Adds up the requests of a corpus.

    Args:
      journal: knows what is answered already, and how long answers have been.
      prices: of each model.
      batch: at the Batch API's price.
      max_attempts: see `asking.known`.
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
        """Of all stages, for pairs as they come from the stage pairs; one pass, flat memory.

        Examples that do not exist yet are taken to be as long as their pair; of what is generated,
        all is taken to reach the judges, and of what they have not judged, a share to need the
        whole table.
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
                found = self._add(stages["query"], query.request({"passage": item.passage}))
                text = QueryAnswer.model_validate_json(found.text).query if found.text else _QUERY
            found = self._add(stages["generate"], triplet.request(triplet_payload(item, text)))
            if found.failure:
                continue
            example = example_of(item, text, found.text) if found.text else None
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
        share = 1.0  # of the crossed combinations
        for combination in DIAGONAL:
            found = self._add(stage, judge.request(judge_payload(example, *combination)))
            if not full and not (
                found.text and JudgeAnswer.model_validate_json(found.text).relevant
            ):
                share = min(share, 0.0 if found.text or found.failure else _DIAGONAL_HOLDS)
        for combination in CROSSED if share else ():
            self._add(stage, judge.request(judge_payload(example, *combination)), count=share)

    def _add(self, stage: StageEstimate, request: Request, *, count: float = 1.0) -> Result:
        """Counts a question; its result where the journal has one, else an empty one."""
        result = recorded_result(self._journal, request.key, self._max_attempts)
        if result:
            stage.known += 1
            return result
        prompt, completion = self._tokens(request)
        stage.requests += count
        stage.prompt_tokens += count * prompt
        stage.completion_tokens += count * completion
        # the price is linear in the tokens, so that fractions of them add up
        usage = Usage(prompt, 0, completion)
        stage.usd += count * self._prices[request.model].usd(usage, batch=self._batch)
        return Result()

    def _tokens(self, request: Request) -> tuple[float, float]:
        which = request.stage, request.model
        if which not in self._means:
            self._means[which] = self._journal.mean_tokens(*which)
        if means := self._means[which]:
            completion = means[1]
        else:
            reasons = request.model.startswith(_REASONING_MODELS)
            completion = _COMPLETION[request.stage] + (_REASONING if reasons else 0.0)
        return estimated_tokens(request), min(completion, request.max_completion_tokens)
