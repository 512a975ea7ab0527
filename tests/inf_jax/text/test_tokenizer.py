"""Rendering and truncation, against Hugging Face's own calls, for three families of tokenizers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from inf_jax.core.errors import UserError
from inf_jax.text import tokenizer as tokenizer_module
from inf_jax.text.query_parts import truncate, with_instruction
from inf_jax.text.templates import TextConfig, instructed_query
from inf_jax.text.tokenizer import TextTokenizer, load_tokenizer
from tests.inf_jax.text.small_tokenizers import MINILM, bpe, unigram


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "unigram"])
def directory(request, tmp_path_factory) -> Path:
    if request.param == "wordpiece":
        return MINILM
    path = tmp_path_factory.mktemp(request.param)
    {"bpe": bpe, "unigram": unigram}[request.param]().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(directory) -> TextTokenizer:
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def hf(directory):
    return AutoTokenizer.from_pretrained(directory)


word = st.text("abcdefghijklmnopqrstuvwxyz'.,?-019éßо中😀", min_size=1, max_size=12)
words = st.lists(word, min_size=1, max_size=40).map(" ".join)
limits = st.integers(8, 60)


def config(limit: int, **changes) -> TextConfig:
    return TextConfig(max_query_tokens=limit, max_passage_tokens=limit, **changes)


def split_special(hf, text: str) -> tuple[list[int], list[int]]:
    """The special tokens that begin and end a text."""
    body = len(hf(text, add_special_tokens=False)["input_ids"])
    ids = hf(text)["input_ids"]
    start = next(n for n in range(len(ids)) if ids[n] not in hf.all_special_ids)
    return ids[:start], ids[start + body :]


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(st.text(max_size=60), max_size=4))
def test_short_texts_are_as_hugging_face_has_them(ours, hf, texts):
    roomy = config(1000)
    expected = [hf(text)["input_ids"] for text in texts]
    for ids in (ours.passages(texts, roomy), ours.queries([(t, "") for t in texts], roomy)):
        assert [row.tolist() for row in ids] == expected
        assert all(row.dtype == np.int32 for row in ids)
    instructed = ours.queries([(t, "explain it") for t in texts], roomy)
    assert [row.tolist() for row in instructed] == [
        hf(f"{text} explain it")["input_ids"] for text in texts
    ]


def test_a_long_text_is_not_cut_by_the_tokenizers_own_file(ours, hf):
    text = "treatments of it " * 200
    assert ours.passages([text], config(1500))[0].tolist() == hf(text)["input_ids"]
    assert len(hf(text)["input_ids"]) > 512  # MiniLM's file says 128


@settings(deadline=None, max_examples=60)
@given(text=st.one_of(words, st.text(max_size=200)), limit=limits)
def test_a_passage_loses_its_end(ours, hf, text, limit):
    expected = hf(text, truncation=True, max_length=limit)["input_ids"]
    assert ours.passages([text], config(limit))[0].tolist() == expected
    # a query without an instruction is truncate alike
    assert ours.queries([(text, "")], config(limit))[0].tolist() == expected


@settings(deadline=None, max_examples=100)
@given(query=words, instruction=words, limit=limits)
def test_a_query_loses_its_end_and_keeps_its_instruction(ours, hf, query, instruction, limit):
    start, end = split_special(hf, "risk")
    query_ids = hf(query, add_special_tokens=False)["input_ids"]
    both_ids = hf(f"{query} {instruction}", add_special_tokens=False)["input_ids"]
    instruction_ids = both_ids[len(query_ids) :]
    assert both_ids[: len(query_ids)] == query_ids  # a space is a border for all three

    room = limit - len(start) - len(end)
    kept = min(len(query_ids), max(limit // 4, room - len(instruction_ids)))
    expected = [*start, *query_ids[:kept], *instruction_ids[: room - kept], *end]
    (ids,) = ours.queries([(query, instruction)], config(limit))
    assert ids.tolist() == expected
    assert ids.dtype == np.int32


@settings(deadline=None, max_examples=100)
@given(query=st.text(max_size=150), instruction=st.text(max_size=150), limit=limits)
def test_any_text_keeps_the_limit_and_the_special_tokens(ours, hf, query, instruction, limit):
    start, end = split_special(hf, "risk")
    for template in ("{query}{instruction}", "Instruct: {instruction}\nQuery: {query}"):
        text = instructed_query(query, instruction, template)
        whole = hf(text)["input_ids"]
        limit = max(limit, 2 * len(hf(template.format(query="", instruction=""))["input_ids"]))
        (ids,) = ours.queries([(query, instruction)], config(limit, query_template=template))
        ids = ids.tolist()
        assert len(ids) == min(limit, len(whole))
        assert ids[: len(start)] == start
        assert ids[len(ids) - len(end) :] == end
        rest = iter(whole)
        assert all(token in rest for token in ids)  # a subsequence


def test_an_instruction_that_comes_first(ours, hf):
    template = "Instruct: {instruction}\nQuery: {query}"
    query, instruction = "lymphoblastic leukemia " * 30, "Explain it to a child."
    (ids,) = ours.queries([(query, instruction)], config(60, query_template=template))
    whole = hf(template.format(query=query, instruction=instruction))["input_ids"]
    _, end = split_special(hf, "risk")
    assert ids.tolist() == whole[: 60 - len(end)] + end


def test_an_instruction_that_comes_first_and_is_too_long():
    ours, hf = load_tokenizer(MINILM), AutoTokenizer.from_pretrained(MINILM)
    limits = config(20, query_template="Instruct: {instruction} Query: {query}")
    (ids,) = ours.queries([("risk " * 30, "explain " * 60)], limits)
    # 2 special tokens, 5 of the template ("ins ##truct : query :"), 20 // 4 of the query
    expected = "Instruct: " + "explain " * 8 + "Query: " + "risk " * 5
    assert ids.tolist() == hf(expected)["input_ids"]
    # what touches the instruction is not of it
    limits = config(20, query_template="({instruction}) {query}")
    (ids,) = ours.queries([("risk " * 30, "explain " * 60)], limits)
    assert ids.tolist() == hf("(" + "explain " * 11 + ") " + "risk " * 5)["input_ids"]


def test_special_tokens_in_a_text_are_as_hugging_face_has_them():
    for split in (False, True):
        hf = AutoTokenizer.from_pretrained(MINILM, split_special_tokens=split)
        (ids,) = TextTokenizer(hf).passages(["a [SEP] b"], config(20))
        assert ids.tolist() == hf("a [SEP] b")["input_ids"]
        assert (ids == hf.sep_token_id).sum() == (1 if split else 2)


def test_a_batch_mixes_short_and_long(ours):
    pairs = [("short", "one"), ("long " * 50, "keep me"), ("", ""), ("long " * 80, "and me")]
    batch = ours.queries(pairs, config(20))
    assert [len(ids) for ids in batch][1::2] == [20, 20]
    for ids, pair in zip(batch, pairs, strict=True):
        assert ids.tolist() == ours.queries([pair], config(20))[0].tolist()
    assert ours.queries([], config(20)) == ours.passages([], config(20)) == []


def test_the_backend_gets_few_texts_at_a_time(ours, monkeypatch):
    """Its encodings take far more memory than the token ids."""
    pairs = [("amber " * n, "tell it") for n in (1, 30, 2, 40, 3)]
    passages = [query for query, _ in pairs]
    short = config(16)

    def everything():
        parts = [ids.tolist() for ids, _ in ours.query_parts(pairs, short)]
        instructions, queries = ours.separate_texts(pairs, short)
        ids = ours.queries(pairs, short) + ours.passages(passages, short) + instructions + queries
        return parts, [x.tolist() for x in ids]

    expected, sizes, backend = everything(), [], ours._backend

    class Spy:
        def __getattr__(self, name):
            method = getattr(backend, name)
            return lambda texts: sizes.append(len(texts)) or method(texts)

    monkeypatch.setattr(ours, "_backend", Spy())
    monkeypatch.setattr(tokenizer_module, "_BATCH_TEXTS", 2)
    assert everything() == expected
    assert max(sizes) == 2 and sum(sizes) > 25  # and overlong queries again
    monkeypatch.setattr(tokenizer_module, "_BATCH_TEXTS", 99)
    monkeypatch.setattr(tokenizer_module, "_BATCH_CHARACTERS", 100)
    sizes.clear()
    ours.passages(passages, short)
    assert sizes == [2, 2, 1]


def test_separate_texts(ours, hf):
    """The bare texts, each truncate at the limit; nothing of the template."""
    pairs = [("risk", "Explain it."), ("", "risk " * 90), ("risk " * 90, ""), ("a", " \n")]
    limits = config(20, query_template="Instruct: {instruction} Query: {query}")
    instructions, queries = ours.separate_texts(pairs, limits)
    for found, texts in ((queries, [q for q, _ in pairs]), (instructions, [i for _, i in pairs])):
        assert [x.tolist() for x in found] == [
            hf(text, truncation=True, max_length=20)["input_ids"] for text in texts
        ]
        assert all(x.dtype == np.int32 for x in found)
    assert ours.separate_texts([], limits) == ([], [])
    with pytest.raises(UserError, match="max_query_tokens=1 is too small"):
        ours.separate_texts(pairs, config(1))


def test_passage_template_is_kept(ours, hf):
    text = "risk " * 100
    (ids,) = ours.passages([text], config(30, passage_template="passage: {passage}"))
    expected = hf("passage: " + text, truncation=True, max_length=30)["input_ids"]
    assert ids.tolist() == expected


def test_too_small_limits(ours):
    for call, name in ((ours.passages, "max_passage_tokens"), (ours.queries, "max_query_tokens")):
        with pytest.raises(UserError, match=f"{name}=1 is too small"):
            call([], config(1))
    minilm = load_tokenizer(MINILM)  # two special tokens
    with pytest.raises(UserError, match=r"max_passage_tokens=2 is too small .* at least 3"):
        minilm.passages(["risk " * 9], config(2))
    assert len(minilm.passages(["risk " * 9], config(3))[0]) == 3
    long_template = "Instruct: {instruction}\nQuery: {query}\nAnswer the question above:"
    with pytest.raises(UserError, match=r"query_template='Instruct.* at least [0-9]+"):
        ours.queries([], config(10, query_template=long_template))


@pytest.mark.parametrize("make", [bpe, unigram])
def test_tokens_beyond_the_embedding_table(make):
    hf = make()
    rows = len(hf)
    texts = ["<image> malaria", "malaria"]
    plain = TextTokenizer(hf, rows=rows)
    hf.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "[PAD]"})
    grown, within = TextTokenizer(hf), TextTokenizer(hf, rows=rows)
    ids = [tokenizer.passages(texts, TextConfig()) for tokenizer in (plain, grown, within)]
    assert max(ids[1][0]) >= rows  # a model of that size has no vector for it
    for ours, theirs in zip(ids[0], ids[2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert within.fingerprint == plain.fingerprint != grown.fingerprint
    with pytest.raises(UserError, match=r"gives '.*' the id \d+, but .* table of 20 tokens"):
        TextTokenizer(hf, rows=20)
    hf.add_special_tokens({"eos_token": "<over>"})
    with pytest.raises(UserError, match=rf"gives '<over>' the id {rows + 2}"):
        TextTokenizer(hf, append_eos="always", rows=rows)


def test_fingerprint_follows_the_tokenizer_and_not_its_padding(directory, ours, tmp_path):
    assert load_tokenizer(directory).fingerprint == ours.fingerprint
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    contents = json.loads((copy / "tokenizer.json").read_text())
    contents["truncation"] = contents["padding"] = None
    (copy / "tokenizer.json").write_text(json.dumps(contents))
    assert load_tokenizer(copy).fingerprint == ours.fingerprint
    grown = AutoTokenizer.from_pretrained(directory)
    grown.add_tokens(["leukemia"])
    assert TextTokenizer(grown).fingerprint != ours.fingerprint


def test_the_callers_tokenizer_is_left_alone():
    hf = AutoTokenizer.from_pretrained(MINILM)
    before = hf.backend_tokenizer.to_str()
    TextTokenizer(hf).passages(["a text"], config(20))
    assert hf.backend_tokenizer.to_str() == before


def test_missing_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no tokenizer files; give a local directory"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{ truncate off")
    with pytest.raises(UserError, match=r"tokenizer\.json: not JSON .*; download it again"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"no tokenizer in .*give a local directory"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(UserError, match=r"no tokenizer in 'nobody/has-this'.*give a local"):
        load_tokenizer("nobody/has-this")  # conftest sets the hub off line


def test_no_vocabulary_and_no_fast_version(tmp_path):
    def directory(name, model_type, tokenizer_class):
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": model_type}))
        (path / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": tokenizer_class})
        )
        return path

    with pytest.raises(UserError, match="has no vocabulary"):
        load_tokenizer(directory("bert", "bert", "BertTokenizer"))
    with pytest.raises(UserError, match=r"\(CanineTokenizer\) has no fast version"):
        load_tokenizer(directory("canine", "canine", "CanineTokenizer"))


TEMPLATES = ["{query} {instruction}", "{instruction} {query}", "q: {query} do: {instruction}."]


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.tuples(words, words), min_size=2, max_size=4),
    limit=limits,
    template=st.sampled_from(TEMPLATES),
)
def test_a_query_under_another_instruction_from_their_tokens(ours, texts, limit, template):
    options = config(limit + 20, query_template=template)
    found = ours.query_parts(texts, options)
    for (ids, _), expected in zip(found, ours.queries(texts, options), strict=True):
        np.testing.assert_array_equal(ids, expected)
    others = found[1:] + found[:1]
    crossed = [
        (query, other) for (query, _), (_, other) in zip(texts, texts[1:] + texts[:1], strict=True)
    ]
    for (_, mine), (_, other), expected in zip(
        found, others, ours.queries(crossed, options), strict=True
    ):
        swapped = with_instruction(mine, other.ids_of("instruction"))
        ids = truncate(swapped, special=ours.special, limit=options.max_query_tokens)
        np.testing.assert_array_equal(ids, expected)
        # as if the row had been tokenised with that instruction
        back = with_instruction(swapped, mine.ids_of("instruction"))
        np.testing.assert_array_equal(back.ids, mine.ids)
        assert (back.query, back.instruction) == (mine.query, mine.instruction)
