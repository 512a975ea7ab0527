"""JSON files: what is read, and what each mistake is called."""

import hashlib

import pytest

from inf_jax.core.errors import UserError
from inf_jax.core.json_text import parse_json
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
    with pytest.raises(
        UserError, match=r"a\.json: a list where a JSON object is expected; make it again"
    ):
        read_json(path, kind=dict)
    with pytest.raises(UserError, match=r"cannot read .*directory"):
        read_json(tmp_path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 100_000 + b"]" * 100_000, r"nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, r"nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"number of more than 4300 digits"),
        (b'{"a": "\xff"}', r"can't decode"),
        ('{"a": "é"}'.encode("utf-16"), r"can't decode"),
        (b"", r"Expecting value"),
        (b'{"a": 1} {}', r"Extra data"),
        (b"null", r"null where a JSON object"),
        (b"1.5", r"a number where a JSON object"),
    ],
    ids=["lists", "objects", "digits", "bytes", "utf-16", "empty", "two", "null", "number"],
)
def test_what_json_of_others_can_be(tmp_path, data, reason):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"a\.json: .*{reason}.*; download it again$"):
        read_json(path, kind=dict, remedy="download it again")


def test_byte_order_mark():
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', "x") == parse_json('\ufeff{"a": 1}', "x") == {"a": 1}
