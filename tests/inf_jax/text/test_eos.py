"""Decoders' tokenizers in the text pipeline, and the EOS that last-token pooling reads."""

import dataclasses
import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from inf_jax.config.defaults import defaults, run_config
from inf_jax.core.errors import UserError
from inf_jax.hf_export.writer import write_tokenizer
from inf_jax.models.hf.backbone import run_tokenizer
from inf_jax.text import eos
from inf_jax.text.query_parts import truncate, with_instruction
from inf_jax.text.splice_check import check_composition
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer
from tests.inf_jax.models import tiny_backbones

ENDS = {"qwen3": "<|im_end|>", "llama3": "<|im_end|>", "mistral": "</s>"}  # appended by "auto"
PASSAGES = ["amber grows on wet hills", "", "cooks boil iris, 12 – naïve 🙂", "thyme " * 40]
PAIRS = [
    ("amber", "Tell where it grows."),
    ("iris", ""),
    ("old birch " * 20, "Tell what harms it."),
]
INSTRUCT = "Instruct: {instruction}\nQuery:{query}"
TEXT = TextConfig(max_query_tokens=24, max_passage_tokens=24)


@pytest.fixture(scope="module", params=tiny_backbones.KINDS)
def directory(request, tmp_path_factory):
    """A kind of tokenizer; the directory's name is the kind's."""
    directory = tmp_path_factory.mktemp("kind") / request.param
    directory.mkdir()
    return tiny_backbones.write(request.param, directory)


def theirs(tokenizer, texts, **options):
    """transformers' own ids of a padded batch, without the padding."""
    batch = tokenizer(texts, padding=True, **options)
    masks = [np.array(mask, bool) for mask in batch["attention_mask"]]
    return [np.array(x)[mask].tolist() for x, mask in zip(batch["input_ids"], masks, strict=True)]


def listed(rows):
    return [row.tolist() for row in rows]


@pytest.mark.parametrize("choice", ["auto", "never"])
def test_the_exported_tokenizer_gives_our_ids(directory, tmp_path, choice):
    ours = load_tokenizer(directory, append_eos=choice)
    assert ours.appended_eos == (ENDS.get(directory.name, "") if choice == "auto" else "")
    write_tokenizer(directory, tmp_path, max_length=24, eos=ours.appended_eos)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    cut_off = ours.passages(PASSAGES, TEXT)
    full = [text for text, ids in zip(PASSAGES, cut_off, strict=True) if len(ids)]
    assert len(full) == (3 if directory.name == "qwen3" and choice == "never" else 4)
    for side in ("left", "right"):
        exported.padding_side = side
        found = theirs(exported, full, truncation=True)
        assert found == [ids.tolist() for ids in cut_off if len(ids)]
    whole = dataclasses.replace(TEXT, max_query_tokens=999)
    rendered = [f"{query} {instruction}".strip() for query, instruction in PAIRS]
    assert theirs(exported, rendered) == listed(ours.queries(PAIRS, whole))
    # opened again it needs no help
    again = load_tokenizer(tmp_path)
    assert listed(again.passages(full, TEXT)) == found
    if choice == "auto":
        assert load_tokenizer(tmp_path, append_eos="auto").appended_eos == ""


def test_every_text_ends_with_the_eos_after_truncation(directory):
    ours, plain = (load_tokenizer(directory, append_eos=c) for c in ("auto", "never"))
    hf = AutoTokenizer.from_pretrained(directory)
    ends = hf.convert_tokens_to_ids(ours.appended_eos) if ours.appended_eos else plain.special[1][0]
    texts = ours.passages(PASSAGES, TEXT) + ours.queries(PAIRS, TEXT)
    texts += [ids for part in ours.separate_texts(PAIRS, TEXT) for ids in part]
    texts += [ids for ids, _ in ours.query_parts(PAIRS, TEXT)]
    assert {int(ids[-1]) for ids in texts} == {ends}
    assert max(map(len, texts)) == 24
    assert ours.special[1].tolist() == [ends]
    assert (ours.fingerprint == plain.fingerprint) == (not ours.appended_eos)
    if ours.appended_eos:
        short = [PASSAGES[0]]
        before, after = plain.passages(short, TEXT)[0], ours.passages(short, TEXT)[0]
        assert after.tolist() == [*before.tolist(), ends]


@pytest.mark.parametrize("template", ["{query} {instruction}", INSTRUCT, "{instruction}, {query}"])
def test_a_query_under_another_instruction_from_its_tokens(directory, template):
    """What block I is made of: the parts of two texts give the tokenizer's own ids."""
    ours = load_tokenizer(directory, append_eos="auto")
    text = dataclasses.replace(TEXT, query_template=template, max_query_tokens=40)
    pairs = [(q, i) for q in ("amber", "cedar grows") for i in ("Tell it.", "Tell what harms it.")]
    parts = [part for _, part in ours.query_parts(pairs, text)]
    for mine, (query, _) in zip(parts, pairs, strict=True):
        for other, (_, instruction) in zip(parts, pairs, strict=True):
            swapped = with_instruction(mine, other.ids_of("instruction"))
            ids = truncate(swapped, special=ours.special, limit=text.max_query_tokens)
            (expected,) = ours.queries([(query, instruction)], text)
            assert ids.tolist() == expected.tolist()
    found = check_composition([*pairs, ("cedar", "")], ours, text)
    assert (found.checked, found.crossed) == (4, 0)


def test_choices(tmp_path):
    def end_of(kind: str, choice: str) -> str:
        directory = tmp_path / kind
        if not directory.exists():
            directory.mkdir()
            tiny_backbones.write(kind, directory)
        ours = load_tokenizer(directory, append_eos=choice)
        hf = AutoTokenizer.from_pretrained(directory)
        return " ".join(hf.convert_ids_to_tokens(ours.special[1]))

    assert end_of("qwen3-embedding", "auto") == "<|endoftext|>"
    assert end_of("qwen3-embedding", "always") == "<|endoftext|> <|im_end|>"
    assert end_of("e5-mistral", "always") == "</s>"
    assert end_of("qwen3", "always") == "<|im_end|>"
    assert end_of("llama3", "always") == "<|im_end|>"
    fields = json.loads((tmp_path / "llama3/tokenizer_config.json").read_text())
    del fields["eos_token"]
    (tmp_path / "llama3/tokenizer_config.json").write_text(json.dumps(fields))
    assert end_of("llama3", "auto") == ""
    with pytest.raises(UserError, match=r"append_eos='always': .*llama3 has no eos_token"):
        end_of("llama3", "always")

    config = defaults()
    directory = tiny_backbones.backbone(tmp_path / "mistral", "mistral", "mistral")
    config.model.name = str(directory)
    for pooling, choice, expected in (
        ("mean", "auto", ""),
        ("last", "auto", "</s>"),
        ("last", "never", ""),
        ("mean", "always", "</s>"),
    ):
        config.model.pooling, config.model.append_eos = pooling, choice
        assert run_tokenizer(run_config(config)).appended_eos == expected


def test_a_post_processor_without_a_template_is_refused(tiny_model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir).backend_tokenizer
    state = json.loads(tokenizer.to_str())
    bert = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    backend = type(tokenizer).from_str(json.dumps(state | {"post_processor": bert}))
    with pytest.raises(UserError, match="post-processor is BertProcessing, not a template"):
        eos.with_special_token(backend, "[MASK]", 4, remedy="x")
    backend = type(tokenizer).from_str(json.dumps(state | {"post_processor": None}))
    backend.post_processor = eos.with_special_token(backend, "[SEP]", 3, remedy="x")
    assert backend.encode("amber", "iris").tokens == ["amber", "iris", "[SEP]"]
    assert backend.encode("amber").special_tokens_mask == [0, 1]
