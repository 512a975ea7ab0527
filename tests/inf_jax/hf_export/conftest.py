"""`exports`: a function of a configuration's name that exports the tiny model once."""

import pytest

from tests.inf_jax.hf_export.tiny_exports import ATTENTION, CONFIGS, export_tiny


@pytest.fixture(scope="session")
def exports(tiny_model_dir, tmp_path_factory):
    """A function: name -> (directory, report)."""
    made = {}

    def get(name: str):
        if name not in made:
            out_dir = tmp_path_factory.mktemp("exports") / name
            config = (CONFIGS | ATTENTION)[name]
            made[name] = out_dir, export_tiny(tiny_model_dir, out_dir, config)
        return made[name]

    return get
