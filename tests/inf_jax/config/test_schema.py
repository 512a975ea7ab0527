"""Values of another type: one line that names the config file, the key and what is expected."""

import pytest

from data_pipeline.config import FactoryConfig, check_factory
from data_pipeline.config import defaults as factory_defaults
from inf_jax.config.checks import check_config
from inf_jax.config.command_line import parse_flags
from inf_jax.config.defaults import defaults
from inf_jax.config.sections import RunConfig
from inf_jax.core.errors import UserError

WRONG = [
    ("c.train.steps = None", "train.steps=None: must be a whole number"),
    ("c.optim.lr = None", "optim.lr=None: must be a number"),
    ("c.model.normalise = None", "model.normalise=None: must be True or False"),
    ("c.out_dir = None", "out_dir=None: must be a string"),
    ("c.loss.dims = None", "loss.dims=None: must be a tuple of whole numbers, such as (1, 2)"),
    ("c.loss.dims = ('8', '16')", "loss.dims=('8', '16'): must be a tuple of whole numbers"),
    ("c.loss.dims = (8.0,)", "loss.dims=(8.0,): must be a tuple of whole numbers"),
    ("c.loss.dims = ((8,), 16)", "loss.dims=((8,), 16): must be a tuple of whole numbers"),
    ("c.eval.dims = (True,)", "eval.dims=(True,): must be a tuple of whole numbers"),
    ("c.loss.dim_weights = ('1',)", "loss.dim_weights=('1',): must be a tuple of numbers"),
    ("c.optim.lr = config_dict.placeholder(float)", "optim.lr=None: must be a number"),
    (
        "c.optim.lr = config_dict.placeholder(float, required=True)",
        "optim.lr: has no value (",
    ),
    ("c.train.steps = 10**400", "train.steps: a number of at most 2**32"),
    ("c.loss.dims = (10**30,)", "loss.dims: a number of at most 2**32"),
    ("c.data.dir = 'a\\0b'", "data.dir='a\\x00b': holds what is no character"),
    ("c.model.name = 'a\\udcffb'", "model.name='a\\udcffb': holds what is no character"),
]
FACTORY = [
    ("source.query_words", ("1", "64"), "must be a tuple of whole numbers"),
    ("filter.document_words", (None, 5), "must be a tuple of whole numbers"),
    ("filter.languages", (1,), "must be a tuple of strings, such as ('a', 'b')"),
    ("evaluation.paths", (None,), "must be a tuple of strings"),
    ("generate.types", (["x"],), "must be a tuple of strings"),
    ("generate.type_weights", ("1", "2"), "must be a tuple of numbers"),
    ("generate.type_weights", (float("inf"),) * 3, "must be a finite number"),
    ("judge.price", ("0.1", "0.2"), "must be a tuple of numbers, such as (1, 0.5)"),
    ("judge.temperature", None, "must be a number"),
    ("score.low", None, "must be a number"),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_a_wrong_type_in_a_config_file(tmp_path, line, message):
    file = tmp_path / "c.py"
    file.write_text(
        "from ml_collections import config_dict\n"
        "from inf_jax.config import defaults\n"
        f"def get_config():\n    c = defaults()\n    {line}\n    return c\n"
    )
    with pytest.raises(UserError) as caught:
        parse_flags(["x", f"--config={file}"], "", sections=RunConfig(), example="x")
    assert str(caught.value).startswith(f"--config={file}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value", "message"), FACTORY)
def test_a_wrong_type_in_a_factorys_config(key, value, message):
    config = factory_defaults()
    config.update_from_flattened_dict(
        {"source.path": "x", "generate.model": "m", "judge.model": "m", key: value}
    )
    with pytest.raises(UserError) as caught:
        check_factory(config)
    assert f"{key}={value!r}: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "check", "start"),
    [(RunConfig(), check_config, defaults), (FactoryConfig(), check_factory, factory_defaults)],
)
def test_every_key_refuses_no_value_and_a_tuple_of_tuples(sections, check, start):
    from inf_jax.config.schema import keys

    for each in keys(sections):
        for value in (None, ((),)):
            config = start()
            with config.ignore_type():
                config.update_from_flattened_dict({each.name: value})
            with pytest.raises(UserError) as caught:
                check(config)
            assert f"{each.name}={value!r}: must be " in str(caught.value)
