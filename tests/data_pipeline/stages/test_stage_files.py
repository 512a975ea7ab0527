"""Items as lines, and the files of the stages: whole, of these settings, or not there."""

import pytest

from data_pipeline.items import INSTRUCTED_QUERIES, PASSAGES, Item, Judgement, read_items
from data_pipeline.stages.stage_files import StageFile
from inf_jax.core.errors import UserError
from inf_jax.data.records import Example

ITEM = Item(
    id="1",
    query="q\u2028é",
    passage="p\nq",
    instruction_type="format",
    example=Example("1", "q", "i", "p", "i2", "p2", "q2", "p3"),
    provenance={"generate": {"model": "m"}},
    judgements=[Judgement("judge", "I+Q+", "P+", True, "so")],
    scores={"positive": 0.5},
)


def _file(path, **changes) -> StageFile:
    keys = {"settings": {"a": 1}, "source": "s"} | changes
    return StageFile(path, "judged", **keys)


def _write(file: StageFile, *items: Item) -> None:
    with file.writing(lambda: {"dropped": {"short": 2}}) as write:
        for item in items:
            write(item)


def test_an_item_comes_back_as_it_was():
    assert Item.from_json(ITEM.to_json()) == ITEM
    assert "\n" not in ITEM.to_json()


def test_expected_is_the_diagonal():
    right = [
        (q, p)
        for q in INSTRUCTED_QUERIES
        for p in PASSAGES
        if Judgement("judge", q, p, True, "").expected
    ]
    assert right == [("I+Q+", "P+"), ("I-Q+", "P-1"), ("I+Q-", "P-2")]


def test_a_file_is_found_again_only_with_its_own_settings(tmp_path):
    file = _file(tmp_path)
    assert file.metadata() is None
    _write(file, ITEM, Item("2", "q", "p").drop("judge", "I+Q+|P+"))
    found = _file(tmp_path).metadata()
    assert (found["items"], found["alive"], found["complete"]) == (2, 1, True)
    assert found["extra"] == {"dropped": {"short": 2}}
    assert [item.id for item in file.read()] == ["1", "2"]
    for other in ({"settings": {"a": 2}}, {"source": "t"}):
        assert _file(tmp_path, **other).metadata() is None


def test_a_file_that_lacks_money_is_not_complete(tmp_path):
    _write(_file(tmp_path), Item("2", "q", "p").drop("judge", "budget"))
    assert not _file(tmp_path).metadata()["complete"]


def test_an_error_leaves_what_was_there(tmp_path):
    file = _file(tmp_path)
    _write(file, ITEM)
    with pytest.raises(RuntimeError), file.writing() as write:
        write(ITEM)
        raise RuntimeError
    assert file.metadata()["items"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"judged.jsonl", "judged.meta.json"}


@pytest.mark.parametrize("damage", ["truncated", "not json", "other fields"])
def test_a_damaged_file_is_not_taken_for_whole(tmp_path, damage):
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


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"pairs\.jsonl.*run the stage"):
        list(read_items(tmp_path / "pairs.jsonl"))
