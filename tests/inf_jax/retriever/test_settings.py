"""`inf_jax.json`: damaged files and unknown values are refused."""

import shutil

import pytest

import inf_jax
from inf_jax.core.errors import UserError


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
