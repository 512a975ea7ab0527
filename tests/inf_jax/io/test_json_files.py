"""JSON files: what is read, and what each mistake is called."""

import hashlib

import pytest

from inf_jax.core.errors import UserError
from inf_jax.io.atomic import atomic_write
from inf_jax.io.json_files import read_json, sha256_of_file, write_json


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"b": [1, "é"], "a": None}, sort_keys=True)
    assert path.read_text(encoding="utf-8").startswith('{\n  "a": null,\n')
    assert read_json(path, kind=dict) == {"a": None, "b": [1, "é"]}
    assert sha256_of_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_mistakes(tmp_path):
    path = tmp_path / "a.json"
    assert read_json(path, default={}) == {}
    with pytest.raises(UserError, match=r"a\.json: no such file; build it"):
        read_json(path, remedy="build it")
    atomic_write(path, "{")
    with pytest.raises(UserError, match=r"a\.json: not JSON \(.*\); make it again"):
        read_json(path, default={})
    atomic_write(path, b"[]")
    with pytest.raises(UserError, match=r"a\.json: not a dict"):
        read_json(path, kind=dict)
    with pytest.raises(UserError, match=r"cannot read .*directory"):
        read_json(tmp_path)
