"""Cases with the values that other libraries give them; tests/golden/README.md says which."""

import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[2] / "golden" / "metrics"
CUTS = (1, 3, 5, 10, 20, 100, 1000)
EXACT = 1e-12


def golden(name):
    """The cases of a file as test parameters."""
    cases = json.loads((GOLDEN / f"metrics_{name}.json").read_text())
    return [pytest.param(c, id=f"{name}-{c['seed']}{'-ties' * c['ties']}") for c in cases]
