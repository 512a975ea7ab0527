"""Names of models to local directories; the face of the package."""

import subprocess
import sys

import pytest

from inf_jax.core.errors import UserError
from inf_jax.models.hf.resolve import resolve_model
from tests.inf_jax.models.goldens import GOLDEN


def test_resolve_model():
    assert resolve_model(str(GOLDEN)) == GOLDEN
    with pytest.raises(UserError, match="package no_such_thing is not installed"):
        resolve_model("package:no_such_thing/model")
    with pytest.raises(UserError, match="no such directory"):
        resolve_model("./not/here/at/all")
    with pytest.raises(UserError, match="not a local directory, and could not be downloaded"):
        resolve_model("nobody/nothing")  # the hub is offline in tests


def test_resolving_imports_no_jax():
    code = "import sys; from inf_jax.models import hf; hf.resolve_model"
    code += "; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
