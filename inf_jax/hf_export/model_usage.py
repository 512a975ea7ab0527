"""The section of an exported model's README.md that shows how to use it, with code."""

import json
from pathlib import Path

import jinja2

from inf_jax.hf_export.parity import max_length
from inf_jax.hf_export.parity_loaders import INSTRUCTED_FILE
from inf_jax.hf_export.peft_adapter import FOLDER
from inf_jax.models.hf.sentence_transformers import prompt_of
from inf_jax.retriever.settings import RetrieverConfig

_TEMPLATE = Path(__file__).with_name("model_usage.md.jinja")


def usage(config: RetrieverConfig, *, adapter_base: str = "") -> str:
    """Markdown: queries and passages with each library, limits, and the adapter if there is one.

    Args:
      adapter_base: name of the model that the adapter is for; "": no adapter.
    """
    text = config.text
    prompts = [prompt_of(text.query_template), prompt_of(text.passage_template)]
    template = jinja2.Template(
        _TEMPLATE.read_text(encoding="utf-8"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    if Path(adapter_base).is_dir():
        adapter_base = Path(adapter_base).name  # no path of this machine
    return template.render(
        settings=config,
        separate=config.towers == "separate",
        limits=[max_length(config, role) for role in ("query", "passage")],
        query_code=_code(text.query_template),
        passage_code=_code(text.passage_template),
        prompts=[json.dumps(prompt) for prompt in prompts] if any(prompts) else [],
        dims=sorted(config.dims),
        instructed_file=INSTRUCTED_FILE,
        instructed_module=INSTRUCTED_FILE.removesuffix(".py"),
        adapter_base=adapter_base,
        adapter_folder=FOLDER,
    ).rstrip()


def _code(template: str) -> str:
    """Python code of a text without its prompt, which the library prepends."""
    escaped = prompt_of(template).replace("{", "{{").replace("}", "}}")
    rest = template[len(escaped) :]
    return "passage" if rest == "{passage}" else f"f{json.dumps(rest)}"
