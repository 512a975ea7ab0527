"""What sentence-transformers reads in a directory is honoured or refused by name: the same vectors
as from that library, or a UserError that says what is not covered."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import BertWordPieceTokenizer

import inf_jax
from inf_jax.config.defaults import defaults, run_config
from inf_jax.core import choices
from inf_jax.core.errors import UserError
from inf_jax.models.hf import sentence_transformers as st_files
from inf_jax.models.hf.backbone import load_model
from inf_jax.models.hf.config import read_config
from inf_jax.models.hf.module_settings import NAMES, TransformerSettings, read_transformer
from inf_jax.models.hf.weights import load_weights
from inf_jax.text.templates import TextConfig
from tests.inf_jax.models.tiny_backbones import backbone

TRANSFORMER, USAGE = "sentence_bert_config.json", "config_sentence_transformers.json"
POOLING, NORMALIZE = "1_Pooling/config.json", "2_Normalize/config.json"
TEXTS = [
    "what harms Iris?",
    "Amber GROWS on wet hills near the coast, and in cold valleys",
    "an old monk wrote of thyme " * 12,
    "a",
]


@pytest.fixture(scope="module")
def model(tiny_model_dir, tmp_path_factory) -> Path:
    """The tiny BERT as a sentence-transformers model with a tokenizer that knows lower case only
    and does not make it."""
    directory = shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("st") / "model")
    vocab = (directory / "vocab.txt").read_text().split("\n")[:-1]
    tokenizer = BertWordPieceTokenizer({word: n for n, word in enumerate(vocab)}, lowercase=False)
    tokenizer.save(str(directory / "tokenizer.json"))
    write(directory, "tokenizer_config.json", do_lower_case=False, model_max_length=9)
    lengths = TransformerSettings(max_length=40)
    st_files.write(directory, st_files.StModel("mean", True, transformer=lengths), width=32)
    return directory


@pytest.fixture
def directory(model, tmp_path) -> Path:
    """A copy of the model, to change."""
    return shutil.copytree(model, tmp_path / "model")


def write(directory: Path, file: str, *, whole: bool = False, **fields) -> None:
    """Sets fields of a JSON file; `whole`: these are all; ... removes one."""
    path = directory / file
    before = json.loads(path.read_text()) if path.exists() and not whole else {}
    after = {name: x for name, x in (before | fields).items() if x is not ...}
    path.write_text(json.dumps(after))


def modules(*kinds: str, prefix: str = "sentence_transformers.models.") -> list[dict]:
    """The contents of modules.json."""
    return [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": prefix + kind}
        for n, kind in enumerate(kinds)
    ]


def vectors(directory: Path, **options) -> tuple[np.ndarray, np.ndarray]:
    ours = inf_jax.load(directory, **options)
    return ours.encode_queries(TEXTS), ours.encode_passages(TEXTS)


def assert_equal(directory: Path) -> None:
    """Our vectors have at least cosine 0.9999 with sentence-transformers'."""
    st = pytest.importorskip("sentence_transformers")
    ours = vectors(directory)
    theirs = st.SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    for a, b in zip(ours, (theirs.encode_query(TEXTS), theirs.encode_document(TEXTS)), strict=True):
        assert a.shape == b.shape
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        assert ((a * b).sum(1) / norms).min() > 0.9999


def t(**fields):
    return {"file": TRANSFORMER, "fields": fields}


def u(**fields):
    return {"file": USAGE, "fields": fields}


def p(**fields):
    return {"file": POOLING, "fields": fields, "whole": True}


OLD = dict.fromkeys((switch for _, switch in st_files.POOLING_SPELLINGS.values()), False)
# Two limits only, 40 and 9: every other one is another program to compile.
HONOURED = {
    "lower case": t(do_lower_case=True),
    "null length": t(max_seq_length=None),
    "no length": t(max_seq_length=...),
    "query_length": t(query_length=9),
    "document_length": t(document_length=9, query_length=None),
    "lengths above the whole": t(query_length=40, document_length=40, max_seq_length=9),
    "model_max_length": t(tokenizer_args={"model_max_length": 9, "trust_remote_code": True}),
    "processor_kwargs": t(processor_kwargs={"model_max_length": 9, "use_fast": True}),
    "old and new arguments": t(
        processor_kwargs={"model_max_length": 40}, tokenizer_args={"model_max_length": 9}
    ),
    "model_args": t(model_args={"attn_implementation": "eager", "torch_dtype": "float32"}),
    "half precision": t(model_kwargs={"torch_dtype": "float16"}),
    "config_args": t(config_args={"use_cache": False, "hidden_size": 32, "revision": "main"}),
    "processing_kwargs": t(
        processing_kwargs={"text": {"max_length": 9, "padding": "max_length"}, "audio": {}}
    ),
    "common processing_kwargs": t(
        query_length=40,
        processing_kwargs={"text": {"max_length": 40}, "common": {"max_length": 9}},
    ),
    "modality": t(
        transformer_task="feature-extraction",
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
        unpad_inputs=False,
        query_expansion=None,
    ),
    "prompts": u(prompts={"query": "text of: ", "document": "what: "}),
    "null prompts": u(prompts={"query": None, "document": "what: "}),
    "empty document": u(prompts={"document": "", "passage": "what: "}),
    "only passage": u(prompts={"passage": "what: ", "corpus": "of: "}),
    "only query": u(prompts={"query": "what: "}),
    "other prompts": u(prompts={"web": "what: "}, default_prompt_name="web"),
    "default prompt": u(prompts={"query": "what: "}, default_prompt_name="query"),
    "braces in a prompt": u(prompts={"query": "what {of}: ", "document": "{"}),
    "truncate_dim": u(truncate_dim=8),
    "truncate_dim above the size": u(truncate_dim=64),
    "dot": u(similarity_fn_name="dot"),
    "null usage": u(similarity_fn_name=None, truncate_dim=None, default_prompt_name=None),
    "requirements": u(model_type="SentenceTransformer", requirements={"transformers": ">=4"}),
    "no pooling mode": p(word_embedding_dimension=32),
    "all modes false": p(word_embedding_dimension=32, **OLD),
    "new pooling": p(embedding_dimension=32, pooling_mode="cls"),
    "one mode in a list": p(embedding_dimension=32, pooling_mode=["lasttoken"]),
    "old and new pooling": p(
        embedding_dimension=32, pooling_mode="cls", pooling_mode_mean_tokens=True
    ),
    "weighted mean": p(word_embedding_dimension=32, pooling_mode_weightedmean_tokens=True),
    "include_prompt without prompts": p(word_embedding_dimension=32, include_prompt=False),
    "normalize": {"file": NORMALIZE, "fields": {"module_input_name": "sentence_embedding"}},
}


@pytest.mark.parametrize("case", HONOURED)
def test_fields_are_honoured(directory, case):
    change = HONOURED[case]
    write(directory, change["file"], whole=change.get("whole", False), **change["fields"])
    assert_equal(directory)


@pytest.mark.parametrize("query", ["text of: ", "of the text: "])
def test_prompts_that_leave_room_for_a_few_tokens(directory, query):
    """The text is cut, not the prompt; one that leaves no room is refused."""
    write(directory, TRANSFORMER, max_seq_length=9)
    write(directory, USAGE, prompts={"query": query, "document": "for that text by as: "})
    assert_equal(directory)
    write(directory, USAGE, prompts={"query": "of the text by as from at: "})
    with pytest.raises(UserError, match="max_query_tokens=9 is too small"):
        inf_jax.load(directory).encode_queries(TEXTS)


@pytest.mark.parametrize("name", NAMES[1:])
def test_all_names_of_the_settings(directory, name):
    """The first file that is not empty counts."""
    write(directory, TRANSFORMER, whole=True)
    write(directory, name, max_seq_length=9, do_lower_case=True)
    assert inf_jax.load(directory).config.text.max_query_tokens == 9
    if name == NAMES[-1]:
        write(directory, NAMES[3], max_seq_length=40)
        assert_equal(directory)


@pytest.mark.parametrize(
    "prefix",
    [
        "sentence_transformers.models.",
        "sentence_transformers.sentence_transformer.modules.",
    ],
)
def test_modules_are_honoured(directory, prefix):
    """Old and new class paths, Dropout, a folder for the weights, an order other than idx."""
    kinds = ["Transformer", "Pooling", "Dropout", "Normalize", "Normalize"]
    listed = modules(*kinds, prefix=prefix)
    for n, module in enumerate(listed):
        (directory / module["path"]).mkdir(exist_ok=True)
        module |= {"idx": 9 - n, "name": kinds[n] + str(n)}
    listed[0] |= {"path": "0_Transformer", "kwargs": ["task"]}
    inner = directory / "0_Transformer"
    inner.mkdir()
    for path in [*directory.glob("*.json"), directory / "model.safetensors"]:
        if path.name not in ("modules.json", USAGE):
            path.rename(inner / path.name)
    (directory / "modules.json").write_text(json.dumps(listed))
    assert_equal(directory)


def test_new_class_paths_of_version_6(directory):
    paths = {
        "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
        "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "Dense": "sentence_transformers.base.modules.dense.Dense",
        "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    }
    listed = modules(*paths)
    for module in listed:
        module["type"] = paths[module["type"].rpartition(".")[2]]
    (directory / "modules.json").write_text(json.dumps(listed))
    dense(directory)
    assert_equal(directory)


def test_the_tokenizers_own_limit_by_its_older_name(directory):
    write(directory, TRANSFORMER, whole=True)
    write(directory, "tokenizer_config.json", model_max_length=..., max_len=9)
    assert inf_jax.load(directory).config.text.max_passage_tokens == 9
    assert_equal(directory)
    # null is not absent: no limit but that of the positions
    write(directory, "tokenizer_config.json", model_max_length=None)
    assert inf_jax.load(directory).config.text.max_passage_tokens == 64


def test_limits_above_the_positions(tmp_path):
    """They count where positions have no table, as in the library; the tokenizer's own does not."""
    directory = backbone(tmp_path / "model", "qwen2", "qwen3-embedding")
    write(directory, "config.json", max_position_embeddings=16)
    lengths = TransformerSettings(max_length=40, query_length=32)
    st_files.write(directory, st_files.StModel("last", True, transformer=lengths), width=32)
    text = inf_jax.load(directory).config.text
    assert (text.max_query_tokens, text.max_passage_tokens) == (32, 40)
    assert_equal(directory)
    write(directory, TRANSFORMER, whole=True)
    write(directory, "tokenizer_config.json", model_max_length=96)
    assert inf_jax.load(directory).config.text.max_passage_tokens == 16


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_cut_vectors_are_compared_as_in_the_library(directory, similarity):
    """Only where cosines are compared does unit length after the cut change nothing."""
    st = pytest.importorskip("sentence_transformers")
    write(directory, USAGE, truncate_dim=8, similarity_fn_name=similarity)
    theirs = st.SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    ours = inf_jax.load(directory)
    a, b = ours.encode_passages(TEXTS), theirs.encode_document(TEXTS)
    np.testing.assert_allclose(ours.similarity(a, a), theirs.similarity(b, b), atol=1e-5)
    length = np.linalg.norm(a, axis=1)
    assert (similarity == "cosine") == bool(np.allclose(length, 1, atol=1e-5))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # in PEFT
@pytest.mark.parametrize("task", [None, "FEATURE_EXTRACTION", "CAUSAL_LM"])
def test_adapters_are_merged_as_their_refusal_says(tmp_path, task):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base, adapter, new = (tmp_path / name for name in ("base", "adapter", "new"))
    backbone(base, "qwen2", "qwen3-embedding")
    model_class = "AutoModelForCausalLM" if task == "CAUSAL_LM" else "AutoModel"
    model = getattr(transformers, model_class).from_pretrained(base)
    lora = peft.LoraConfig(task_type=task, r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(model, lora)
    model.save_pretrained(adapter)
    with pytest.raises(UserError, match=r"a PEFT adapter \(LORA\)") as refusal:
        inf_jax.load(adapter)
    code = re.search("merge it: (.*), copy the", str(refusal.value))[1].replace("NEW", "new")
    eval(code, {"peft": peft, "transformers": transformers, "new": new})
    name = "layers/0/self_attn/q_proj/weight".replace("/", ".")
    shape = read_config(new)
    merged, before = (load_weights(x, shape).params["blocks"] for x in (new, base))
    of_peft = model.merge_and_unload().state_dict()
    expected = next(x for key, x in of_peft.items() if key.endswith(name)).numpy()
    found = merged["query_kernel"][0]
    np.testing.assert_allclose(found.reshape(len(found), -1).T, expected, atol=1e-6)
    assert not np.allclose(found, before["query_kernel"][0], atol=1e-3)


def test_an_adapter_beside_a_folder_with_the_weights(directory):
    listed = modules("Transformer", "Pooling")
    listed[0]["path"] = "0_Transformer"
    (directory / "modules.json").write_text(json.dumps(listed))
    write(directory, "adapter_config.json", peft_type="LORA")
    with pytest.raises(UserError, match=r"adapter_config\.json: a PEFT adapter \(LORA\)"):
        inf_jax.load(directory)


def dense(directory: Path, **fields) -> None:
    folder = directory / "2_Dense"
    folder.mkdir()
    config = {"in_features": 32, "out_features": 16, "bias": True}
    config |= {"activation_function": "torch.nn.Identity"} | fields
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    tensors = {"linear.weight": (16, 32), "linear.bias": (16,)}
    tensors = {name: rng.normal(size=x).astype(np.float32) for name, x in tensors.items()}
    save_file(tensors, folder / "model.safetensors")


def test_without_modules(directory, caplog):
    """The settings of sentence-transformers do not count then; a causal language model is pooled by
    its last token."""
    (directory / "modules.json").unlink()
    write(directory, TRANSFORMER, do_lower_case=True, processor_kwargs={"x": 1})
    assert_equal(directory)
    write(directory, "config.json", architectures=["BertForCausalLM"])
    assert inf_jax.load(directory).config.pooling == "last"
    assert "last pooling and unit length are assumed" in caplog.text
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(UserError, match="has a chat template and no modules"):
        inf_jax.load(directory)


REFUSED = {
    "length": (t(max_seq_length=0), "max_seq_length=0 "),
    "length as text": (t(max_seq_length="9"), "max_seq_length='9' "),
    "query length": (t(query_length=True), "query_length=True "),
    "unknown field": (t(max_length=9), "not covered: max_length=9"),
    "task": (t(transformer_task="fill-mask"), "transformer_task='fill-mask'"),
    "query_expansion": (t(query_expansion={"strategy": "fixed", "length": 8}), "query_expansion="),
    "tokenizer of another model": (t(tokenizer_name_or_path="x/y"), "tokenizer_name_or_path='x/y'"),
    "message": (
        t(modality_config={"message": {}, "text": {}}, module_output_name="token_embeddings"),
        "modality_config=.*message",
    ),
    "another output": (
        t(modality_config={"text": {"method": "forward", "method_output_name": "pooler_output"}}),
        "modality_config=.*pooler_output",
    ),
    "output": (t(module_output_name="sentence_embedding"), "module_output_name='sentence_emb"),
    "model_args": (t(model_args={"num_hidden_layers": 1}), "model_args.num_hidden_layers=1"),
    "model_kwargs": (t(model_kwargs={"dtype": "bfloat16"}), "model_kwargs.dtype='bfloat16'"),
    "model_kwargs as text": (t(model_kwargs="x"), r"model_kwargs='x' \(not an object\)"),
    "tokenizer_args": (t(tokenizer_args={"add_prefix_space": 1}), "tokenizer_args.add_prefix_spac"),
    "truncation_side": (
        t(processor_kwargs={"truncation_side": "left"}),
        "processor_kwargs.truncation_side='left'",
    ),
    "config_args": (t(config_args={"is_decoder": True}), "config_args.is_decoder=True"),
    "call": (
        t(processing_kwargs={"text": {"add_special_tokens": False}}),
        "processing_kwargs.text.add_special_tokens=False",
    ),
    "unknown processing": (t(processing_kwargs={"txt": {}}), "processing_kwargs.txt"),
    "two at once": (t(unknown=1, query_length=-1), "query_length=-1 .*; unknown=1"),
    "model_type": (u(model_type="SparseEncoder"), "model_type='SparseEncoder'"),
    "prompts": (u(prompts=["a"]), "prompts=.* is not an object of strings"),
    "null instead of prompts": (u(prompts=None), "prompts=None is not an object of strings"),
    "a prompt": (u(prompts={"query": 1}), "prompts=.* is not an object of strings"),
    "default prompt": (u(default_prompt_name="web"), "default_prompt_name='web' is not in prompts"),
    "truncate_dim": (u(truncate_dim=0), "truncate_dim=0 "),
    "truncate_dim as number": (u(truncate_dim=8.0), "truncate_dim=8.0 "),
    "similarity": (u(similarity_fn_name="maxsim"), "similarity_fn_name='maxsim'"),
    "max": (p(embedding_dimension=32, pooling_mode="max"), "pooling max is not covered"),
    "old max": (p(pooling_mode_max_tokens=True), "pooling_mode_max_tokens is not covered"),
    "several": (p(pooling_mode=["cls", "mean"]), r"pooling cls \+ mean is not covered"),
    "several old": (
        p(**OLD | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}),
        r"pooling_mode_mean_tokens \+ pooling_mode_cls_token is not covered",
    ),
    "empty list": (p(pooling_mode=[]), "pooling none is not covered"),
    "null mode": (p(pooling_mode=None), "pooling None is not covered"),
    "number as mode": (p(pooling_mode=3), "pooling 3 is not covered"),
    "list in a list": (p(pooling_mode=[["cls"]]), r"\['cls'\] is not covered"),
    "pooling field": (p(embedding_dimension=32, temperature=2), "temperature: no field of a Pool"),
    "normalize": (
        {"file": NORMALIZE, "fields": {"module_input_name": "token_embeddings"}},
        "a Normalize module with module_input_name='token_embeddings'",
    ),
    "truncation_side of the tokenizer": (
        {"file": "tokenizer_config.json", "fields": {"truncation_side": "left"}},
        "truncation_side='left' is not covered",
    ),
    "padding_side of absolute positions": (
        {"file": "tokenizer_config.json", "fields": {"padding_side": "left"}},
        "padding_side='left' is not covered",
    ),
    "model_max_length": (
        {"file": "tokenizer_config.json", "fields": {"model_max_length": "9"}},
        "model_max_length='9' is not a number",
    ),
    "no attention mask": (
        {"file": "tokenizer_config.json", "fields": {"model_input_names": ["input_ids"]}},
        r"model_input_names=\['input_ids'\] has no attention_mask",
    ),
    "code of the model": (
        {"file": "config.json", "fields": {"auto_map": {"AutoModel": "modeling.Own"}}},
        "has code of its own.*modeling.Own.*model.mask='bidirectional'",
    ),
    "code of the tokenizer": (
        {"file": "tokenizer_config.json", "fields": {"auto_map": {"AutoTokenizer": ["a.B", None]}}},
        "has code of its own.*tokenizer_config.json: .*a.B",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_fields_are_refused_by_name(directory, case):
    change, message = REFUSED[case]
    if change["file"] == "tokenizer_config.json":
        write(directory, TRANSFORMER, whole=True)
    write(directory, change["file"], whole=change.get("whole", False), **change["fields"])
    with pytest.raises(UserError, match=message):
        inf_jax.load(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "not a list of modules"),
        ({}, "not a list of modules"),
        (None, "not a list of modules"),
        ([{"path": "x"}], "not a list of modules"),
        (modules("Transformer"), "modules Transformer are not covered"),
        (modules("Transformer", "Dense"), "Dense are not covered"),
        (modules("Transformer", "Dropout", "Pooling"), "Dropout, Pooling are not covered"),
        (modules("Transformer", "Pooling", "Normalize", "Dense"), "Normalize, Dense are not"),
        (modules("Transformer", "Pooling", "LayerNorm"), "LayerNorm are not covered"),
        (modules("Transformer", "WordWeights", "Pooling"), "WordWeights, Pooling are not"),
        (modules("Router"), "modules Router are not covered"),
        (modules("Asym", "Pooling"), "modules Asym, Pooling are not covered"),
        (modules("StaticEmbedding"), "modules StaticEmbedding are not covered"),
        (modules("Transformer", "Pooling", prefix="custom_st."), "'custom_st.Transformer' is code"),
        ([m | {"name": "0"} for m in modules("Transformer", "Pooling")], "have the name '0'"),
        ([modules("Transformer")[0] | {"path": "../other"}], "'../other', which is outside of"),
        ([modules("Dense")[0] | {"kwargs": ["task"]}], r"kwargs=\['task'\] of .*Dense"),
    ],
)
def test_modules_are_refused_by_name(directory, change, message):
    (directory / "modules.json").write_text(json.dumps(change))
    with pytest.raises(UserError, match=message):
        inf_jax.load(directory)


def test_pooling_without_its_prompt_is_refused(directory):
    write(directory, POOLING, include_prompt=False)
    write(directory, USAGE, prompts={"document": "text: "})
    with pytest.raises(UserError, match=r"include_prompt=false.*'text: '"):
        inf_jax.load(directory)


def test_own_code_is_taken_with_an_explicit_mask(directory):
    before = vectors(directory)
    write(directory, "config.json", auto_map={"AutoModel": "modeling.Own"})
    write(
        directory, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.Own", None]}
    )
    for a, b in zip(before, vectors(directory, mask="bidirectional"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_templates_of_the_caller(directory):
    """They take the place of the model's prompts; "" is a query without instruction."""
    write(directory, USAGE, prompts={"query": "query: ", "document": "text: "})
    template = "what: {instruction}\nquery: {query}"
    ours = inf_jax.load(directory, query_template=template, passage_template="of {passage}")
    whole = inf_jax.load(directory, passage_template="{passage}")
    np.testing.assert_array_equal(
        ours.encode_queries(["amber", "thyme"], "where it grows"),
        whole.encode([f"what: where it grows\nquery: {x}" for x in ("amber", "thyme")]),
    )
    np.testing.assert_array_equal(ours.encode("amber"), whole.encode("of amber"))
    text = inf_jax.load(directory, query_template=template).config.text
    assert (text.query_template, text.passage_template) == (template, "text: {passage}")
    with pytest.raises(UserError, match=r"must hold \{instruction\} and"):
        inf_jax.load(directory, query_template="{query}")


def test_a_run_reads_them_too(directory):
    write(directory, TRANSFORMER, do_lower_case=True)
    config = defaults()
    config.model.name = str(directory)
    config.data.max_query_tokens = config.data.max_passage_tokens = 32
    tokenizer = load_model(run_config(config)).tokenizer
    upper, lower = tokenizer.passages(["Iris: AMBER", "iris: amber"], TextConfig())
    np.testing.assert_array_equal(upper, lower)
    write(directory, "config.json", auto_map={"AutoModel": "modeling.Own"})
    with pytest.raises(UserError, match="has code of its own"):
        load_model(run_config(config))
    config.model.mask = "bidirectional"
    load_model(run_config(config))
    # The run's keys decide on what concerns neither tokenizer nor config.json.
    write(directory, TRANSFORMER, model_args={"dtype": "bfloat16"}, query_expansion={})
    load_model(run_config(config))
    write(directory, TRANSFORMER, config_args={"is_decoder": True})
    with pytest.raises(UserError, match=r"config_args\.is_decoder=True"):
        load_model(run_config(config))


def test_left_padding_counts_where_positions_depend_on_it(directory):
    write(directory, TRANSFORMER, processor_kwargs={"padding_side": "left"})
    with pytest.raises(UserError, match=r"processor_kwargs\.padding_side='left'"):
        read_transformer(directory)
    write(directory, "config.json", model_type="qwen3")
    assert read_transformer(directory).max_length == 40


@pytest.mark.parametrize("name", choices.SIMILARITIES)
def test_similarities(directory, name):
    st = pytest.importorskip("sentence_transformers")
    write(directory, USAGE, similarity_fn_name=name)
    a, b = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
    theirs = st.SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    found = inf_jax.load(directory).similarity(a, b[:2])
    assert found.shape == (3, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found, theirs.similarity(a, b[:2]), rtol=1e-5, atol=1e-6)


def test_shapes_for_similarities(model):
    found = inf_jax.load(model)
    a, b = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
    np.testing.assert_array_equal(found.similarity(a[0], b), found.similarity(a[:1], b))
    for wrong in (b[:, :8], b[None], np.float32(1)):
        with pytest.raises(UserError, match="vectors of the same number of entries"):
            found.similarity(a, wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "dtype='float64' is not one of float32, bfloat16"),
        ({"mask": "none"}, "mask='none' is not one of"),
        ({"fsdp": 0}, "fsdp=0 is not a number of devices"),
        ({"query_template": 3}, "query_template=3 is not a string"),
        ({"name": 3}, "name=3 is neither a directory nor a hub id"),
    ],
)
def test_wrong_arguments_of_load(model, options, message):
    with pytest.raises(UserError, match=message):
        inf_jax.load(**{"name": model} | options)
