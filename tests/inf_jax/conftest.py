"""A tiny model and a tiny dataset, as directories, made by the same code that makes real ones."""

import importlib.util
import json
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
import transformers
from tokenizers import BertWordPieceTokenizer

from data_pipeline.dataset.build import build
from inf_jax.config import defaults
from inf_jax.io import gcs as bucket
from inf_jax.io import storage
from inf_jax.models import hf
from inf_jax.models.encoder import make_encoder
from inf_jax.models.hf.config import config_from_hf
from tests.doubles.gcs_server import GcsServer

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_QUERIES = """amber birch cedar dahlia elder fennel ginger hazel iris juniper kelp laurel maple
nettle olive poplar quince rowan sorrel thyme""".split()  # 15 of train, then 5 of dev
_TOPICS = {
    "where it grows": "{} grows on wet hills near the coast and in cold valleys",
    "how it is cooked": "cooks boil {} slowly with salt or bake it under butter",
    "who first named it": "an old monk wrote of {} and gave the plant its name",
    "what harms it": "frost and beetles kill young {} unless a gardener covers it",
}
_OTHER_WORDS = "the of and to in is for that on with as by at from what not query text".split()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    """A HF directory: random BERT (2 layers, width 32, 64 positions), WordPiece of 500 entries."""
    directory = tmp_path_factory.mktemp("tiny_model")
    words = " ".join([*_QUERIES, *_TOPICS, *_TOPICS.values(), *_OTHER_WORDS])
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,?!:-'", *"0123456789"]
    vocab += [*_LETTERS, *(f"##{x}" for x in _LETTERS + "0123456789")]
    vocab += [w for w in dict.fromkeys(words.replace("{}", "").split()) if w not in vocab]
    vocab += [f"[unused{n}]" for n in range(500 - len(vocab))]
    (directory / "vocab.txt").write_text("\n".join(vocab) + "\n")
    tokenizer = BertWordPieceTokenizer({word: n for n, word in enumerate(vocab)}, lowercase=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
    fields = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
    (directory / "tokenizer_config.json").write_text(json.dumps(special | fields))
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": len(vocab),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }
    (directory / "config.json").write_text(json.dumps(config))
    shape = config_from_hf(config)
    shapes = jax.eval_shape(make_encoder(shape).init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, shape):  # numpy: to compile the encoder's own init takes seconds
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.2 * rng.standard_normal(shape.shape)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    hf.save_weights(params, directory, shape)
    return directory


@pytest.fixture(scope="session")
def tiny_dataset_dir(tmp_path_factory) -> Path:
    """`<data_dir>/inf_ir/inf_ir/<version>`: 15 queries under 4 instructions each in train, 5 in
    dev."""
    folder = tmp_path_factory.mktemp("tiny_data")
    rows = [_row(query, topic) for query in _QUERIES for topic in _TOPICS]
    split = 15 * len(_TOPICS)
    for name, part in (("train", rows[:split]), ("dev", rows[split:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    directory, _ = build(
        "inf_ir",
        folder / "data",
        path_train=folder / "train.jsonl",
        path_dev=folder / "dev.jsonl",
    )
    return directory


@pytest.fixture
def tiny_config(tiny_model_dir, tiny_dataset_dir, tmp_path):
    """A run's config on the tiny model and dataset; `out_dir` is fresh for each test."""
    config = defaults()
    config.out_dir = str(tmp_path / "run")
    config.data.dir = str(tiny_dataset_dir.parents[2])
    config.data.source = "inf_ir"
    config.data.max_query_tokens = 16
    config.data.max_passage_tokens = 32
    config.data.row_tokens = 64
    config.model.name = str(tiny_model_dir)
    config.train.batch_size = 24
    config.train.steps = 4
    config.train.checkpoint_every = 2
    config.eval.batch_rows = 2
    config.eval.max_passage_tokens = 32
    return config


@pytest.fixture
def no_torch(monkeypatch):
    """As where the extra [torch] is not installed; also quick."""
    transformers.utils.is_torch_available()  # cached: later tests of this process need torch
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "torch" else find_spec(name, *a),
    )


def _row(query: str, topic: str) -> dict[str, str]:
    """An InF-IR row; the poisons are the next topic and the next query of the same split."""
    topics = list(_TOPICS)
    other_topic = topics[(topics.index(topic) + 1) % len(topics)]
    number = _QUERIES.index(query)
    first, size = (0, 15) if number < 15 else (15, 5)
    other_query = _QUERIES[first + (number - first + 1) % size]
    return {
        "query_positive": query,
        "instruction_positive": f"Tell {topic}.",
        "document_positive": _TOPICS[topic].format(query),
        "instruction_negative": f"Tell {other_topic}.",
        "hard_negative_document_1": _TOPICS[other_topic].format(query),
        "query_negative": other_query,
        "hard_negative_document_2": _TOPICS[topic].format(other_query),
    }


@pytest.fixture(scope="module")
def gcs():
    """A fake of Google Cloud Storage, for the clients of this process and of its children."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("needs gcsfs, of the extra [gcs]")
    with GcsServer() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gcs", json.loads(server.environment["FSSPEC_GCS"]))
        bucket._connect.cache_clear()
        yield server


@pytest.fixture
def run_dir(gcs):
    """gs://runs/run, of a bucket that is empty."""
    gcs.make("runs")
    return storage.as_path("gs://runs/run")
