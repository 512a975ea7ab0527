"""The files by which sentence-transformers knows a model, both ways: modules.json and the rest."""

import json
import string
from pathlib import Path
from typing import NamedTuple

from inf_jax.errors import UserError

# Our poolings -> (sentence-transformers' name, its switch in the form that all versions since 2
# read).
POOLINGS = {
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "cls": ("cls", "pooling_mode_cls_token"),
    "last": ("lasttoken", "pooling_mode_lasttoken"),
    "weighted_mean": ("weightedmean", "pooling_mode_weightedmean_tokens"),
}
_MODULES = ("Transformer", "Pooling", "Normalize")
_REQUIRED = object()


class StModel(NamedTuple):
    """What the files say.

    Attributes:
      pooling: mean, cls, last or weighted_mean.
      normalise: whether a Normalize module is there.
      max_length: tokens at which a text is cut; None where nothing says it.
      query_prompt, passage_prompt: text before each query and passage.
      path: folder of the weights inside the directory.
    """

    pooling: str
    normalise: bool
    max_length: int | None
    query_prompt: str = ""
    passage_prompt: str = ""
    path: str = ""


def prompt_of(template: str) -> str:
    """The words of a text template before its first field: a prompt is a prefix and no more."""
    return next(iter(string.Formatter().parse(template)))[0]


def write(directory: Path, model: StModel, *, width: int) -> None:
    """Writes the files; `width` is the encoder's, d."""
    paths = ["", "1_Pooling", "2_Normalize"][: 3 if model.normalise else 2]
    modules = []
    for n, (path, kind) in enumerate(zip(paths, _MODULES, strict=False)):
        (directory / path).mkdir(exist_ok=True)
        kind = f"sentence_transformers.models.{kind}"
        modules.append({"idx": n, "name": str(n), "path": path, "type": kind})
    switches = {switch: name == model.pooling for name, (_, switch) in POOLINGS.items()}
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": model.max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": model.query_prompt, "document": model.passage_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            **switches,
            "include_prompt": True,
        },
        "2_Normalize/config.json": {},
    }
    for name, value in files.items():
        if (directory / name).parent.exists():
            write_json(directory / name, value)


def read(directory: Path) -> StModel | None:
    """What the files say; None without a modules.json.

    Raises:
      UserError: a module or a pooling that our encoder does not cover; a damaged file.
    """
    path = directory / "modules.json"
    modules = read_json(path, default=None)
    if modules is None:
        return None
    kinds = tuple(module["type"].rpartition(".")[2] for module in modules)
    if kinds not in (_MODULES, _MODULES[:2]):
        raise UserError(f"{path}: {', '.join(kinds)} is not covered, only {', '.join(_MODULES)}")
    folder = directory / modules[0]["path"]
    config = read_json(directory / "config_sentence_transformers.json", default={})
    prompts = config.get("prompts") or {}
    return StModel(
        pooling=_read_pooling(directory / modules[1]["path"] / "config.json"),
        normalise=len(kinds) == 3,
        max_length=read_json(folder / "sentence_bert_config.json", default={}).get(
            "max_seq_length"
        ),
        query_prompt=prompts.get("query") or "",
        passage_prompt=prompts.get("document") or prompts.get("passage") or "",
        path=modules[0]["path"],
    )


def _read_pooling(path: Path) -> str:
    fields = read_json(path)
    if "pooling_mode" in fields:  # the form of version 6
        modes = fields["pooling_mode"]
        modes = [modes] if isinstance(modes, str) else list(modes)
        ours = {name: pooling for pooling, (name, _) in POOLINGS.items()}
    else:
        modes = [k for k, v in fields.items() if k.startswith("pooling_mode_") and v]
        ours = {switch: pooling for pooling, (_, switch) in POOLINGS.items()}
    if not fields.get("include_prompt", True):
        raise UserError(f"{path}: include_prompt=false is not covered")
    if len(modes) != 1 or modes[0] not in ours:
        raise UserError(
            f"{path}: pooling {' + '.join(modes) or 'none'} is not covered, one of "
            f"{', '.join(ours)} is"
        )
    return ours[modes[0]]


def read_json(path: Path, default=_REQUIRED):
    """A JSON file's value; `default` where there is none, else UserError; UserError if damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is not _REQUIRED:
            return default
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); make it again") from None


def write_json(path: Path, value) -> None:
    """Writes a value as indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
