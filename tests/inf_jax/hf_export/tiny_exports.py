"""Exports of the tiny model, made once per session and configuration."""

import dataclasses
from pathlib import Path

import jax

from inf_jax.hf_export import parity
from inf_jax.hf_export.writer import export_hf
from inf_jax.models import hf
from inf_jax.models.hf.config import read_config
from inf_jax.retriever import RetrieverConfig
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer
from tests.inf_jax.training.steps import init_params

TEXT = TextConfig(max_query_tokens=32, max_passage_tokens=32)  # one shape to compile
E5 = dataclasses.replace(
    TEXT, query_template="query: {query} {instruction}", passage_template="passage: {passage}"
)
SHARED = RetrieverConfig(text=TEXT)
CONFIGS = {
    "shared-cls-e5": RetrieverConfig("shared", "cls", True, E5),
    "separate-last": RetrieverConfig(
        "separate", "last", True, dataclasses.replace(TEXT, max_query_tokens=24)
    ),
    "shared-mean-unnormalised": RetrieverConfig("shared", "mean", False, TEXT),
}
ATTENTION = {
    "attention-shared-e5": RetrieverConfig("shared", "mean", True, E5, "attention"),
    "attention-separate-unnormalised": RetrieverConfig(
        "separate", "cls", False, dataclasses.replace(TEXT, max_query_tokens=24), "attention"
    ),
}
QUERIES = [("amber", "Tell where it grows."), ("cedar", "")]
PASSAGES = ["cedar grows on wet hills", "frost and beetles kill young birch " * 12]


def params_of(directory: Path, towers: str) -> dict:
    """The directory's weights; a separate passage tower has other values."""
    params = init_params(hf.load_weights(directory, read_config(directory)).params, towers)
    if towers == "separate":
        params["passage"] = jax.tree.map(lambda x: 0.9 * x, params["passage"])
    return params


def export_tiny(tiny_model_dir, out_dir, config=SHARED, params=None, **options) -> parity.Parity:
    params = params_of(tiny_model_dir, config.towers) if params is None else params
    tokenizer = load_tokenizer(tiny_model_dir, rows=read_config(tiny_model_dir).vocab_size)
    return export_hf(params, config, tokenizer, out_dir, backbone=tiny_model_dir, **options)


def bytes_of(directory: Path) -> dict[str, bytes]:
    files = [p for p in directory.rglob("*") if p.is_file()]
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}
