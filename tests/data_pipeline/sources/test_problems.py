"""Reads MetaMathQA and LeetCode files in the formats in which they are published."""

import json

import pytest

from data_pipeline.sources import problems
from data_pipeline.sources.pairs import SourcePair
from inf_jax.core.errors import UserError


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_metamath_as_its_one_array(tmp_path):
    row = {
        "type": "GSM_Rephrased",
        "query": "What is 2 + 3?",
        "original_question": "Add 2 and 3.",
        "response": "2 + 3 = 5. The answer is: 5",
    }
    (tmp_path / "MetaMathQA-395K.json").write_text(json.dumps([row, {**row, "query": "And 5?"}]))
    pairs = list(problems.read_metamath(tmp_path / "MetaMathQA-395K.json"))
    assert pairs[0] == SourcePair("MetaMathQA-395K.json:1", row["query"], row["response"])
    assert [p.query for p in pairs] == ["What is 2 + 3?", "And 5?"]


CODE = "class Solution: ..."


@pytest.mark.parametrize(
    "row",
    [
        {"title": "Two Sum", "content": "Find two.", "python": "Explained."},
        {"title": "Two Sum", "question": "Find two.", "answer": "Explained."},
        {"description": "Find two.", "solution": "Explained.", "code": CODE},
        {"task_id": "two-sum", "prompt": "import math", "completion": CODE}
        | {"query": "You are an expert.", "problem_description": "Find two."}
        | {"response": "Explained."},
        {"task_id": "two-sum", "completion": CODE}
        | {"meta": {"query": "Find two.", "response": "Explained."}},
    ],
)
def test_leetcode(tmp_path, row):
    [pair] = problems.read_leetcode(write(tmp_path / "a.jsonl", row))
    assert pair == SourcePair("a.jsonl:1", "Find two.", "Explained.")


def test_other_shape(tmp_path):
    path = write(tmp_path / "a.jsonl", {"title": "Two Sum", "python": "Explained."})
    with pytest.raises(UserError, match=r"a\.jsonl:1: no field 'problem_description or content or"):
        list(problems.read_leetcode(path))
