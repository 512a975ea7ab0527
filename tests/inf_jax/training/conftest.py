"""Fixtures: the weights of a small BERT."""

import pytest

from inf_jax.models import hf
from inf_jax.models.hf.config import read_config
from tests.inf_jax.training.steps import GOLDEN


@pytest.fixture(scope="session")
def weights():
    return hf.load_weights(GOLDEN, read_config(GOLDEN)).params
