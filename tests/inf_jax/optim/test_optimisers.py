"""Every optimiser against optax's own on arrays that are not stacked; groups; guard; sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.resume import ResumeInfo
from inf_jax.config.sections import OptimConfig
from inf_jax.core.choices import LR_SCALINGS, OPTIMISERS
from inf_jax.core.errors import UserError
from inf_jax.distributed.mesh import make_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.optim.groups import check_groups, parse_groups, scale_by_group
from inf_jax.optim.optimisers import decay_mask, make_optimizer
from inf_jax.optim.schedules import SCALINGS, make_schedule
from inf_jax.training.step import TrainState

SHAPES = {
    "word": (160, 136),  # both above 128, where Adafactor factors
    "blocks": {
        "up_kernel": (2, 136, 144),
        "query_kernel": (2, 136, 4, 2),
        "out_kernel": (2, 4, 2, 136),
        "up_bias": (2, 144),
        "norm": {"scale": (2, 136)},
    },
}
LR, WD = 1e-2, 0.1
LABELS = {"query_kernel": (136, 8), "out_kernel": (8, 136)}  # as matrices


def draw(seed):
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    tree = jax.tree.map(lambda s: np.float32(rng.normal(size=s)), SHAPES, is_leaf=is_shape)
    return {"shared": tree}


def apart(tree):
    """The same without stacks: a dict of arrays, a layer's matrices in two axes."""
    flat = {"word": tree["shared"]["word"]}
    for path, x in jax.tree_util.tree_leaves_with_path(tree["shared"]["blocks"]):
        name = "_".join(part.key for part in path)
        flat |= {f"{n}_{name}": y.reshape(LABELS.get(name, y.shape)) for n, y in enumerate(x)}
    return flat


def mask(flat):
    return {name: not name.endswith(("bias", "scale")) for name in flat}


def theirs(name):
    numbers = {"weight_decay": WD, "mask": mask}
    if name == "lamb":
        return optax.lamb(LR, eps=1e-8, **numbers)
    if name == "lion":
        return optax.lion(LR, b2=0.999, **numbers)
    if name == "adamw":
        return optax.adamw(LR, **numbers)
    if name == "adafactor":
        none = optax.adafactor(LR, multiply_by_parameter_scale=False)
        return optax.chain(none, optax.add_decayed_weights(-WD * LR, mask=mask))
    matrices = lambda flat: {  # noqa: E731
        n: contrib.MuonDimensionNumbers() if n.endswith("kernel") else None for n in flat
    }
    muon = contrib.muon(
        LR, beta=0.9, muon_weight_dimension_numbers=matrices, consistent_rms=0.2, eps=1e-8
    )
    return optax.chain(muon, optax.add_decayed_weights(-WD * LR, mask=mask))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_it_is_optax_s_of_each_layer(name):
    optim = OptimConfig(name=name, lr=LR, schedule="constant", weight_decay=WD, clip_norm=1e9)
    ours, other = make_optimizer(optim, make_schedule(optim, steps=9)), theirs(name)
    params = draw(0)
    flat = apart(params)
    state, memory = ours.init(params), other.init(flat)
    update, their_update = jax.jit(ours.update), jax.jit(other.update)
    for seed in (1, 2):
        grads = draw(seed)
        found, state = update(grads, state, params)
        expected, memory = their_update(apart(grads), memory, flat)
        params, flat = optax.apply_updates(params, found), optax.apply_updates(flat, expected)
    if name == "muon":  # their Adam for the rest has Nesterov's momentum
        flat = {n: x for n, x in flat.items() if n.endswith("kernel")}
    for n, x in flat.items():
        np.testing.assert_allclose(apart(params)[n], x, rtol=1e-4, atol=1e-6, err_msg=n)

    before = jax.tree.map(np.asarray, (params, state.inner_state))
    broken = jax.tree.map(lambda x: x * np.nan, draw(3))
    found, state = update(broken, state, params)
    after = optax.apply_updates(params, found), state.inner_state
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert state.total_notfinite == 1


@pytest.mark.parametrize("name", ["adafactor", "muon"])  # which have more than moments
def test_its_state_is_split_saved_and_restored(name, tmp_path):
    optim = OptimConfig(name=name)
    tx, params, mesh = make_optimizer(optim, lambda _: 1.0), draw(0), make_mesh(fsdp=8)

    @jax.jit
    def begin(params):
        state = TrainState(jnp.int32(1), params, tx.init(params))
        moved = tx.update(params, state.opt_state, params)[1]
        return state._replace(opt_state=moved)

    state = begin(params)
    shardings = state_shardings(mesh, state)
    pairs = zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(shardings.opt_state), strict=True)
    split = {x.size for x, sharding in pairs if any(sharding.spec)}
    state = jax.device_put(state, shardings)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim and x.shape != (1,)]
    whole = sum(x.size for x in jax.tree.leaves(params))
    factored = name == "adafactor"
    assert (sum(x.size for x in moments) < whole) == factored
    assert (160 * 136 in split) != factored
    with checkpoint.make_manager(tmp_path / "c", keep=1) as manager:
        checkpoint.save(manager, state.saved, ResumeInfo(1, 0, 8, "x"), config={})
        manager.wait_until_finished()
        shapes = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
        )
        restored, _ = checkpoint.restore(manager, shapes.saved)
    jax.tree.map(np.testing.assert_array_equal, restored["opt_state"], state.opt_state)


def test_groups_and_layer_decay():
    tree = {"query": SHAPES, "passage": SHAPES | {"final_norm": {"scale": (136,)}}}
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    updates = jax.tree.map(lambda s: np.ones(s, np.float32), tree, is_leaf=is_shape)
    groups = ("passage/.*up_kernel=0", "^passage/=0.5", "up_=3")
    tx = scale_by_group(groups, layer_decay=0.8, layers=2)
    found, _ = tx.update(updates, tx.init(updates), updates)
    query, passage = found["query"], found["passage"]
    each = lambda x: sorted({round(float(v), 6) for v in np.ravel(x)})  # noqa: E731
    assert each(query["word"]) == [0.64] and each(passage["word"]) == [0.32]
    assert each(query["blocks"]["up_kernel"][0]) == [2.4]
    assert each(query["blocks"]["up_kernel"][1]) == [3.0]
    assert each(query["blocks"]["norm"]["scale"]) == [0.8, 1.0]
    assert each(passage["blocks"]["up_kernel"]) == [0.0]
    assert each(passage["final_norm"]["scale"]) == [0.5]

    with pytest.raises(UserError, match=r"'nothing' matches no trained parameter; there are pass"):
        check_groups(("word=1", "nothing=2"), updates)
    for wrong in ("word", "=2", "word=-1", "word=fast", "(=1"):
        with pytest.raises(UserError, match=r"optim\.groups: .* is not a regular expression, ="):
            parse_groups((wrong,))


def test_a_group_s_rate_is_that_of_adamw_with_this_rate():
    """Weight decay included, which is a part of the update."""
    plain = {"name": "adamw", "schedule": "constant", "weight_decay": WD}
    slow = OptimConfig(lr=LR / 4, **plain)
    grouped = OptimConfig(lr=LR, groups=("word=0.25",), **plain)
    params, grads = draw(0), draw(1)
    found = []
    for optim in (slow, grouped):
        tx = make_optimizer(optim, make_schedule(optim, steps=9))
        found.append(tx.update(grads, tx.init(params), params)[0]["shared"])
    np.testing.assert_allclose(found[0]["word"], found[1]["word"], rtol=1e-6)
    up = [each["blocks"]["up_kernel"] for each in found]
    np.testing.assert_allclose(4 * up[0], up[1], rtol=1e-6)


def test_the_rate_grows_with_the_batch():
    assert tuple(SCALINGS) == LR_SCALINGS
    for rule, factor in {"none": 1.0, "sqrt": 2.0, "linear": 4.0}.items():
        optim = OptimConfig(lr=0.1, lr_scaling=rule, lr_batch=32, schedule="constant")
        schedule = make_schedule(optim, steps=10, pairs=128)
        assert schedule(3) == pytest.approx(0.1 * factor)


def test_decay_mask_of_adapters_and_tables():
    flat = {"shared": {"blocks": {"up_lora_a": 1, "up_bias": 1}, "relative_bias": 1, "word": 1}}
    assert decay_mask(flat)["shared"] == {
        "blocks": {"up_lora_a": True, "up_bias": False},
        "relative_bias": False,
        "word": True,
    }
