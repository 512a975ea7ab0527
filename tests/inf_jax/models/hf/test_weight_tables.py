"""The weight tables cover every family, each parameter once."""

import pytest

from inf_jax.core.trees import flatten
from inf_jax.models.hf.weight_tables import TABLES, rules_of
from tests.inf_jax.models.goldens import NAMES, params_of, shape_of


def test_a_parameter_has_exactly_one_rule():
    with pytest.raises(ValueError, match=r"without exactly one rule: \['blocks/other'\]"):
        rules_of(shape_of("bert"), [*flatten(params_of("bert")), "blocks/other"])
    covered = {shape_of(name).family for name in NAMES}
    assert covered == TABLES.keys() - {"roberta"}  # which is XLM-R under another class
