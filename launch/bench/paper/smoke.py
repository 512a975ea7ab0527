"""Tiny models of the paper's backbones and tiny data, so that the whole pack runs on a laptop."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import (
    BertWordPieceTokenizer,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

import data_pipeline
from data_pipeline.sources import medquad
from inf_jax.models import hf
from inf_jax.models.encoder import make_encoder
from inf_jax.models.hf.config import config_from_hf
from inf_jax.planning.model_shapes import PUBLIC

SAMPLES = Path(data_pipeline.__file__).parent / "samples"
KEYS = (
    *("train.steps=2", "train.batch_size=12", "train.checkpoint_every=2", "train.health=False"),
    *("model.dtype=float32", "model.remat=none", "mesh.fsdp=1", "data.row_tokens=64"),
    *("data.max_query_tokens=32", "data.max_passage_tokens=32", "eval.max_passage_tokens=32"),
)
BENCHMARK = (f"--suite={SAMPLES / 'benchmark_medquad'}", "--draws=200")
BACKBONES = ("e5-base-v2", "modernbert-base", "llama-3.2-1b", "qwen2.5-1.5b")  # of each family
OBJECTIVES = ("uni(P)",)
_EXAMPLES = 64
_WORD_PIECES = ("bert", "modernbert")
# How Qwen2's tokenizer splits a text: transformers takes its own expression for each such model.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "max_window_layers": 2,
    "local_attention": 16,
}


def data(directory: Path) -> Path:
    """Writes the first examples of the MedQuAD sample, with InF-IR's field names; returns the
    file."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "inf_ir.jsonl"
    examples = itertools.islice(medquad.read(SAMPLES / "medquad" / "train.jsonl.gz"), _EXAMPLES)
    path.write_text("".join(json.dumps(dataclasses.asdict(each)) + "\n" for each in examples))
    return path


def promptriever(source: Path, path: Path) -> Path:
    """Writes the same examples as rows of Promptriever's training set."""
    rows = []
    for line in source.read_text().splitlines():
        row = json.loads(line)
        query, instruction = row["query_positive"], row["instruction_positive"]
        positive, negative = row["document_positive"], row["hard_negative_document_1"]
        rows.append(
            {
                "query_id": f"{len(rows)}",
                "query": f"{query} {instruction}",
                "only_query": query,
                "only_instruction": instruction,
                "has_instruction": True,
                "positive_passages": [{"docid": "1", "title": "", "text": positive}],
                "negative_passages": [],
                "new_negatives": [{"docid": "2", "title": "", "text": negative}],
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def model(name: str, directory: Path) -> Path:
    """Writes a model of a backbone's family, 2 layers of width 32 with random weights.

    Args:
      name: Hugging Face id, of inf_jax/planning/plan_models.json.
      directory: where to; one that is there is kept.
    """
    if (directory / "config.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    fields = json.loads(PUBLIC.read_text())[name]
    tokenizer, settings = (_word_pieces if fields["model_type"] in _WORD_PIECES else _bytes)()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings["model_max_length"] = _SMALL["max_position_embeddings"]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {key: _SMALL.get(key, value) for key, value in fields.items()}
    config |= {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": 0}
    shape = config_from_hf(config)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)

    shapes = jax.eval_shape(make_encoder(shape).init, jax.random.key(0))
    hf.save_weights(jax.tree_util.tree_map_with_path(draw, shapes), directory, shape)
    (directory / "config.json").write_text(json.dumps(config))  # last: it says that all is there
    return directory


def _word_pieces() -> tuple[Tokenizer, dict[str, Any]]:
    """A tokenizer of letters, and its tokenizer_config.json."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = [*special, *".,?!:-'()/", *letters, *(f"##{x}" for x in letters)]
    tokenizer = BertWordPieceTokenizer({word: n for n, word in enumerate(vocab)}, lowercase=True)
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    fields = {f"{key}_token": token for key, token in names.items()}
    return tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast", **fields}


def _bytes() -> tuple[Tokenizer, dict[str, Any]]:
    """A tokenizer of bytes, as decoders have without their merges, and its settings."""
    end = "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([end, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([end])
    fields = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": end, "pad_token": end}
    return tokenizer, fields
