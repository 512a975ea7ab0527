"""Shapes of public models and of given config files."""

import jax
import pytest

from inf_jax.core.errors import UserError
from inf_jax.models.encoder import make_encoder
from inf_jax.planning.model_shapes import model_shape


@pytest.mark.parametrize(
    ("name", "parameters"),  # as published, less the pooler's width^2 + width
    [
        ("bert-base-uncased", 109_482_240 - 590_592),
        ("intfloat/e5-base-v2", 109_482_240 - 590_592),
        ("intfloat/e5-large-v2", 335_141_888 - 1_049_600),
        ("sentence-transformers/all-MiniLM-L6-v2", 22_713_216 - 147_840),
    ],
)
def test_public_models(name, parameters):
    shape, source = model_shape(name)
    tree = jax.eval_shape(make_encoder(shape).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(tree)) == parameters
    assert name in source


def test_model_config_override(tiny_model_dir, tmp_path):
    for path in (tiny_model_dir, tiny_model_dir / "config.json"):
        assert model_shape("no/such", str(path))[0].width == 32
    with pytest.raises(UserError, match="--model-config=FILE"):
        model_shape(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"nothing\.json"):
        model_shape("no/such", str(tmp_path / "nothing.json"))
