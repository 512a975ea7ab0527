"""Encoding a stream of texts: what is held is two windows, whatever their number."""

import threading
import tracemalloc

import numpy as np
import pytest

import inf_jax
from inf_jax.core.errors import UserError
from inf_jax.retriever import encode, stream
from inf_jax.retriever import retriever as retriever_module
from inf_jax.retriever.stream import gather, one_ahead

WINDOW = 4
WORDS = "amber birch cedar dahlia elder fennel ginger hazel iris juniper kelp".split()
PASSAGES = [" ".join(WORDS[n % 7 : n % 7 + 1 + n % 4]) for n in range(18)]  # 5 windows


@pytest.fixture(scope="module")
def retriever(tiny_model_dir):
    return inf_jax.load(tiny_model_dir)


@pytest.fixture(scope="module")
def whole(retriever):
    return retriever.encode(PASSAGES)


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(retriever_module, "WINDOW_TEXTS", WINDOW)


def counted(texts, read):
    """The texts one by one; how many were read is len(read)."""
    for text in texts:
        read.append(text)
        yield text


@pytest.mark.usefixtures("windows")
def test_blocks_come_before_all_texts_are_read(retriever, whole, monkeypatch):
    read, tokenised, done = [], [], 0
    passages = retriever.tokenizer.passages

    def spy(texts, config):
        tokenised.extend(texts)
        return passages(texts, config)

    monkeypatch.setattr(retriever.tokenizer, "passages", spy)
    for block in retriever.encode_blocks(counted(PASSAGES, read)):
        np.testing.assert_allclose(block, whole[done : done + len(block)], atol=1e-6)
        done += len(block)
        assert done <= len(tokenised) <= len(read) <= done + WINDOW
    assert done == len(PASSAGES)


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("instruction", [None, "Tell it.", [f"Tell {w}." for w in PASSAGES]])
def test_any_iterable_gives_the_vectors_of_a_list(retriever, instruction, tmp_path):
    expected = retriever.encode(PASSAGES, instruction=instruction)

    def options():
        each = instruction if isinstance(instruction, str | None) else iter(instruction)
        return {"instruction": each}

    found = retriever.encode(iter(PASSAGES), **options())
    assert found.shape == expected.shape and found.dtype == np.float32 and found.flags.owndata
    np.testing.assert_allclose(found, expected, atol=1e-6)
    sixteen = np.zeros(expected.shape, np.float16)
    assert retriever.encode(iter(PASSAGES), **options(), out=sixteen) is sixteen
    np.testing.assert_array_equal(sixteen, found.astype(np.float16))
    mapped = np.memmap(tmp_path / "vectors", np.float32, "w+", shape=(len(PASSAGES), 8))
    retriever.encode(tuple(PASSAGES), **options(), dim=8, out=mapped)
    np.testing.assert_allclose(
        np.fromfile(tmp_path / "vectors", np.float32).reshape(-1, 8),
        retriever.encode(PASSAGES, **options(), dim=8),
        atol=1e-6,
    )
    blocks = retriever.encode_blocks(iter(PASSAGES), **options(), dim=8)
    np.testing.assert_allclose(np.concatenate(list(blocks)), mapped, atol=1e-6)


@pytest.mark.usefixtures("windows")
def test_windows_share_their_programs(retriever, monkeypatch):
    """Five windows, the last one short; without an instruction and with."""
    grids, original = [], encode.encode_texts

    def spy(*arguments, grid, **options):
        grids.append(grid)
        return original(*arguments, grid=grid, **options)

    monkeypatch.setattr(retriever_module, "encode_texts", spy)
    retriever.encode(PASSAGES)
    assert len(grids) == 5 and len(set(grids)) == 1
    long = [*PASSAGES[:9], "amber " * 60, *PASSAGES[9:]]
    retriever.encode(long)
    assert [grid.row_tokens for grid in grids[5:]] == [32, 32, 64, 32, 32]
    grids.clear()
    retriever.encode([*PASSAGES[:8], "amber " * 60])  # no window before has such long rows
    assert [grid.row_tokens for grid in grids] == [32, 32, 64]
    assert len({grid.rows * grid.row_tokens for grid in grids}) == 1
    grids.clear()
    retriever.encode(PASSAGES[:WINDOW])  # alone: a grid of its own size
    assert grids[0].rows == 1


@pytest.mark.usefixtures("windows")
def test_characters_fill_a_window_too(retriever, whole, monkeypatch):
    monkeypatch.setattr(retriever_module, "WINDOW_CHARACTERS", 1)
    blocks = list(retriever.encode_blocks(PASSAGES))
    assert [len(block) for block in blocks] == [1] * len(PASSAGES)
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)
    pairs = retriever.encode_blocks(["", ""], instruction=iter(["a", "b"]))
    assert [len(block) for block in pairs] == [1, 1]


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.encode(iter(["a"] * 9 + [3])), r"passages\[9\] must be a string, not a int"),
        (
            lambda m: m.encode(iter(["a"] * 9), instruction=iter(["b"] * 8)),
            "the instructions end after 8, the others go on: give one each",
        ),
        (
            lambda m: m.encode(iter(["a"] * 8), instruction=["b"] * 9),
            "the queries end after 8, the others go on: give one each",
        ),
        (lambda m: m.encode(["a"], out=np.zeros((2, 32))), r"shape \(2, 32\).* have \(1, 32\)"),
        (lambda m: m.encode(["a"], dim=4, out=np.zeros((1, 32))), r"\(1, 32\).* have \(1, 4\)"),
        (lambda m: m.encode(iter("a"), out=np.zeros((2, 32))), "2 rows, but there were 1 texts"),
        (lambda m: m.encode(iter("abcde"), out=np.zeros((2, 32))), "2 rows.*there are more texts"),
        (lambda m: m.encode(["a"], out=np.zeros((1, 32), int)), "of a floating-point dtype"),
        (lambda m: m.encode(["a"], out=[[0.0] * 32]), "must be an array"),
        (lambda m: m.encode(["a"], out=np.broadcast_to(0.0, (1, 32))), "out is read-only"),
    ],
)
def test_what_a_stream_or_out_may_not_be(retriever, call, message):
    with pytest.raises(UserError, match=message):
        call(retriever)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, texts: m.encode_blocks(["a", 3], dim=4),
        lambda m, texts: m.encode_blocks(texts, dim=33),
        lambda m, texts: m.encode(texts, dim=33),
        lambda m, texts: m.encode(texts, out=np.zeros((4, 31))),
    ],
)
def test_what_is_wrong_at_once_reads_no_text(retriever, call):
    read = []
    with pytest.raises(UserError):
        call(retriever, counted(PASSAGES, read))
    assert read == []


def test_a_growing_array_is_not_copied_as_a_whole():
    """The peak of an unknown number of rows is the result and a block, not twice the result."""
    blocks = (np.full((1000, 50), n, np.float32) for n in range(60))
    tracemalloc.start()
    try:
        found = gather(blocks, count=None, width=50)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found[:, 0], np.repeat(np.arange(60), 1000))
    assert found.shape == (60000, 50) and peak < 1.3 * found.nbytes


def test_a_wrong_count_is_corrected():
    """Some objects' len() is not the number of their items."""
    blocks = [np.ones((3, 2), np.float32)] * 2
    for count in (0, 5, 6, 7):
        np.testing.assert_array_equal(gather(blocks, count=count, width=2), np.ones((6, 2)))


def test_one_ahead_and_no_more():
    prepared, read = [], []
    results = one_ahead(lambda n: prepared.append(n) or 10 * n, counted(range(5), read))
    for n, (result, last) in enumerate(results):
        assert (result, last) == (10 * n, n == 4)
        assert len(prepared) <= len(read) <= n + 2
    assert prepared == read == [0, 1, 2, 3, 4]
    assert list(one_ahead(str, [])) == [] and list(one_ahead(str, [7])) == [("7", True)]

    def fails(n):
        return 1 // (2 - n)

    results = one_ahead(fails, range(5))
    assert [next(results)[0], next(results)[0]] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_generator_runs_in_the_callers_thread(retriever, whole):
    """As one over an sqlite3 connection must."""
    threads = []
    texts = (threads.append(threading.get_ident()) or text for text in PASSAGES)
    np.testing.assert_allclose(retriever.encode(texts), whole, atol=1e-6)
    assert set(threads) == {threading.get_ident()}


def test_the_number_of_texts_if_it_is_known():
    class Loader:
        def __iter__(self):
            return iter("ab")

        def __len__(self):
            raise TypeError("an iterable dataset has no length")

    for texts, count in (("ab", 1), (["a", "b"], 2), (iter("ab"), None), (Loader(), None)):
        assert stream.TextStream(texts, "texts").count == count
