"""Rows of the Batch API's result files."""

import json

from data_pipeline.llm.batch_api import _objects


def test_only_a_line_feed_ends_a_row():
    row = {"custom_id": "k", "text": "a\u2028b\u2029c\x85d\x0be"}
    data = json.dumps(row, ensure_ascii=False).encode() + b'\nno json\n{"custom_id": "l"}\n'
    assert list(_objects(data)) == [row, {"custom_id": "l"}]


def test_a_row_that_is_no_object_is_left_out():
    deep = b'{"a":' + b"[" * 100_000
    data = b'\xef\xbb\xbf{"custom_id": "k"}\n' + deep + b"\n[1]\n\xff\n\n"
    assert list(_objects(data)) == [{"custom_id": "k"}]
