"""Reads and writes the files of a sentence-transformers model: modules.json and the rest."""

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.io.json_files import path_inside, read_json, write_json
from inf_jax.io.safetensors import DTYPES, Planned, stored_tensors, write_tensors

# Our poolings -> sentence-transformers' (name since version 6, switch that versions since 2 read).
POOLINGS = {
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "cls": ("cls", "pooling_mode_cls_token"),
    "last": ("lasttoken", "pooling_mode_lasttoken"),
    "weighted_mean": ("weightedmean", "pooling_mode_weightedmean_tokens"),
}
_DENSE = {  # field of a Dense module's config.json -> covered values (None for any)
    "in_features": None,
    "out_features": None,
    "bias": (True, False),
    "activation_function": ("torch.nn.modules.linear.Identity", None),
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding", None),
    "use_residual": (False,),
}


class StModel(NamedTuple):
    """A sentence-transformers model: Transformer, Pooling, any Dense, optionally Normalize."""

    pooling: str  # name in POOLINGS
    normalise: bool
    max_length: int | None  # tokens at which a text is cut, if given
    query_prompt: str = ""  # a prefix
    passage_prompt: str = ""
    path: str = ""  # folder of the weights inside the directory
    dense: tuple[str, ...] = ()  # folders of the linear layers after pooling, in order


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
    switches = {switch: name == model.pooling for name, (_, switch) in POOLINGS.items()}
    pooling = {"word_embedding_dimension": width, **switches, "include_prompt": True}
    prompts = {"query": model.query_prompt, "document": model.passage_prompt}
    usage = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": model.max_length, "do_lower_case": False},
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
    dense = tuple(_dense_folders(modules))
    normalise = kinds[-1] == "Normalize"
    if kinds != ["Transformer", "Pooling", *["Dense"] * len(dense), *["Normalize"] * normalise]:
        raise UserError(
            f"{path}: modules {', '.join(kinds)} are not covered, only Transformer, Pooling, any "
            "Dense, and Normalize, in this order"
        )
    folder = directory / modules[0]["path"]
    settings = read_json(folder / "sentence_bert_config.json", default={}, kind=dict)
    if settings.get("do_lower_case"):
        raise UserError(
            f"{folder}/sentence_bert_config.json: do_lower_case=true is not covered; "
            "lower-case the texts and set it to false in a copy"
        )
    path = directory / "config_sentence_transformers.json"
    prompts = read_json(path, default={}, kind=dict).get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(x, str) for x in prompts.values()):
        raise UserError(f"{path}: prompts={prompts!r} is not an object of strings; fix the file")
    return StModel(
        pooling=_read_pooling(directory / modules[1]["path"] / "config.json"),
        normalise=normalise,
        max_length=settings.get("max_seq_length"),
        query_prompt=prompts.get("query") or "",
        passage_prompt=prompts.get("document") or prompts.get("passage") or "",
        path=modules[0]["path"],
        dense=dense,
    )


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
    modules = read_json(path, default=None)
    if modules is None:
        return []
    if not (modules and isinstance(modules, list)) or not all(
        isinstance(module, dict)
        and isinstance(module.get("type"), str)
        and isinstance(module.get("path", ""), str)
        for module in modules
    ):
        raise UserError(f"{path}: not a list of modules with a type and a path; download it again")
    for module in modules:
        path_inside(path.parent, module.get("path", ""), path)
    return [{"path": ""} | module for module in modules]


def _dense_folders(modules: Sequence[Mapping]) -> list[str]:
    return [module["path"] for module in modules if module["type"].endswith(".Dense")]


def _read_dense(folder: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """(float64[d, e], float64[e] or None)."""
    path = folder / "config.json"
    fields = read_json(path, kind=dict)
    fields = {"bias": True, "activation_function": "torch.nn.modules.activation.Tanh"} | fields
    problems = [
        f"{name}={value!r}"
        for name, value in fields.items()
        if name not in _DENSE or (_DENSE[name] is not None and value not in _DENSE[name])
    ]
    if problems:
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
    planned = [Planned(name, x.shape, DTYPES["F32"]) for name, x in tensors.items()]
    write_tensors(folder, planned, iter(tensors.values()), max_file_bytes=1 << 40)


def _read_pooling(path: Path) -> str:
    fields = read_json(path, kind=dict)
    if "pooling_mode" in fields:  # written since version 6
        modes = fields["pooling_mode"]
        modes = [str(mode) for mode in (modes if isinstance(modes, list) else [modes])]
        ours = {name: pooling for pooling, (name, _) in POOLINGS.items()}
    else:
        modes = [k for k, v in fields.items() if k.startswith("pooling_mode_") and v]
        ours = {switch: pooling for pooling, (_, switch) in POOLINGS.items()}
    if not fields.get("include_prompt", True):
        raise UserError(f"{path}: include_prompt=false is not covered")
    if len(modes) != 1 or modes[0] not in ours:
        raise UserError(
            f"{path}: pooling {' + '.join(modes) or 'none'} is not covered, only one of "
            f"{', '.join(ours)}"
        )
    return ours[modes[0]]
