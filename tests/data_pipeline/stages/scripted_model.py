"""An ask function that answers by a Python function, for tests of the stages."""

import json

from data_pipeline.llm.ask import Result
from data_pipeline.llm.request import Prompt, Request, RequestTemplate


def template(stage: str, model: str = "m") -> RequestTemplate:
    """A template with the shipped prompt of the stage."""
    return RequestTemplate(stage, model, Prompt.read(f"{stage}_v1"), 100)


def payload_of(request: Request) -> dict:
    """The payload in a request."""
    return json.loads(request.body["messages"][1]["content"])


class ScriptedModel:
    """Answers by a function of (stage, model, payload); `asked` lists these.

    A string is a failure, anything else the answer's JSON.
    """

    def __init__(self, answer):
        self._answer, self.asked = answer, []

    async def __call__(self, request: Request) -> Result:
        payload = payload_of(request)
        self.asked.append((request.stage, request.model, payload))
        answer = self._answer(request.stage, request.model, payload)
        if isinstance(answer, str):
            return Result(failure=answer)
        return Result(text=json.dumps(answer))
