"""The query encoders: one for each choice of the configuration."""

import pytest

from inf_jax.core.choices import QUERY_ENCODERS
from inf_jax.core.errors import UserError
from inf_jax.core.query_encoders import query_encoder


def test_one_for_each_choice():
    assert tuple(query_encoder(name).name for name in QUERY_ENCODERS) == QUERY_ENCODERS
    with pytest.raises(UserError, match=r"query_encoder='both': choose one of joint, attention"):
        query_encoder("both")
