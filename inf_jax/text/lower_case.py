"""Lower-cases texts ahead of a tokenizer's own normalisation, as sentence-transformers can."""

import json

import tokenizers
from tokenizers import normalizers


def lower_case_first(backend: tokenizers.Tokenizer) -> None:
    """Puts a Lowercase before the tokenizer's normalizer, unless that lower-cases already."""
    state = json.loads(backend.to_str())["normalizer"] or {"type": "Sequence", "normalizers": []}
    steps = state["normalizers"] if state["type"] == "Sequence" else [state]
    if not any(x["type"] == "Lowercase" or x.get("lowercase") for x in steps):
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
