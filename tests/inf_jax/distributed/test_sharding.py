"""Sharding rules: unknown names and odd sizes are refused."""

import jax.numpy as jnp
import pytest

from inf_jax.core.errors import UserError
from inf_jax.distributed.mesh import make_mesh
from inf_jax.distributed.sharding import state_shardings


def test_unknown_names_and_indivisible_sizes_are_refused():
    with pytest.raises(UserError, match="no sharding rule for mystery"):
        state_shardings(make_mesh(), {"mystery": jnp.zeros((3, 3))})
    with pytest.raises(UserError, match="not divisible by mesh axis fsdp"):
        state_shardings(make_mesh(fsdp=8), {"word": jnp.zeros((16, 12))})
