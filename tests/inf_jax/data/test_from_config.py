"""Settings from a run's config, and the advice where the dataset is missing."""

import dataclasses

import pytest

from inf_jax.config.sections import DataConfig, RunConfig
from inf_jax.core.errors import UserError
from inf_jax.data.from_config import dataset_dir


@pytest.mark.parametrize(
    ("directory", "flag"),
    [
        ("out/data", "--data-dir=out/data`"),
        ("my data", "'--data-dir=my data'`"),
        ("", "--data-dir=.`"),
        ("$HOME/d", "'--data-dir=$HOME/d'`"),
    ],
)
def test_the_advice_to_build_can_be_pasted(directory, flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(RunConfig(), data=DataConfig(dir=directory))
    with pytest.raises(UserError) as error:
        dataset_dir(config)
    command = "`python -m data_pipeline.build --source=medquad "
    assert str(error.value).endswith(command + flag)
