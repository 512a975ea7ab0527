"""Floating-point operations counted from the traced program."""

import jax
import jax.numpy as jnp

from inf_jax.distributed.mesh import make_mesh
from inf_jax.losses import contrastive_loss
from inf_jax.planning.flops import product_flops


def test_product_flops():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")

    def local(x):  # float32[2, 4] on a device
        return jax.lax.fori_loop(0, 3, lambda _, y: y @ jnp.ones((4, 4)), x)

    def step(x):
        y = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)(x)
        return y @ y.T

    found = product_flops(jax.make_jaxpr(step)(jnp.ones((16, 4))).jaxpr, devices=8)
    assert found == 3 * 2 * (2 * 4 * 4) + 2 * (16 * 4 * 16) / 8


def test_ring_costs_four_products_a_tile():
    """Scores, the scores again, and two gradients; the dense engine three for each block."""
    x = jax.ShapeDtypeStruct((256, 16), jnp.float32)
    mesh = make_mesh()

    def flops(engine: str) -> float:
        def loss(q, p):
            options = {"engine": engine, "mesh": mesh, "tile": (16, 16), "mask": "faithful"}
            return contrastive_loss(q, p, objective="multi(P,IQ)", scale=20.0, **options)[0]

        step = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, x)
        return product_flops(step.jaxpr, devices=mesh.size)

    product = 2 * 256 * 256 * 16 / mesh.size
    assert flops("ring") == 4 * product
    assert flops("dense") == 6 * product
