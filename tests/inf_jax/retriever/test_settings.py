"""`inf_jax.json`: older formats are read, damaged files and unknown values are refused."""

import dataclasses
import json
import shutil

import pytest

import inf_jax
from inf_jax.core.errors import UserError
from inf_jax.retriever.settings import RetrieverConfig, read_settings

ADDED = {  # in each version of the format
    2: {"query_encoder": "attention"},
    3: {"projection": 8, "projection_bias": True, "dims": (8, 4)},
    4: {"truncate_dim": 4, "similarity": "dot"},
}


@pytest.mark.parametrize("version", [1, *ADDED])
def test_older_formats(tmp_path, version):
    config = RetrieverConfig("separate", "cls", False)
    absent = []
    for number, values in ADDED.items():
        if version >= number:
            config = dataclasses.replace(config, **values)
        else:
            absent += values
    fields = dataclasses.asdict(config) | {"format": version}
    for name in absent:
        del fields[name]
    (tmp_path / "inf_jax.json").write_text(json.dumps(fields))
    assert read_settings(tmp_path) == config


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not JSON"),
        ('{"format": 5}', "format 5, this version reads 1 to 4"),
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


@pytest.mark.parametrize(
    "change",
    [
        {"towers": ["shared"]},
        {"pooling": None},
        {"normalise": "yes"},
        {"normalise": 1},
        {"projection": "16"},
        {"projection": -1},
        {"projection_bias": 0},
        {"truncate_dim": 8.0},
        {"truncate_dim": True},
        {"similarity": 3},
        {"dims": ["8"]},
        {"dims": [-8]},
        {"dims": 8},
        {"text": []},
        {"text": {"max_query_tokens": "32"}},
        {"text": {"passage_template": None}},
        {"format": "4"},
        {"format": [4]},
    ],
)
def test_settings_of_another_type(tmp_path, change):
    fields = dataclasses.asdict(RetrieverConfig()) | {"format": 4} | change
    (tmp_path / "inf_jax.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"inf_jax\.json: "):
        read_settings(tmp_path)
