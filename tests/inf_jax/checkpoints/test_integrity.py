"""Checksums and fingerprints of arrays."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from inf_jax.checkpoints.integrity import checksums, fingerprint


def test_checksums_depend_on_places_and_bits():
    a = {"w": jnp.arange(24.0).reshape(2, 3, 4), "n": jnp.int32(3), "b": jnp.array([True, False])}
    a["h"] = jnp.arange(4, dtype=jnp.bfloat16)
    first = checksums(a)
    assert checksums(a | {"w": a["w"].at[1, 2, 3].set(-0.0)}).keys() == first.keys()
    for name, other in (
        ("w", a["w"][:, :, ::-1]),
        ("w", a["w"].at[0, 0, 0].set(-0.0)),
        ("n", jnp.int32(2)),
        ("b", jnp.array([False, True])),
        ("h", a["h"] + 1),
    ):
        changed = checksums(a | {name: other})
        assert [key for key in first if changed[key] != first[key]] == [name]
    sharded = jax.device_put(a["w"], jax.NamedSharding(jax.make_mesh((2,), "x"), P("x")))
    assert checksums({"w": sharded}) == {"w": first["w"]}


def test_fingerprints_are_those_of_older_checkpoints():
    tree = {"word": jnp.arange(24.0).reshape(2, 3, 4) / 7}
    tree["up_kernel"] = jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)
    assert fingerprint({"shared": tree}) == "6e7d7da45b501775"
    assert fingerprint({"query": tree}) != "6e7d7da45b501775"
    assert fingerprint({}) == ""
