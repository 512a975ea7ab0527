"""Reads and writes the files of a sentence-transformers model: modules.json and the rest."""

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from inf_jax.core.choices import SIMILARITIES
from inf_jax.core.errors import UserError
from inf_jax.io.json_files import path_inside, read_json, write_json
from inf_jax.io.safetensors import STORED_DTYPES, Planned, stored_tensors, write_tensors
from inf_jax.models.hf.module_settings import (
    POOLING_SPELLINGS,
    TransformerSettings,
    check_normalize,
    read_pooling,
    read_transformer,
    uncovered,
)

_DENSE = {  # field of a Dense module's config.json -> covered values (None for any)
    "in_features": None,
    "out_features": None,
    "bias": (True, False),
    "activation_function": ("torch.nn.modules.linear.Identity", "torch.nn.Identity", None),
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding", None),
    "use_residual": (False,),
}


class StModel(NamedTuple):
    """A sentence-transformers model: Transformer, Pooling, any Dense, optionally Normalize.

    Attributes:
      pooling: name in POOLING_SPELLINGS.
      normalise: vectors have unit length.
      query_prompt, passage_prompt: prefixes of `encode_query` and `encode_document`.
      include_prompt: whether pooling includes the tokens of a prompt.
      path: folder of the weights inside the directory.
      dense: folders of the linear layers after pooling, in order.
      truncate_dim: vectors are cut after so many entries; 0: not.
      similarity: how vectors are compared, a name in SIMILARITIES.
      transformer: lengths, and whether texts are lower-cased.
    """

    pooling: str
    normalise: bool
    query_prompt: str = ""
    passage_prompt: str = ""
    include_prompt: bool = True
    path: str = ""
    dense: tuple[str, ...] = ()
    truncate_dim: int = 0
    similarity: str = "cosine"
    transformer: TransformerSettings = TransformerSettings()


def prompt_of(template: str) -> str:
    """The part of a text template before its first field; a prompt can only be a prefix."""
    return next(iter(string.Formatter().parse(template)))[0]


def write(
    directory: Path, model: StModel, *, width: int, projection: Mapping | None = None
) -> None:
    """Writes the files of a model, without the Transformer's own; `width` is that of token states.

    `projection`, {"kernel": float32[d, e], optionally "bias": float32[e]}, makes a Dense module.
    """
    dense, normalise = ["Dense"] * (projection is not None), ["Normalize"] * model.normalise
    modules, folders = [], {}
    for n, kind in enumerate(["Transformer", "Pooling", *dense, *normalise]):
        folders[kind] = f"{n}_{kind}" if n else ""
        (directory / folders[kind]).mkdir(exist_ok=True)
        kind, path = f"sentence_transformers.models.{kind}", folders[kind]
        modules.append({"idx": n, "name": str(n), "path": path, "type": kind})
    if dense:
        _write_dense(directory / folders["Dense"], projection)
    switches = {switch: name == model.pooling for name, (_, switch) in POOLING_SPELLINGS.items()}
    pooling = {"word_embedding_dimension": width, **switches, "include_prompt": True}
    prompts = {"query": model.query_prompt, "document": model.passage_prompt}
    usage = {"prompts": prompts, "default_prompt_name": None}
    usage |= {"similarity_fn_name": model.similarity}
    usage |= {"truncate_dim": model.truncate_dim} if model.truncate_dim else {}
    max_length, *lengths, lower_case = model.transformer
    transformer = {"max_seq_length": max_length, "do_lower_case": lower_case}
    # Versions before 6 cannot open a file with these.
    names = ("query_length", "document_length")
    transformer |= {name: x for name, x in zip(names, lengths, strict=True) if x}
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": transformer,
        "config_sentence_transformers.json": usage,
        "1_Pooling/config.json": pooling,
    }
    if normalise:
        files[f"{folders['Normalize']}/config.json"] = {}
    for name, value in files.items():
        write_json(directory / name, value)


def read_model(directory: Path) -> StModel | None:
    """Reads the files of a model; None if there is no modules.json.

    Raises:
      UserError: a module or pooling that is not covered; a damaged file.
    """
    path = directory / "modules.json"
    modules = _modules(path)
    if not modules:
        return None
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    # Dropout does nothing outside training.
    after = [kind for kind in kinds[2:] if kind != "Dropout"]
    dense = tuple(_dense_folders(modules))
    normalise = "Normalize" in after
    expected = ["Dense"] * len(dense) + ["Normalize"] * after.count("Normalize")
    if kinds[:2] != ["Transformer", "Pooling"] or after != expected:
        raise UserError(
            f"{path}: modules {', '.join(kinds)} are not covered, only Transformer, Pooling, any "
            "Dense, and Normalize, in this order"
        )
    for module, kind in zip(modules, kinds, strict=True):
        if kind == "Normalize":
            check_normalize(directory / module["path"] / "config.json")
    pooling, include_prompt = read_pooling(directory / modules[1]["path"] / "config.json")
    query_prompt, passage_prompt, truncate_dim, similarity = _read_usage(
        directory / "config_sentence_transformers.json"
    )
    return StModel(
        pooling=pooling,
        normalise=normalise,
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
        include_prompt=include_prompt,
        path=modules[0]["path"],
        dense=dense,
        truncate_dim=truncate_dim,
        similarity=similarity,
        transformer=read_transformer(directory / modules[0]["path"]),
    )


def transformer_of_run(directory: Path) -> TransformerSettings:
    """What of the first module in modules.json concerns a run; the defaults without that file."""
    modules = _modules(directory / "modules.json")
    folder = directory / modules[0]["path"] if modules else None
    return read_transformer(folder, run=True) if folder else TransformerSettings()


def projection_of(directory: Path, *, width: int) -> dict[str, np.ndarray] | None:
    """`read_projection` of the Dense modules in modules.json; other modules are ignored."""
    dense = _dense_folders(_modules(directory / "modules.json"))
    return read_projection(directory, dense, width=width)


def read_projection(
    directory: Path, dense: Sequence[str], *, width: int
) -> dict[str, np.ndarray] | None:
    """The product of the linear layers in these folders, in order, as one layer; None if none.

    Returns:
      {"kernel": float32[d, e], "bias": float32[e]} with d = `width`; no "bias" if no layer has one.

    Raises:
      UserError: a layer has an activation or a residual connection, or is damaged.
    """
    kernel = bias = None
    for folder in dense:
        matrix, own_bias = _read_dense(directory / folder)
        if matrix.shape[0] != width:
            raise UserError(
                f"{directory / folder}: in_features={matrix.shape[0]}, its input has {width}"
            )
        width = matrix.shape[1]
        # float64, so that the product is rounded once
        bias = own_bias if bias is None else bias @ matrix + (0 if own_bias is None else own_bias)
        kernel = matrix if kernel is None else kernel @ matrix
    layer = {"kernel": kernel, "bias": bias}
    return {name: x.astype(np.float32) for name, x in layer.items() if x is not None} or None


def _modules(path: Path) -> list[dict[str, Any]]:
    """The modules that modules.json lists, each with a type and a path; [] without the file."""
    if not path.exists():
        return []
    modules = read_json(path)
    if not (modules and isinstance(modules, list)) or not all(
        isinstance(module, dict)
        and isinstance(module.get("type"), str)
        and isinstance(module.get("path", ""), str)
        and isinstance(module.get("kwargs", []), list)
        for module in modules
    ):
        raise UserError(f"{path}: not a list of modules with a type and a path; download it again")
    modules = [{"path": "", "name": str(n)} | module for n, module in enumerate(modules)]
    names = [str(module["name"]) for module in modules]
    for module in modules:
        path_inside(path.parent, module["path"], path)
    for module in modules:
        kind = module["type"]
        if not kind.startswith("sentence_transformers."):
            raise UserError(
                f"{path}: {kind!r} is code of the model's own, which is not run; if it does what a "
                "module of sentence-transformers does, name that one in a copy of the model"
            )
        # Transformer and Pooling ignore arguments that they do not know.
        if module.get("kwargs") and not kind.endswith((".Transformer", ".Pooling")):
            raise UserError(f"{path}: kwargs={module['kwargs']!r} of {kind} are not covered")
        if names.count(str(module["name"])) > 1:
            raise UserError(f"{path}: several modules have the name {module['name']!r}")
    return modules


def _dense_folders(modules: Sequence[Mapping]) -> list[str]:
    return [module["path"] for module in modules if module["type"].endswith(".Dense")]


def _read_dense(folder: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """(float64[d, e], float64[e] or None)."""
    path = folder / "config.json"
    fields = read_json(path, kind=dict)
    fields = {"bias": True, "activation_function": "torch.nn.modules.activation.Tanh"} | fields
    if problems := uncovered(fields, _DENSE):
        raise UserError(
            f"{path}: a Dense module with {', '.join(problems)} is not covered, only a linear "
            "layer of the pooled vector without activation (Identity)"
        )
    shapes = {"linear.weight": (fields.get("out_features"), fields.get("in_features"))}
    if fields["bias"]:
        shapes["linear.bias"] = shapes["linear.weight"][:1]
    tensors = stored_tensors(folder)
    stored = {name: tensor.shape for name, tensor in tensors.items()}
    if stored != shapes:
        raise UserError(f"{folder}: its tensors are {stored}, config.json expects {shapes}")
    weight, *bias = (np.asarray(tensors[name].read(), np.float64) for name in shapes)
    return weight.T, bias[0] if bias else None


def _write_dense(folder: Path, projection: Mapping[str, np.ndarray]) -> None:
    kernel, bias = np.asarray(projection["kernel"]), projection.get("bias")
    tensors = {"linear.weight": np.ascontiguousarray(kernel.T)}
    if bias is not None:
        tensors["linear.bias"] = np.asarray(bias)
    d, e = kernel.shape
    fields = {"in_features": d, "out_features": e, "bias": bias is not None}
    fields["activation_function"] = "torch.nn.modules.linear.Identity"
    write_json(folder / "config.json", fields)
    planned = [Planned(name, x.shape, STORED_DTYPES["F32"]) for name, x in tensors.items()]
    write_tensors(folder, planned, iter(tensors.values()), max_file_bytes=1 << 40)


def _read_usage(path: Path) -> tuple[str, str, int, str]:
    """(query prompt, passage prompt, truncate_dim, similarity), of the whole model's settings.

    `encode_document` takes the prompt "document", which is empty if there is none; a prompt
    "passage" is for those who name it.
    """
    fields = read_json(path, default={}, kind=dict)
    kind = fields.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise UserError(f"{path}: model_type={kind!r} is not covered, only SentenceTransformer")
    prompts = fields.get("prompts", {})
    if not isinstance(prompts, dict) or not all(
        isinstance(x, str | None) for x in prompts.values()
    ):
        raise UserError(
            f"{path}: prompts={prompts!r} is not an object of strings; without prompts write {{}}"
        )
    default = fields.get("default_prompt_name")
    if default is not None and default not in ("query", "document", *prompts):
        raise UserError(f"{path}: default_prompt_name={default!r} is not in prompts; fix the file")
    size = fields.get("truncate_dim")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise UserError(f"{path}: truncate_dim={size!r} is not a number of entries; fix the file")
    similarity = fields.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise UserError(
            f"{path}: similarity_fn_name={similarity!r} is not one of {', '.join(SIMILARITIES)}; "
            "fix the file"
        )
    query, passage = (prompts.get(name) or "" for name in ("query", "document"))
    return query, passage, size or 0, similarity
