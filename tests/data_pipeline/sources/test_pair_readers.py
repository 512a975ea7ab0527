"""Readers of pairs by the name of their source."""

from collections import Counter

import pytest

from data_pipeline.sources.pair_readers import PAIR_SOURCES, read_pairs
from data_pipeline.sources.pairs import SourcePair
from inf_jax.core.errors import UserError


def test_sources_by_name(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"query": "q", "response": "r", "own": "s"}\n')
    [found] = read_pairs("metamath", tmp_path, dropped=Counter())
    assert found == SourcePair("a.jsonl:1", "q", "r")
    [found] = read_pairs("fields", tmp_path, dropped=Counter(), fields={"passage": "own"})
    assert found == SourcePair("a.jsonl:1", "", "s")
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "t"}\n')
    [found] = read_pairs("beir", tmp_path, dropped=Counter(), passages_only=True)
    assert found == SourcePair("1", "", "t")


def test_unknown_source_or_option(tmp_path):
    with pytest.raises(
        UserError, match=rf"no source 'csv'; choose one of {', '.join(PAIR_SOURCES)}"
    ):
        read_pairs("csv", tmp_path, dropped=Counter())
    with pytest.raises(
        UserError, match=r"'beir' has no option 'splits', only split, min_score, passages_only"
    ):
        read_pairs("beir", tmp_path, dropped=Counter(), splits="dev")
    with pytest.raises(UserError, match=r"'fields': .*'fields'; its options: fields"):
        read_pairs("fields", tmp_path, dropped=Counter())
