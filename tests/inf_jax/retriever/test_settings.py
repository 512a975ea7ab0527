"""`inf_jax.json`: older formats are read, damaged files and unknown values are refused."""

import dataclasses
import json
import shutil

import pytest

import inf_jax
from inf_jax.core.errors import UserError
from inf_jax.retriever.settings import RetrieverConfig, read_settings


@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_formats(tmp_path, version):
    config = RetrieverConfig("separate", "cls", False)
    added = {2: {"query_encoder": "attention"}, 3: {"projection": 8, "dims": (8, 4)}}
    for number, values in added.items():
        if version >= number:
            config = dataclasses.replace(config, **values)
    fields = dataclasses.asdict(config) | {"format": version}
    absent = {1: ["query_encoder", "projection", "projection_bias", "dims"]}
    absent[2] = absent[1][1:]
    for name in absent.get(version, ()):
        del fields[name]
    (tmp_path / "inf_jax.json").write_text(json.dumps(fields))
    assert read_settings(tmp_path) == config


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not JSON"),
        ('{"format": 4}', "format 4, this version reads 1 to 3"),
        ('{"format": 1, "towers": "shared"}', "pooling"),
        ('{"format": 1, "towers": "two", "pooling": "cls", "normalise": true, "text": {}}', "two"),
        (
            '{"format": 2, "towers": "shared", "pooling": "cls", "normalise": true, "text": {}}',
            "query_encoder",
        ),
        (
            '{"format": 2, "towers": "shared", "pooling": "cls", "normalise": true, "text": {},'
            ' "query_encoder": "both"}',
            "query_encoder='both' is not one of",
        ),
        (
            '{"format": 1, "towers": "shared", "pooling": "cls", "normalise": true,'
            ' "text": {"query_template": "{query}"}}',
            "must hold",
        ),
    ],
)
def test_damaged_settings_are_refused(tiny_model_dir, tmp_path, text, message):
    directory = shutil.copytree(tiny_model_dir, tmp_path / "damaged")
    (directory / "inf_jax.json").write_text(text)
    with pytest.raises(UserError, match=rf"inf_jax\.json.*{message}"):
        inf_jax.load(directory)
