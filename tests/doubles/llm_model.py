"""The local server's language model: a pure function of the seed and the request's body.

Its queries, examples and judgements are consistent: the judge decides from the texts alone, by the
recognisable form of a style and by whether every content word of the query occurs in the passage.
A share of the examples is wrong on purpose, so that the judge drops some.
"""

import dataclasses
import hashlib
import json
import re
from typing import Any

from llm_styles import BY_INSTRUCTION, STYLES, TOPICS, Sentences, Style

REASONING = re.compile(r"^(o\d|gpt-5)")
_STOP = frozenset(
    """a an and are as at be been by can could did do does for from had has have how i in into is it
    its may me my of on or our should so some such than that the their them there these they this to
    was we were what when where which who why will with would you your about any not no if one also
    more most many much very am us up out over after before between""".split()
)
_CACHE_BLOCK = 128
_FACT_WORDS = {topic: set(re.findall(r"\w+", " ".join(s).lower())) for topic, s in TOPICS.items()}


def draw(*parts: Any) -> float:
    """A pseudo-random number in [0, 1), a function of the parts."""
    data = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=7).digest()) / 2**56


def request_hash(body: dict[str, Any]) -> str:
    """A hash of a request's body that does not depend on the order of its fields."""
    data = json.dumps(body, sort_keys=True, ensure_ascii=False).encode()
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def stage_of(body: Any) -> str:
    """The factory stage of a chat request, from the name of its schema; "" if unknown."""
    try:
        return body["response_format"]["json_schema"]["name"].removesuffix("_answer")
    except (LookupError, TypeError, AttributeError):
        pass
    try:  # the schema in the text, for endpoints that take none
        text = body["messages"][0]["content"].partition("JSON Schema: ")[2]
        names = json.loads(text)["properties"]
    except (LookupError, TypeError, AttributeError, ValueError):
        return ""
    return "generate" if "query_negative" in names else "query" if "query" in names else "judge"


def content_words(text: str) -> list[str]:
    """The distinct words of a text that are not stop words, lower case, in order."""
    words = re.findall(r"\w+", text.lower())
    return list(dict.fromkeys(w for w in words if w not in _STOP)) or words[:1] or ["it"]


def answers(query: str, passage: str) -> bool:
    """Whether every content word of the query occurs in the passage."""
    return set(content_words(query)) <= set(re.findall(r"\w+", passage.lower()) or {"it"})


@dataclasses.dataclass(frozen=True)
class Model:
    """The model.

    Attributes:
      seed: of all draws.
      bad_rate: share of wrong examples.
      second_judge: name of the model that disagrees with all others now and then.
      flip_rate: share of its judgements that disagree.
    """

    seed: int = 0
    bad_rate: float = 0.05
    second_judge: str = "gpt-4o"
    flip_rate: float = 0.04

    def answer(self, body: dict[str, Any]) -> str:
        """The answer's content for a valid request."""
        stage, payload = stage_of(body), _payload(body)
        if stage == "query":
            value = self._query(payload)
        elif stage == "generate":
            value = self._example(payload)
        elif stage == "judge":
            value = self._judgement(payload, body["model"])
        else:
            return "Certainly."
        return json.dumps(value, ensure_ascii=False)

    def _query(self, payload: dict[str, Any]) -> dict[str, str]:
        passage = payload["passage"]
        words = sorted(content_words(passage), key=lambda w: (-len(w), w))[:12]
        few = sorted(words, key=lambda w: draw(self.seed, passage, w))[:3]
        starts = ("what is known about", "how does this matter for", "tell me about")
        start = starts[int(draw(self.seed, "start", passage) * len(starts))]
        return {"query": f"{start} {' '.join(sorted(few, key=passage.lower().find))}"}

    def _example(self, payload: dict[str, Any]) -> dict[str, str | None]:
        query, passage = payload["query"], payload["passage"]
        seed = (self.seed, query, passage, payload["instruction_type"])
        style, instruction = self._style(payload["instruction_type"], seed, without=None)
        other, other_instruction = self._style(payload["instruction_type"], seed, without=style)
        words, sentences = content_words(query), _sentences(passage)
        topic = " ".join(words)
        positive: str | None = style.passage(topic, sentences)
        if not style.label:
            if answers(query, passage) and style.fits(passage):
                positive = None  # the given passage fits
            else:
                positive = f"On {topic}. {positive}"
        negative_1 = other.passage(topic, sentences[1:] + sentences[:1])
        if not other.label:
            negative_1 = f"On {topic}. {negative_1}"
        swapped, facts, query_negative = self._swap(query, words, passage + negative_1, seed)
        topic_2 = " ".join(swapped)
        negative_2 = style.passage(topic_2, facts)
        if not style.label:
            negative_2 = f"On {topic_2}. {negative_2}"
        bad = draw(*seed, "bad") / (self.bad_rate or 1e-9)
        if bad < 1 / 3:  # the hard negative fits the positive instruction
            negative_1 = style.passage(topic, [*sentences[1:], "So it was found."])
            if not style.label:
                negative_1 = f"On {topic}. {negative_1}"
        elif bad < 2 / 3:  # the positive passage fails its instruction
            positive = other.passage(topic, sentences)
        elif bad < 1:  # the poisoned query is the same question
            query_negative = f"please tell: {query}"
            negative_2 = style.passage(f"{topic} please tell", facts)
        return {
            "instruction_positive": instruction,
            "document_positive": positive,
            "instruction_negative": other_instruction,
            "hard_negative_document_1": negative_1,
            "query_negative": query_negative,
            "hard_negative_document_2": negative_2,
        }

    def _style(self, kind: str, seed: tuple, *, without: Style | None) -> tuple[Style, str]:
        choices = [style for style in STYLES[kind] if style is not without]
        style = choices[int(draw(*seed, "style", without is None) * len(choices))]
        texts = style.instructions
        return style, texts[int(draw(*seed, "text", without is None) * len(texts))]

    def _swap(
        self, query: str, words: list[str], unlike: str, seed: tuple
    ) -> tuple[list[str], Sentences, str]:
        """The query with another topic: content words, facts, and the query."""
        old = max(words, key=len)
        taken = set(re.findall(r"\w+", f"{query} {unlike}".lower()))
        free = [t for t in TOPICS if t not in taken and old not in _FACT_WORDS[t]] or ["zeppelin"]
        new = free[int(draw(*seed, "swap") * len(free))]
        swapped, count = re.subn(rf"(?i)\b{re.escape(old)}\b", new, query)
        if not count:
            swapped = f"{query} {new}"
        facts = TOPICS.get(new, ["It floats on gas."])
        return content_words(swapped), facts, swapped

    def _judgement(self, payload: dict[str, Any], model: str) -> dict[str, Any]:
        query, passage = payload["query"], payload["passage"]
        style = BY_INSTRUCTION.get(payload["instruction"].strip())
        topical = answers(query, passage)
        fits = style is None or style.fits(passage)
        flip = draw(self.seed, "flip", payload["instruction"], query, passage) < self.flip_rate
        relevant = (topical and fits) ^ (flip and model == self.second_judge)
        reason = "It answers the query" if topical else "It does not answer the query"
        reason += ", and it meets the instruction." if fits else "; it fails the instruction."
        return {"reason": reason, "relevant": relevant}


def usage(
    body: dict[str, Any], content: str, *, heeded: tuple[str, ...], thoughts: int = 0
) -> dict[str, Any]:
    """The answer's `usage`: four bytes a token, prompts of 1024 tokens have a cached prefix.

    Args:
      heeded: fields with a limit of tokens that are heeded.
      thoughts: tokens of every answer beside its content.
    """
    messages = body["messages"]
    text = "".join(str(m["content"]) for m in messages)
    schema = json.dumps(body.get("response_format") or {})
    prompt = (len(text.encode()) + len(schema)) // 4 + 8
    system = len(str(messages[0]["content"]).encode()) // 4
    cached = system // _CACHE_BLOCK * _CACHE_BLOCK if prompt >= 1024 else 0
    reasoning = thoughts
    if REASONING.match(body["model"]):
        reasoning += 64 * int(draw(text) * 4)
    most = min([body[name] for name in heeded if body.get(name)], default=1 << 20)
    completion = min(most, len(content.encode()) // 4 + 1 + reasoning)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": min(reasoning, completion),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _payload(body: dict[str, Any]) -> dict[str, Any]:
    text = body["messages"][-1]["content"]
    try:
        return json.loads(text[text.index("{") : text.rindex("}") + 1])
    except ValueError:
        return {}


def _sentences(passage: str) -> Sentences:
    parts = [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+|\n+", passage)]
    found = [s for s in parts if s][:8]
    while len(found) < 2:
        found.append("That is what is known.")
    return found
