"""One finished run of the factory for all tests of the command."""

import pytest

from tests.data_pipeline.commands.factory_runs import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, calm_server):
    """A finished run of 20 pairs: its directory and what it printed."""
    out_dir = tmp_path_factory.mktemp("factory") / "out"
    return out_dir, run(out_dir, calm_server.base_url).stdout
