"""Adapters: initially without effect, merged or not, on a mesh, and against PEFT."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax.core.errors import UserError
from inf_jax.core.trees import join_trees
from inf_jax.distributed.gradcache import encode_in_chunks
from inf_jax.distributed.mesh import batch_sharding, make_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.hf_export.peft_adapter import write_adapter
from inf_jax.models.encoder import EncoderOptions, make_encoder
from inf_jax.models.hf.weight_tables import table_of
from inf_jax.models.lora import Lora, initial_adapters, make_lora, merged
from inf_jax.models.transformer import Execution
from inf_jax.planning.flops import product_flops
from tests.inf_jax.models.goldens import (
    GOLDEN,
    all_rows,
    padded_rows,
    params_of,
    shape_of,
)
from tests.inf_jax.models.test_encoder_mesh import packed_chunks


def adapters_of(name: str, lora: Lora) -> dict:
    """{"blocks": adapters} whose B is not 0."""
    made = initial_adapters(jax.random.key(0), params_of(name)["blocks"], lora)
    rng = np.random.default_rng(0)

    def drawn(name, x):
        return 0.1 * rng.normal(size=x.shape).astype(np.float32) if name.endswith("b") else x

    return {"blocks": {name: drawn(name, x) for name, x in made.items()}}


def lora_of(name: str, targets: str = "_kernel$", rank: int = 3) -> Lora:
    paths = [f"blocks/{path}" for path in params_of(name)["blocks"]]
    return make_lora(paths, rank=rank, alpha=6.0, targets=targets)


@pytest.mark.parametrize("name", ["modernbert", "t5_gated_encoder", "gemma3_text"])
def test_no_effect_initially_and_merging_changes_nothing(name):
    lora, params = lora_of(name), params_of(name)
    plain, adapted = (
        make_encoder(shape_of(name), EncoderOptions(lora=which)) for which in (None, lora)
    )
    initial = join_trees(
        params, {"blocks": initial_adapters(jax.random.key(0), params["blocks"], lora)}
    )
    moved = join_trees(params, adapters_of(name, lora))
    assert jax.tree.map(jnp.shape, jax.eval_shape(adapted.init, jax.random.key(0))) == jax.tree.map(
        jnp.shape, initial
    )
    rows = all_rows(name)[0]
    with_none = jax.jit(lambda tree: plain.hidden(tree, *rows))
    with_adapters = jax.jit(
        lambda tree: adapted.hidden(tree, *rows, execution=Execution(remat="dots"))
    )
    before, initially = np.asarray(with_none(params)), with_adapters(initial)
    unmerged, whole = with_adapters(moved), with_none(merged(moved, lora))
    np.testing.assert_array_equal(initially, before)
    assert np.abs(unmerged - before).max() > 0.1
    np.testing.assert_allclose(unmerged, whole, atol=2e-5)


def test_initial_adapters_are_kaiming_uniform_per_layer():
    blocks = {
        "out_kernel": jnp.zeros((3, 4, 16, 64)),
        "up_kernel": jnp.zeros((3, 64, 256)),
    }
    made = initial_adapters(jax.random.key(1), blocks, Lora(32, 1.0, ("out", "up")))
    assert made["out_lora_a"].shape == (3, 4, 16, 32) and made["out_lora_b"].shape == (3, 32, 64)
    assert made["up_lora_a"].shape == (3, 64, 32) and made["up_lora_b"].shape == (3, 32, 256)
    assert not made["up_lora_b"].any()
    for a in (made["out_lora_a"], made["up_lora_a"]):  # 64 inputs each
        assert 0.124 < float(jnp.abs(a).max()) <= 0.125
        np.testing.assert_allclose(float(a.std()), 0.125 / 3**0.5, rtol=0.03)
        assert float(jnp.abs(a[0] - a[1]).max()) > 0.1


def test_targets_are_linear_layers():
    assert lora_of("bert", "(query|value)_kernel").targets == ("query", "value")
    assert lora_of("bert", "whatever", rank=0) is None
    for pattern, reason in (
        ("queries", "matches nothing; linear layers are .*blocks/down_kernel"),
        ("query_", "matches blocks/query_bias, not linear; linear layers are"),
    ):
        with pytest.raises(UserError, match=rf"model\.lora_targets='{pattern}' {reason}"):
            lora_of("bert", pattern)


def test_gradients_on_a_mesh_and_none_of_a_kernel():
    name = "qwen3"
    lora = lora_of(name)
    shape = dataclasses.replace(shape_of(name), dropout=0.1, attention_dropout=0.1)
    encoder = make_encoder(shape, EncoderOptions(normalise=False, lora=lora))
    params, adapters, packed = params_of(name), adapters_of(name, lora), packed_chunks()
    weight = np.random.default_rng(2).normal(size=(4, 5, 32)).astype(np.float32)
    key = jax.random.key(0)

    def scalar(adapters, params, packed, mesh=None, groups=1):
        def encode(params, packed, **options):
            return encoder.encode(params, packed, key, **options)

        tree = join_trees(params, adapters)
        return jnp.sum(
            encode_in_chunks(encode, tree, packed, groups=groups, mesh=mesh, gather="layer")
            * weight
        )

    gradient = jax.grad(scalar)
    expected = jax.jit(gradient)(adapters, params, packed)
    mesh = make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    split = [jax.device_put(tree, state_shardings(mesh, tree)) for tree in (adapters, params)]
    batch = jax.device_put(packed, batch_sharding(mesh))
    actual = jax.jit(lambda *of: gradient(*of, mesh, groups=2))(*split, batch)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    assert largest > 1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6 * largest, rtol=0), actual, expected
    )

    def products(which):
        whole = jax.make_jaxpr(jax.grad(scalar, which))(adapters, params, packed)
        return product_flops(whole.jaxpr)

    forward = product_flops(jax.make_jaxpr(scalar)(adapters, params, packed).jaxpr)
    assert products((0, 1)) > 2.9 * forward
    assert products(0) < 2.45 * forward  # attention and adapters need all three products


@pytest.mark.parametrize(
    ("name", "targets"),
    [("modernbert", "(query|value|down|out)_kernel"), ("qwen3", "_kernel$"), ("t5_encoder", "up_")],
)
def test_gradients_are_those_of_peft(tmp_path, name, targets):
    """An adapter that PEFT loads: the same token states, and gradients of A and B."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    import transformers

    lora, shape, params = lora_of(name, targets), shape_of(name), params_of(name)
    adapters = adapters_of(name, lora)
    options = {"lora": lora, "shape": shape, "blocks": params["blocks"], "base": str(GOLDEN / name)}
    write_adapter(tmp_path / "adapter", adapters["blocks"], **options)
    ids, mask, positions = padded_rows(name, "right")
    kept = mask[:, :, None].astype(np.float32)
    weight = kept * np.random.default_rng(1).normal(size=(*ids.shape, shape.width))
    weight = weight.astype(np.float32)

    kind = getattr(transformers, table_of(shape).architecture)
    model = kind.from_pretrained(GOLDEN / name, attn_implementation="eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter", is_trainable=True)
    model.eval()
    states = model(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
    (states * torch.tensor(weight)).sum().backward()
    theirs = {n: p.grad.numpy() for n, p in model.named_parameters() if p.requires_grad}

    encoder = make_encoder(shape, EncoderOptions(lora=lora))
    rows = [np.asarray(x, np.int32) for x in (ids, mask, positions)]

    @jax.jit
    def ours(adapters):
        def scalar(adapters):
            states = encoder.hidden(join_trees(params, adapters), *rows)
            return jnp.sum(states * weight), states

        return jax.grad(scalar, has_aux=True)(adapters)

    gradients, our_states = ours(adapters)
    np.testing.assert_allclose(our_states * kept, states.detach().numpy() * kept, atol=2e-5)
    write_adapter(tmp_path / "gradients", jax.device_get(gradients["blocks"]), **options)
    from safetensors.numpy import load_file

    written = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    assert len(written) == len(theirs)
    for key, x in written.items():
        y = theirs[key.replace(".weight", ".default.weight")]
        if "Wqkv.lora_B" in key:  # block-diagonal; PEFT would train the zeros as well
            y = np.where(x == 0, 0, y)
        assert np.abs(x).max() > 0
        np.testing.assert_allclose(x, y, atol=1e-4 * np.abs(y).max())
