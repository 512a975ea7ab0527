"""Reading a config.json: both generations of field names, and what is refused."""

import copy
import functools
import itertools
import json
import math
import re

import jax
import pytest

from inf_jax.core.errors import UserError
from inf_jax.models.config import Rope
from inf_jax.models.encoder import make_encoder
from inf_jax.models.hf.config import config_from_hf, read_config
from inf_jax.models.layers import rope_frequencies
from inf_jax.planning.model_shapes import model_shape
from tests.inf_jax.models.goldens import GOLDEN, NAMES


def fields_of(name: str) -> dict:
    return json.loads((GOLDEN / name / "config.json").read_text())


def without(fields: dict, *names: str) -> dict:
    return {name: value for name, value in fields.items() if name not in names}


def test_all_problems_in_one_message():
    fields = fields_of("bert")
    bad = fields | {"rope_theta": 1, "is_decoder": True, "hidden_act": "swish", "vocab_size": "9"}
    with pytest.raises(UserError) as error:
        config_from_hf(without(bad, "hidden_size"), "x/config.json")
    for part in (
        "x/config.json",
        "unknown field 'rope_theta'",
        "is_decoder=True (covered: False)",
        "hidden_act='swish' (covered: gelu,",
        "vocab_size='9'",
        "missing field 'hidden_size'",
    ):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"model_type='gpt2' \(covered: bert, gemma,"):
        config_from_hf({"model_type": "gpt2"})
    with pytest.raises(UserError, match="missing field 'model_type'"):
        config_from_hf({})
    with pytest.raises(UserError, match=r"model_type=\['bert'\]"):
        config_from_hf({"model_type": ["bert"]})
    with pytest.raises(UserError, match="not a JSON object"):
        config_from_hf([])
    with pytest.raises(UserError, match=r"num_hidden_layers=0 \(must be above 0\)"):
        config_from_hf(fields | {"num_hidden_layers": 0})
    with pytest.raises(UserError, match="hidden_size=32 is not a multiple of the 5 heads"):
        config_from_hf(fields | {"num_attention_heads": 5})


@pytest.mark.parametrize("name", NAMES)
def test_absent_fields_get_the_defaults_of_transformers(name):
    """Each field is required or has transformers' default; an unknown one is refused."""
    transformers = pytest.importorskip("transformers")
    fields = fields_of(name)
    kind = type(transformers.AutoConfig.for_model(fields["model_type"]))
    read = []
    with pytest.raises(UserError, match="unknown field 'a_new_part'; in a copy, take out fields"):
        config_from_hf(fields | {"a_new_part": None})
    for field in fields:
        left = without(fields, field)
        try:
            ours = config_from_hf(left)
        except UserError as error:
            # missing, or its default contradicts other fields
            assert re.search(rf"\b{field}\b|missing field 'hidden_act", str(error))
        else:
            theirs = kind.from_dict(left).to_dict()
            assert ours == config_from_hf(theirs), field
            read.append(field)
    assert "architectures" in read and len(read) > 8


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1]}},
            "unknown field 'mrope_section'",
        ),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "missing field 'factor'"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide the 4 heads"),
        (
            "llama",
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is not covered",
        ),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types="),
        ("gemma2", {"layer_types": [["full_attention"]] * 2}, "layer_types="),
        ("gemma2", {"head_dim": -8}, "head_dim=-8 (must be above 0)"),
        ("mistral", {"sliding_window": 0}, "sliding_window=0 (must be above 0)"),
        ("modernbert", {"local_attention": 0}, "local_attention=0 (must be above 0)"),
        ("modernbert", {"global_attn_every_n_layers": 0}, "n_layers=0 (must be above 0)"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "pattern=0 (must be above 0)"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0 (must be above 0)"),
        # sliding layers without a window, on which transformers fails
        ("gemma2", {"sliding_window": None}, "missing field 'sliding_window'"),
        ("gemma3_text", {"sliding_window": None}, "missing field 'sliding_window'"),
        (
            "qwen2",
            {"layer_types": ["sliding_attention"] * 2, "use_sliding_window": True},
            "sliding_window is null",
        ),
        # transformers 5 prefers rope_scaling if both are given
        (
            "llama",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_scaling differs from rope_parameters",
        ),
        (
            "gemma3_text",
            {"rope_parameters": {"rope_theta": 1e4}},
            "one entry for each of full_attention",
        ),
        (
            "modernbert",
            {"rope_parameters": {"full_attention": {}, "sliding_attention": "x"}},
            "one entry for each of full_attention, sliding_attention",
        ),
        # linear in transformers 4, not scaled in 5
        (
            "gemma3_text",
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 8.0}},
            "rope_scaling has a type but no rope_type",
        ),
        ("bert", {"embedding_size": 16}, "embedding_size=16 differs from hidden_size"),
        ("modernbert", {"causal_mask": True}, "causal_mask=True (covered: False)"),
        ("llama", {"rope_parameters": {"rope_theta": 0}}, "rope_theta=0 (must be above 0)"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 0.0}},
            "factor=0.0 (must be above 0)",
        ),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("t5_encoder", {"feed_forward_proj": "gated-tanh"}, "feed_forward_proj"),
        ("t5_encoder", {"is_gated_act": True}, "is_gated_act"),
        ("modernbert", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling="),
        (
            "qwen3",
            {"layer_types": ["sliding_attention", "full_attention"]},
            "layer_types has sliding_attention, but use_sliding_window is false",
        ),
    ],
)
def test_values_that_are_not_covered(name, change, message):
    with pytest.raises(UserError) as error:
        config_from_hf(fields_of(name) | change)
    assert message in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_nonsensical_values(name):
    """Each is refused by a UserError or read as transformers reads it."""
    transformers = pytest.importorskip("transformers")
    fields = fields_of(name)
    kind = type(transformers.AutoConfig.for_model(fields["model_type"]))
    places = {(field,) for field in fields} | {
        ("rope_parameters", *path)
        for outer, inner in fields.get("rope_parameters", {}).items()
        for path in ((outer,), *((outer, name) for name in (inner if type(inner) is dict else ())))
    }
    plain, refused = config_from_hf(fields), set()
    values = (None, True, -1, 0, 1.5, "x", [], [1], [["a"]], {}, {"a": 1}, math.nan, math.inf)
    for place, value in itertools.product(sorted(places), values):
        changed = copy.deepcopy(fields)
        functools.reduce(dict.__getitem__, place[:-1], changed)[place[-1]] = value
        try:
            ours = config_from_hf(changed)
        except UserError:
            refused.add(place)
            continue
        if ours == plain:
            continue
        try:
            theirs = kind.from_dict(changed).to_dict()
        except Exception:  # its type checks raise many kinds of errors
            continue
        assert ours == config_from_hf(theirs), (place, value)
    assert ("model_type",) in refused and ("vocab_size",) in refused


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bert", {"embedding_size": 32}),
        ("modernbert", {"causal_mask": False}),
        ("qwen2", {"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.8}),
        ("qwen2", {"num_beams": 4, "min_length": 1, "suppress_tokens": [1], "typical_p": 1.0}),
        ("gemma2", {"sliding_window_size": 4}),
    ],
)
def test_fields_without_effect(name, change):
    assert config_from_hf(fields_of(name) | change) == read_config(GOLDEN / name)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_transformers_4(name):
    """rope_theta and rope_scaling, and patterns instead of lists."""
    new = fields_of(name)
    ropes = new.get("rope_parameters", {})
    old = without(new, "rope_parameters", "dtype", "layer_types", "is_gated_act", "dense_act_fn")
    old |= {"torch_dtype": "float32"}
    if "full_attention" in ropes:
        full, near = (ropes[k]["rope_theta"] for k in ("full_attention", "sliding_attention"))
        names = ("rope_theta", "rope_local_base_freq")
        if name == "modernbert":
            names = ("global_rope_theta", "local_rope_theta")
        old |= dict(zip(names, (full, near), strict=True))
    elif ropes:
        old["rope_theta"] = ropes["rope_theta"]
        if ropes["rope_type"] != "default":
            old["rope_scaling"] = without(ropes, "rope_theta")
    if name == "gemma3_text":
        old["sliding_window_pattern"] = 4  # the last of 4 layers, as in layer_types
        del old["_sliding_window_pattern"]
    assert config_from_hf(old) == read_config(GOLDEN / name)


def test_scaled_full_attention_of_gemma3():
    old = without(fields_of("gemma3_text"), "rope_parameters")
    old |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4}
    old |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    near, full = Rope(1e4), Rope(1e6, factor=8.0)
    assert config_from_hf(old).ropes == (near, near, near, full)


def test_windows_of_qwen():
    fields = without(fields_of("qwen2"), "layer_types")
    fields |= {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
    assert config_from_hf(fields).windows == (None, 6)
    assert config_from_hf(fields | {"use_sliding_window": False}).windows == (None, None)
    transformers = pytest.importorskip("transformers")
    fields |= {"sliding_window": None}
    assert transformers.Qwen2Config(**fields).layer_types == ["full_attention"] * 2
    assert config_from_hf(fields).windows == (None, None)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 500.0},
        {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
        {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
)
def test_rope_frequencies_are_those_of_transformers(rope):
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    fields = fields_of("llama") | {"head_dim": 64, "rope_parameters": rope}
    import transformers

    theirs = llama.LlamaRotaryEmbedding(transformers.LlamaConfig(**fields)).inv_freq
    ours = rope_frequencies(config_from_hf(fields).ropes[0], 64)
    torch.testing.assert_close(torch.tensor(ours), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "parameters"),  # as published, less the parts that are not built
    [
        ("intfloat/multilingual-e5-large", 559_890_432 - 1_049_600),  # a pooler
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen/Qwen3-Embedding-0.6B", 595_776_512),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248 - 525_336_576),  # a head
    ],
)
def test_parameters_of_public_shapes(name, parameters):
    shape, _ = model_shape(name)
    tree = jax.eval_shape(make_encoder(shape).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(tree)) == parameters


@pytest.mark.parametrize("whole", [False, True])  # its base's config.json may be beside it
def test_adapters_are_refused_by_name(whole, tmp_path):
    fields = {"peft_type": "LORA", "base_model_name_or_path": "intfloat/e5-mistral", "r": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    if whole:
        (tmp_path / "config.json").write_text(json.dumps(fields_of("bert")))
    message = r"a PEFT adapter \(LORA\) of the model 'intfloat/e5-mistral' is not .*; merge it: "
    with pytest.raises(UserError, match=rf"adapter_config\.json: {message}"):
        read_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"adapter_config\.json: .*nested too deeply"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("vocab_size", 1 << 31),
        ("max_position_embeddings", 10**40),
        ("hidden_size", 10**4000),
        ("num_hidden_layers", -(10**4000)),
        ("layer_norm_eps", 10**4000),
    ],
)
def test_numbers_that_are_no_sizes(name, number):
    with pytest.raises(UserError, match=rf"{name}.* \(too large\)"):
        config_from_hf(fields_of("bert") | {name: number})


@pytest.mark.parametrize(
    "fields",
    [
        {"tie_encoder_decoder": False, "begin_suppress_tokens": None},  # all of transformers 4's
        {"xla_device": None, "eos_token_ids": 0, "pruned_heads": {}},  # of transformers 2 and 3
    ],
)
def test_fields_of_whole_older_configs(fields):
    assert config_from_hf(fields_of("bert") | fields) == config_from_hf(fields_of("bert"))
