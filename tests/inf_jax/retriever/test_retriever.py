"""Vectors of a Retriever: those of the encoder on each text alone, and errors on bad input."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from inf_jax.core.errors import UserError
from inf_jax.core.packing import pack_chunk, stack_chunks
from inf_jax.models import hf
from inf_jax.models.encoder import EncoderOptions, make_encoder
from inf_jax.models.hf.config import read_config
from inf_jax.retriever import retriever as retriever_module
from inf_jax.retriever.retriever import CHUNK_TOKENS, Retriever
from inf_jax.retriever.settings import RetrieverConfig
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer

TEXT = TextConfig(max_query_tokens=32, max_passage_tokens=32)  # one shape to compile
E5 = TextConfig("query: {query} {instruction}", "passage: {passage}", 20, 40)
QUERIES = ["amber", "cedar and birch", "iris " * 30]
PASSAGES = ["amber grows on wet hills", "", "frost and beetles kill young cedar " * 20, "thyme"]


def make(directory: Path, config: RetrieverConfig) -> tuple[Retriever, dict]:
    """(retriever with different weights in each tower, its parameters)."""
    shape = read_config(directory)
    tree = hf.load_weights(directory, shape).params
    factors = dict(zip(config.folders(directory), (1.0, 0.9), strict=False))
    params = {role: jax.tree.map(lambda x, f=f: x * f, tree) for role, f in factors.items()}
    tokenizer = load_tokenizer(directory)
    return Retriever(params, config, shape=shape, tokenizer=tokenizer), params


@pytest.fixture(scope="module")
def retriever(tiny_model_dir):
    return make(tiny_model_dir, RetrieverConfig(text=TEXT))[0]


@pytest.mark.parametrize(
    "config",
    [
        RetrieverConfig("shared", "cls", False, TEXT),
        RetrieverConfig("separate", "last", True, E5),
    ],
)
def test_vectors_are_those_of_the_encoder_on_each_text_alone(tiny_model_dir, config):
    retriever, params = make(tiny_model_dir, config)
    tokens = {
        "query": retriever.tokenizer.queries([(q, "Tell it.") for q in QUERIES], config.text),
        "passage": retriever.tokenizer.passages(PASSAGES, config.text),
    }
    found = {
        "query": retriever.encode_queries(QUERIES, "Tell it."),
        "passage": retriever.encode_passages(PASSAGES),
    }
    options = EncoderOptions(pooling=config.pooling, normalise=config.normalise)
    encoder = make_encoder(read_config(tiny_model_dir), options)
    grid = {"rows": 1, "row_tokens": 40, "texts_per_row": 1}
    encode = jax.jit(encoder.encode)
    for role, texts in tokens.items():
        alone = [pack_chunk([text], np.zeros(1, np.uint32), **grid) for text in texts]
        alone += alone[:1] * (4 - len(alone))  # one shape for both
        tree = params["shared" if config.towers == "shared" else role]
        expected = encode(tree, stack_chunks(alone))[: len(texts), 0]
        assert found[role].dtype == np.float32
        np.testing.assert_allclose(found[role], expected, atol=2e-6)


@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_attention_encodes_query_and_instruction_apart(tiny_model_dir, towers):
    config = RetrieverConfig(towers, "cls", False, TEXT, "attention")
    retriever, params = make(tiny_model_dir, config)
    instructions = ["Tell it.", "", "What harms it? " * 20, "Tell where it grows."]
    queries = [*QUERIES, ""]
    found = retriever.encode(queries, instruction=instructions)
    ids = retriever.tokenizer.separate_texts(list(zip(queries, instructions, strict=True)), TEXT)
    encoder = make_encoder(read_config(tiny_model_dir), EncoderOptions(normalise=False))
    tree = params["shared" if towers == "shared" else "query"]
    grid = {"rows": 2, "row_tokens": 32, "texts_per_row": 1}
    alone = [pack_chunk(pair, np.zeros(2, np.uint32), **grid) for pair in zip(*ids, strict=True)]
    expected = encoder.encode_instructed(
        tree, stack_chunks(alone), max_tokens=32, all_pairs=False, passages=0
    ).queries[:, 0]
    assert found.shape == (4, 32) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-5)
    for n in range(4):  # alone, a short text gets a smaller grid
        one = retriever.encode(queries[n], instruction=instructions[n])
        np.testing.assert_allclose(one, found[n], atol=2e-6, rtol=1e-5)
    # passages are pooled as with joint queries
    joint, _ = make(tiny_model_dir, RetrieverConfig(towers, "cls", False, TEXT))
    np.testing.assert_array_equal(retriever.encode(PASSAGES), joint.encode(PASSAGES))
    assert np.abs(joint.encode(queries, instruction=instructions) - found).max(1).min() > 1e-2
    assert retriever.encode([], instruction="Tell it.").shape == (0, 32)


def test_many_pairs(tiny_model_dir):
    retriever, _ = make(tiny_model_dir, RetrieverConfig(text=TEXT, query_encoder="attention"))
    few = retriever.encode_queries(QUERIES, ["Tell it.", "", "Tell cooks."])
    many = 20 + len(jax.devices()) * CHUNK_TOKENS // 40  # 3 pairs have some 50 tokens
    found = retriever.encode_queries(QUERIES * many, ["Tell it.", "", "Tell cooks."] * many)
    np.testing.assert_allclose(found, np.tile(few, (many, 1)), atol=1e-6)


def test_encode_is_queries_with_an_instruction_and_passages_without(retriever):
    passages = retriever.encode(PASSAGES)
    np.testing.assert_array_equal(passages, retriever.encode_passages(PASSAGES))
    assert passages.shape == (4, 32) == (len(PASSAGES), retriever.embedding_size)
    one = retriever.encode(QUERIES, instruction="Tell it.")
    each = retriever.encode_queries(QUERIES, ["Tell it."] * 3)
    np.testing.assert_array_equal(one, each)
    other = retriever.encode(QUERIES, instruction=("Tell it.", "What harms it?", "Tell it."))
    assert (np.abs(one - other).max(1) > 1e-3).tolist() == [False, True, False]
    # "": a query without instruction, rendered without that field
    alone = retriever.encode(QUERIES[:1], instruction="")
    np.testing.assert_allclose(alone, retriever.encode(QUERIES[:1]), atol=1e-6)
    assert np.abs(alone - one[:1]).max() > 1e-3


def test_one_text_gives_one_vector(retriever):
    expected = retriever.encode(PASSAGES[:1])[0]
    found = retriever.encode(PASSAGES[0])
    assert found.shape == (32,)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    query = retriever.encode_queries("amber", "Tell it.")
    np.testing.assert_allclose(query, retriever.encode_queries(["amber"], "Tell it.")[0], atol=1e-6)


def test_no_texts_give_no_vectors(retriever):
    assert retriever.encode([]).shape == (0, 32)
    assert retriever.encode((), instruction="Tell it.").shape == (0, 32)


def test_a_long_query_keeps_its_instruction(retriever):
    first, second = retriever.encode_queries([QUERIES[2]] * 2, ["Tell it.", "Tell cooks."])
    assert np.abs(first - second).max() > 1e-3


def test_more_texts_than_one_grid_holds(retriever, capsys):
    few = retriever.encode(PASSAGES)
    many = 20 + len(jax.devices()) * CHUNK_TOKENS // (4 * 12)
    found = retriever.encode(PASSAGES * many, progress=True)
    np.testing.assert_allclose(found, np.tile(few, (many, 1)), atol=1e-6)
    shown = capsys.readouterr().err
    assert "passages" in shown and f"{4 * many}/{4 * many}" in shown
    assert "base: x" not in shown and retriever.encode(PASSAGES, progress="base: x").shape
    assert "base: x" in capsys.readouterr().err


def test_windows_change_nothing(retriever, monkeypatch, capsys):
    expected = retriever.encode(PASSAGES), retriever.encode(QUERIES, instruction="Tell it.")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(retriever_module, "WINDOW_TEXTS", 2)
    found = retriever.encode(PASSAGES), retriever.encode(QUERIES, instruction="Tell it.")
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.encode(["a", "b"], instruction=["c"]), "2 queries but 1 instructions"),
        (lambda m: m.encode("a", instruction=["b", "c"]), "1 queries but 2 instructions"),
        (lambda m: m.encode(["a", None]), r"passages\[1\] must be a string, not a NoneType"),
        (lambda m: m.encode(3), "passages must be a string or strings, not a int"),
        (lambda m: m.encode([b"a"], instruction=""), r"queries\[0\] must be a string, not a bytes"),
        (lambda m: m.encode_queries(["a"], [1]), r"instructions\[0\] must be a string, not a int"),
        (lambda m: m.encode({"a": "b"}), "passages must be a string or strings, not a dict"),
        (lambda m: m.encode({"a", "b"}), "passages must be a string or strings, not a set"),
        (
            lambda m: m.encode(["a", "b\ud800c"]),
            r"passages\[1\]: the character '\\ud800' at 1 is half of a surrogate pair",
        ),
        (lambda m: m.encode("\udc9f", instruction=""), r"queries\[0\]: .* surrogate pair"),
        (lambda m: m.encode("a", instruction="\ud83d"), r"instructions\[0\]: .* surrogate pair"),
        (lambda m: m.encode("a", dim=8.0), "dim=8.0: the vectors have 32 entries"),
        (lambda m: m.encode("a", dim="8"), "dim='8': the vectors have 32 entries"),
        (lambda m: m.encode("a", dim=True), "dim=True: the vectors have 32 entries"),
        (lambda m: m.encode("a", dim=0), "dim=0: the vectors have 32 entries"),
    ],
)
def test_wrong_arguments_are_named(retriever, call, message):
    with pytest.raises(UserError, match=message):
        call(retriever)


def test_dim_may_be_any_whole_number(retriever):
    np.testing.assert_array_equal(
        retriever.encode(PASSAGES, dim=np.int32(8)), retriever.encode(PASSAGES, dim=8)
    )


@pytest.mark.parametrize(
    ("query_encoder", "call", "message"),
    [
        ("joint", lambda m: m.encode(["amber", ""]), r"passages\[1\] is empty"),
        ("joint", lambda m: m.encode(["amber", "\u200b", " "]), r"passages\[1\] is empty"),
        ("joint", lambda m: m.encode_queries(""), r"queries\[0\] is empty"),
        ("attention", lambda m: m.encode_queries("amber", ""), r"instructions\[0\] is empty"),
    ],
)
def test_a_text_without_tokens_is_named(tiny_model_dir, tmp_path, query_encoder, call, message):
    """Of a tokenizer that adds no special tokens."""
    directory = shutil.copytree(tiny_model_dir, tmp_path / "model")
    for file, field, value in (
        ("tokenizer.json", "post_processor", None),
        ("tokenizer_config.json", "tokenizer_class", "PreTrainedTokenizerFast"),
    ):
        fields = json.loads((directory / file).read_text()) | {field: value}
        (directory / file).write_text(json.dumps(fields))
    config = RetrieverConfig(text=TEXT, query_encoder=query_encoder)
    with pytest.raises(UserError, match=message):
        call(make(directory, config)[0])


def test_limits_over_the_positions_are_refused(tiny_model_dir):
    with pytest.raises(UserError, match="texts of up to 65 tokens, but the encoder has 64"):
        make(
            tiny_model_dir,
            RetrieverConfig(text=TextConfig(max_query_tokens=20, max_passage_tokens=65)),
        )
