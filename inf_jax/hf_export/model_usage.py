"""How an exported model is used: the part of its README.md with the code."""

import json
from pathlib import Path

from inf_jax.hf_export.parity import INSTRUCTED_FILE, max_length
from inf_jax.hf_export.peft_adapter import FOLDER
from inf_jax.models.hf.sentence_transformers import prompt_of
from inf_jax.retriever import RetrieverConfig

_WITH_INF_JAX = """With inf_jax:

```python
import inf_jax

model = inf_jax.load("path/to/this/directory")
queries = model.encode(["Glaucoma"], instruction="What are the treatments for it?")
passages = model.encode(["Eye drops that lower the pressure are the first treatment."])
print(queries @ passages.T)
```"""


def usage(config: RetrieverConfig) -> str:
    """The section on queries and passages."""
    return _joint(config) if config.query_encoder == "joint" else _apart(config)


def _joint(config: RetrieverConfig) -> str:
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


def _apart(config: RetrieverConfig) -> str:
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


def usage_of_adapter(config: RetrieverConfig, base: str) -> str:
    """The section on the adapter beside the weights; `base` is the model that it is for."""
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
