"""`exports`: a function of a configuration's name that exports the tiny model once."""

import pytest

from tests.inf_jax.hf_export.tiny_exports import APART, CONFIGS, export_tiny


@pytest.fixture(scope="session")
def exports(tiny_model_dir, tmp_path_factory):
    """name -> (directory, report), made once each."""
    made = {}

    def get(name: str):
        if name not in made:
            out_dir = tmp_path_factory.mktemp("exports") / name
            config = (CONFIGS | APART)[name]
            made[name] = out_dir, export_tiny(tiny_model_dir, out_dir, config)
        return made[name]

    return get
