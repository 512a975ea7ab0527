"""Which out_dir and data.dir a config may have."""

import pytest

from inf_jax.config.checks import check_config
from inf_jax.core.errors import UserError


@pytest.mark.parametrize("place", ["gs:/runs/run", "gs://runs", "gs:///run", "s3://runs/run"])
def test_config_refuses_what_is_no_place(tiny_config, place):
    tiny_config.out_dir = place
    with pytest.raises(UserError, match=r"out_dir=.*a local directory, or gs://BUCKET/"):
        check_config(tiny_config)


def test_config_takes_a_bucket_for_results_only(tiny_config):
    tiny_config.out_dir = "gs://my-runs.example/a/b"
    check_config(tiny_config)
    tiny_config.data.dir = "gs://runs/data"
    with pytest.raises(UserError, match=r"data\.dir=.*gcloud storage cp"):
        check_config(tiny_config)
