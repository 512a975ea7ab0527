"""Output files of stages: complete and of the right settings, or absent."""

import json

import pytest

from data_pipeline.items import Item, read_items
from data_pipeline.stages.stage_files import StageFile
from inf_jax.core.errors import UserError

ITEM = Item("1", "q\u2028é", "p\nq", "format", scores={"positive": 0.5})


def _file(path, **changes) -> StageFile:
    keys = {"settings": {"a": 1}, "source": "s"} | changes
    return StageFile(path, "judged", **keys)


def _write(file: StageFile, *items: Item) -> None:
    with file.writing(lambda: {"dropped": {"short": 2}}) as write:
        for item in items:
            write(item)


def test_a_file_is_reused_only_with_the_same_settings(tmp_path):
    file = _file(tmp_path)
    assert file.metadata() is None
    _write(file, ITEM, Item("2", "q", "p").drop("judge", "I+Q+|P+"))
    found = _file(tmp_path).metadata()
    assert (found["items"], found["alive"], found["complete"]) == (2, 1, True)
    assert found["extra"] == {"dropped": {"short": 2}}
    assert [item.id for item in file.read()] == ["1", "2"]
    for other in ({"settings": {"a": 2}}, {"source": "t"}):
        assert _file(tmp_path, **other).metadata() is None


def test_a_file_that_lacks_budget_is_not_complete(tmp_path):
    _write(_file(tmp_path), Item("2", "q", "p").drop("judge", "budget"))
    assert not _file(tmp_path).metadata()["complete"]


def test_an_error_leaves_the_old_file(tmp_path):
    file = _file(tmp_path)
    _write(file, ITEM)
    with pytest.raises(RuntimeError), file.writing() as write:
        write(ITEM)
        raise RuntimeError
    assert file.metadata()["items"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"judged.jsonl", "judged.meta.json"}


@pytest.mark.parametrize("damage", ["truncated", "not json", "other fields"])
def test_a_damaged_file_is_not_reused(tmp_path, damage):
    file = _file(tmp_path)
    _write(file, ITEM, ITEM)
    data = file.path.read_bytes()
    line = {
        "truncated": data[:-20],
        "not json": data.replace(b"{", b"[", 1),
        "other fields": data.replace(b'"passage"', b'"text"', 1),
    }[damage]
    file.path.write_bytes(line)
    assert file.metadata() is None
    with pytest.raises(UserError, match=rf"judged.jsonl:{2 if damage == 'truncated' else 1}.*run"):
        list(read_items(file.path))


@pytest.mark.parametrize("name", ["items", "alive", "complete", "extra", "sha256", "fingerprint"])
def test_metadata_that_lack_a_field_are_none(tmp_path, name):
    file = _file(tmp_path)
    _write(file, ITEM)
    meta = json.loads((tmp_path / "judged.meta.json").read_text())
    del meta[name]
    (tmp_path / "judged.meta.json").write_text(json.dumps(meta))
    assert file.metadata() is None


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"pairs\.jsonl.*run the stage"):
        list(read_items(tmp_path / "pairs.jsonl"))
