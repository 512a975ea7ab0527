"""Batches of texts, by number and by characters."""

import pytest

from inf_jax.text.batches import text_batches


@pytest.mark.parametrize(
    "count, characters, expected",
    [
        (2, 100, [["a", "bb"], ["ccc", "d"], ["eeeee"]]),
        (100, 3, [["a", "bb"], ["ccc"], ["d", "eeeee"]]),
        (2, 1, [["a"], ["bb"], ["ccc"], ["d"], ["eeeee"]]),
        (5, 100, [["a", "bb", "ccc", "d", "eeeee"]]),
    ],
)
def test_batches_end_with_the_text_that_fills_them(count, characters, expected):
    read = []
    texts = (read.append(text) or text for text in ("a", "bb", "ccc", "d", "eeeee"))
    done = 0
    for batch, wanted in zip(
        text_batches(texts, count=count, characters=characters), expected, strict=True
    ):
        done += len(batch)
        assert batch == wanted and len(read) == done


def test_no_texts_and_other_lengths():
    assert list(text_batches([], count=1, characters=1)) == []
    pairs = [("a", "b"), ("c", "d"), ("e", "f")]
    found = text_batches(pairs, count=9, characters=4, length=lambda pair: sum(map(len, pair)))
    assert list(found) == [pairs[:2], pairs[2:]]
