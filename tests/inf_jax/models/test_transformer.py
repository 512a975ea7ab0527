"""Token states and gradients of all families against transformers: padded, packed, scanned,
unrolled, rematerialised, on a mesh."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax.core.errors import UserError
from inf_jax.core.trees import flatten
from inf_jax.distributed.mesh import make_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.models import hf
from inf_jax.models.config import EncoderConfig
from inf_jax.models.dropout import DropoutKey
from inf_jax.models.encoder import make_encoder
from inf_jax.models.hf import check as hf_check
from inf_jax.models.hf.config import config_from_hf, mask_fields
from inf_jax.models.hf.weight_tables import rules_of
from inf_jax.models.layers import Norm
from inf_jax.models.transformer import Execution
from inf_jax.planning.flops import encoder_flops, product_flops
from tests.inf_jax.models.goldens import (
    GOLDEN,
    NAMES,
    all_rows,
    padded_rows,
    params_of,
    shape_of,
)


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states(name):
    encoder = make_encoder(shape_of(name))
    rows, real, expected = all_rows(name)

    @jax.jit
    def scanned_and_unrolled(params, *rows):
        return encoder.hidden(params, *rows), encoder.hidden(params, *rows, all_layers=True)

    scanned, layers = scanned_and_unrolled(params_of(name), *rows)
    for actual in (scanned, layers[-1]):
        np.testing.assert_allclose(np.asarray(actual)[real], expected[real], atol=2e-5, rtol=0)
    golden = np.load(GOLDEN / name / "golden.npz")
    assert len(layers) == encoder.config.layers + 1
    for start, side in ((0, "right"), (4, "left")):
        mask = golden[f"{side}_attention_mask"].astype(bool)
        for i, state in enumerate(layers):
            actual = np.asarray(state)[start : start + 4][mask]
            np.testing.assert_allclose(
                actual, golden[f"{side}_hidden_{i}"][mask], atol=2e-5, rtol=0, err_msg=f"layer {i}"
            )
        exact = golden[f"{side}_last_hidden_state_f64"][mask]
        actual = np.asarray(scanned)[start : start + 4][mask]
        np.testing.assert_allclose(actual, exact, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["modernbert", "t5_gated_encoder", "qwen3", "gemma2"])
def test_gradients_are_those_of_torch(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shape = shape_of(name)
    encoder = make_encoder(shape)
    fields = json.loads((GOLDEN / name / "config.json").read_text())
    kind = getattr(transformers, fields["architectures"][0])
    model = kind.from_pretrained(GOLDEN / name, attn_implementation="eager").eval()
    rows = padded_rows(name, "right")
    ids, mask, _ = rows
    weight = np.random.default_rng(0).normal(size=(*ids.shape, shape.width)).astype(np.float32)
    weight *= mask[..., None]
    hidden = model(
        input_ids=torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(mask)
    ).last_hidden_state
    (hidden * torch.tensor(weight)).sum().backward()

    def scalar(params):
        return jnp.sum(encoder.hidden(params, *rows, execution=Execution(remat="full")) * weight)

    grads = flatten(jax.jit(jax.grad(scalar))(params_of(name)))
    named = dict(model.named_parameters())
    seen = 0
    for rule in rules_of(shape, list(grads)):
        arrays = [np.asarray(grads[path]) for path in rule.paths]
        for n, tensor in enumerate(rule.names(shape.layers)):
            ours = rule.to_hf([x[rule.first + n] for x in arrays] if rule.stacked else arrays)
            theirs = named[tensor].grad.numpy()
            np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4, err_msg=tensor)
            seen += 1
    assert seen == len(named)


@pytest.mark.parametrize("name", ["modernbert", "gemma3_text"])
def test_fully_sharded(name):
    """Weights loaded onto shards of 8 devices give the same states."""
    shape = shape_of(name)
    encoder = make_encoder(shape)
    abstract = jax.eval_shape(encoder.init, jax.random.key(0))
    shardings = state_shardings(make_mesh(fsdp=8), abstract)
    params = hf.load_weights(GOLDEN / name, shape, shardings=shardings).params
    kernel = params["blocks"]["gate_kernel"]
    assert kernel.sharding == shardings["blocks"]["gate_kernel"]
    assert kernel.addressable_shards[0].data.shape[1] * 8 == shape.width
    jax.tree.map(np.testing.assert_array_equal, params, params_of(name))
    rows, real, expected = all_rows(name)
    actual = np.asarray(jax.jit(encoder.hidden)(params, *rows))
    np.testing.assert_allclose(actual[real], expected[real], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["qwen3", "mistral_sliding8", "gemma3_text", "embedding_gemma"])
def test_bidirectional_attention_of_decoders(name, tmp_path):
    """By the config (EmbeddingGemma) and by a run that overrides it."""
    pytest.importorskip("torch")
    model = "gemma3_text" if name == "embedding_gemma" else name
    fields = json.loads((GOLDEN / model / "config.json").read_text())
    causal = config_from_hf(fields)
    if name == "embedding_gemma":
        fields["use_bidirectional_attention"] = True
        shape = config_from_hf(fields)
        assert shape.windows[0] == 4  # of 8 tokens in all
    else:
        shape = causal.with_mask("bidirectional")
        fields = mask_fields(fields, shape)
        assert shape.windows == causal.windows
    assert causal.causal and not shape.causal
    assert config_from_hf(fields) == shape  # the file describes the model
    again = mask_fields(fields, shape.with_mask("causal"))
    assert config_from_hf(again) == shape.with_mask("causal")
    hf.save_weights(params_of(model), tmp_path, shape)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    result = hf_check.check_model(tmp_path)
    assert result.ok and result.difference < 2e-5
    texts = [np.arange(4, 60, dtype=np.int32)]
    other = hf_check.torch_states(GOLDEN / model, causal, texts)[0]
    ours = hf_check.packed_states(params_of(model), shape, texts)[0]
    assert np.abs(ours - other).max() > 0.1  # the mask matters


@pytest.mark.parametrize("name", ["qwen3", "modernbert", "t5_encoder"])
def test_flops_of_other_shapes(name):
    """The formula against the products of the traced forward pass; rows of one full text each."""
    shape = shape_of(name)
    encoder = make_encoder(shape)
    row = jnp.zeros((3, 16), jnp.int32)
    params = jax.eval_shape(encoder.init, jax.random.key(0))
    traced = jax.make_jaxpr(encoder.hidden)(params, row, row, row)
    formula = encoder_flops(shape, tokens=3 * 16, squares=3 * 16**2)
    assert product_flops(traced.jaxpr) == formula


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_backward_of_a_norm_keeps_the_input_as_it_is(name):
    """bfloat16 states are not kept in float32; a scan over layers stores what is kept."""
    norm, x = Norm(16, shape_of(name)), jnp.ones((2, 3, 16), jnp.bfloat16)
    kept = jax.eval_shape(lambda x: jax.vjp(norm, x)[1], x)
    whole = [leaf.dtype for leaf in jax.tree.leaves(kept) if leaf.shape == x.shape]
    assert whole == [jnp.bfloat16]


def test_encoders_cannot_be_causal():
    with pytest.raises(UserError, match=r"model\.mask='causal': bert models support bidirectional"):
        shape_of("bert").with_mask("causal")
    assert shape_of("qwen2").with_mask("causal") == shape_of("qwen2")


class Watched(EncoderConfig):
    """A config that records which of its fields are read."""

    seen: set

    def __getattribute__(self, name):
        if name in EncoderConfig.__dataclass_fields__:
            Watched.seen.add(name)
        return object.__getattribute__(self, name)

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def test_every_field_is_read():
    """By building, tracing or saving a model, or by overriding its mask."""
    Watched.seen = set()
    zeros = jnp.zeros((1, 4), jnp.int32)
    key = DropoutKey(jnp.zeros(2, jnp.uint32), zeros.astype(jnp.uint32), zeros.astype(jnp.uint32))
    for name in ("xlm_roberta", "modernbert", "t5_encoder", "gemma2"):
        shape = dataclasses.replace(shape_of(name), attention_dropout=0.1)
        watched = Watched(**vars(shape))
        encoder = make_encoder(watched)
        params = jax.eval_shape(encoder.init, jax.random.key(0))

        def traced(params, encoder=encoder):
            return encoder.hidden(params, zeros, zeros, zeros, key=key)

        jax.eval_shape(traced, params)
        rules_of(watched, list(flatten(params)))
    with pytest.raises(UserError):
        Watched(**vars(shape_of("bert"))).with_mask("causal")
    assert Watched.seen == EncoderConfig.__dataclass_fields__.keys()
