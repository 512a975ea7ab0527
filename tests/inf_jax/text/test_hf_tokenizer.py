"""Tokenizers of others: files that contradict each other, flags that transformers ignores, tokens
that the model's table lacks."""

import json
import shutil

import pytest
import tokenizers
from tokenizers import processors
from transformers import AutoTokenizer

from inf_jax.core.errors import UserError
from inf_jax.hf_export.tokenizer_writer import write_tokenizer
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer
from tests.inf_jax.models import tiny_backbones

TEXT = TextConfig(max_query_tokens=40, max_passage_tokens=40)


@pytest.fixture
def bert(tiny_model_dir, tmp_path):
    """A copy of the tiny BERT's tokenizer, with its config.json."""
    directory = tmp_path / "bert"
    directory.mkdir()
    for name in ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_dir / name, directory)
    return directory


def edit(path, **fields):
    """Sets fields of a JSON file; ... removes one."""
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


NORMALIZER = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
CASED = NORMALIZER | {"strip_accents": False, "lowercase": False}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}


def replacing(old: str) -> dict:
    """The normalizer, after which `old` becomes another mark."""
    replace = {"type": "Replace", "pattern": {"String": old}, "content": "?"}
    lower = NORMALIZER | {"strip_accents": None, "lowercase": True}
    return {"type": "Sequence", "normalizers": [lower, replace]}


@pytest.mark.parametrize(
    ("file", "config", "part"),
    [
        ({"normalizer": CASED}, {"do_lower_case": ...}, "the normalizer"),
        ({"normalizer": CASED}, {"do_lower_case": True}, "the normalizer"),
        ({}, {"do_lower_case": False}, "the normalizer"),
        ({}, {"strip_accents": False}, "the normalizer"),
        ({}, {"tokenize_chinese_chars": False}, "the normalizer"),
        ({"normalizer": None}, {}, "the normalizer"),
        ({"normalizer": {"type": "Lowercase"}}, {}, "the normalizer"),
        ({"normalizer": replacing("!")}, {}, "the normalizer"),
        ({"normalizer": replacing("§ 7")}, {}, "the normalizer"),
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, {}, "the pre_tokenizer"),
        ({"post_processor": TEMPLATE}, {}, "the post_processor"),
        ({"post_processor": None}, {}, "the post_processor"),
        ({}, {"cls_token": "[MASK]"}, "the post_processor"),
    ],
)
def test_files_that_contradict_each_other_are_refused(bert, file, config, part):
    edit(bert / "tokenizer.json", **file)
    edit(bert / "tokenizer_config.json", **config)
    with pytest.raises(UserError, match=rf"tokenizer\.json and .* disagree about {part}[: ]"):
        load_tokenizer(bert)


def test_the_remedies_for_them(bert):
    """Either file can be made to count, in transformers too."""
    edit(bert / "tokenizer.json", normalizer=CASED)
    edit(bert / "tokenizer_config.json", do_lower_case=False)
    cased = load_tokenizer(bert).passages(["Amber ambér"], TEXT)[0].tolist()
    edit(bert / "tokenizer_config.json", do_lower_case=True)
    edit(bert / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    again = load_tokenizer(bert).passages(["Amber ambér"], TEXT)[0].tolist()
    file = tokenizers.Tokenizer.from_file(str(bert / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(bert)
    assert cased == again == file.encode("Amber ambér").ids == theirs("Amber ambér")["input_ids"]
    (bert / "tokenizer.json").unlink()  # nothing is left to contradict
    edit(bert / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    lower = load_tokenizer(bert).passages(["Amber ambér"], TEXT)[0].tolist()
    assert lower != cased and lower[1] == lower[2]


@pytest.mark.parametrize("kind", tiny_backbones.KINDS)
def test_every_kind_of_tokenizer_agrees_with_its_file(kind, tmp_path):
    file = tokenizers.Tokenizer.from_file(str(tiny_backbones.write(kind, tmp_path) / FILE))
    texts = ["amber Grows", "Größe  and\na line", "中文 🙂"]
    found = load_tokenizer(tmp_path).passages(texts, TEXT)
    assert [ids.tolist() for ids in found] == [file.encode(text).ids for text in texts]


FILE = "tokenizer.json"


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "LlamaTokenizer", ...])
@pytest.mark.parametrize("kind", ["mistral", "llama3"])
def test_add_eos_token_counts(kind, tokenizer_class, tmp_path, caplog):
    directory = tmp_path / "model"
    directory.mkdir()
    tiny_backbones.write(kind, directory)
    if kind == "llama3" and tokenizer_class == "LlamaTokenizer":
        tokenizer_class = "LlamaTokenizerFast"
    plain = load_tokenizer(directory)
    config = directory / "tokenizer_config.json"
    edit(config, add_eos_token=True, tokenizer_class=tokenizer_class)
    ours = load_tokenizer(directory)
    eos = AutoTokenizer.from_pretrained(directory).eos_token_id
    (before,), (after,) = (t.passages(["amber grows"], TEXT) for t in (plain, ours))
    assert after.tolist() == [*before.tolist(), eos] and ours.special[1].tolist() == [eos]
    assert "add_eos_token=true, so each text gets it" in caplog.text
    assert load_tokenizer(directory, append_eos="always").fingerprint == ours.fingerprint
    # and in the export, for transformers of both versions
    write_tokenizer(directory, tmp_path / "out", max_length=24)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("amber grows")["input_ids"][-1] == eos
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["add_eos_token"] is True
    assert load_tokenizer(tmp_path / "out").fingerprint == ours.fingerprint


def test_add_bos_token_counts(tmp_path):
    tiny_backbones.write("qwen3", tmp_path)
    edit(tmp_path / "tokenizer_config.json", add_bos_token=True, bos_token="<|endoftext|>")
    ours = load_tokenizer(tmp_path)
    assert ours.special[0].tolist() == [0] and ours.special[1].size == 0


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("e5-mistral", {"add_eos_token": False}, "add_eos_token=false, but .* adds '</s>'"),
        ("mistral", {"add_bos_token": False}, "add_bos_token=false, but .* adds '<s>'"),
        ("mistral", {"add_eos_token": "yes"}, "add_eos_token='yes' must be true or false"),
        ("qwen3", {"add_bos_token": True}, "add_bos_token=true, but it names no bos_token"),
    ],
)
def test_flags_that_contradict_the_file(kind, fields, message, tmp_path):
    tiny_backbones.write(kind, tmp_path)
    edit(tmp_path / "tokenizer_config.json", **fields)
    with pytest.raises(UserError, match=rf"tokenizer_config\.json: {message}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"]
)
@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": %s}' % ("9" * 5000), "[]", "3", "{"])
def test_json_that_cannot_be_used(bert, name, content):
    (bert / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}: .*; download it again$"):
        load_tokenizer(bert)


@pytest.mark.parametrize("kind", tiny_backbones.KINDS)
def test_the_exported_tokenizer_has_no_token_beyond_the_table(kind, tmp_path, caplog):
    directory = tmp_path / "model"
    directory.mkdir()
    tiny_backbones.write(kind, directory)
    grown = AutoTokenizer.from_pretrained(directory)
    rows = len(grown)
    grown.add_special_tokens({"additional_special_tokens": ["<image>"], "mask_token": "<blank>"})
    grown.add_tokens(["[NEW]"])
    grown.pad_token = "[PAD]"
    grown.add_special_tokens({"pad_token": "[PAD]"})
    grown.save_pretrained(directory)
    ours = load_tokenizer(directory, rows=rows)
    assert set(ours.beyond) == {"<image>", "<blank>", "[NEW]", "[PAD]"}
    assert "no vector for the added tokens" in caplog.text
    write_tokenizer(directory, tmp_path / "out", max_length=64, rows=rows)
    written = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert max(written.get_vocab().values()) < rows and len(written) == rows
    texts = ["a <image> grows", "[NEW] amber <blank>[PAD]", "amber"]
    theirs = written(texts, padding=written.pad_token is not None)
    found = [
        [i for i, real in zip(ids, mask, strict=True) if real]
        for ids, mask in zip(theirs["input_ids"], theirs["attention_mask"], strict=True)
    ]
    assert found == [ids.tolist() for ids in ours.passages(texts, TEXT)]


def test_a_vocabulary_entry_beyond_the_table_goes_with_its_added_token(bert):
    """The id is neither that of the added token nor reached as ordinary text."""
    state = json.loads((bert / "tokenizer.json").read_text())
    rows = len(state["model"]["vocab"])
    state["model"]["vocab"]["[new]"] = rows
    token = {"id": rows, "content": "[new]", "single_word": False, "lstrip": False}
    token |= {"rstrip": False, "normalized": False, "special": True}
    state["added_tokens"].append(token)
    (bert / "tokenizer.json").write_text(json.dumps(state))
    ours = load_tokenizer(bert, rows=rows)
    assert ours.beyond == ("[new]",) and max(ours.vocabulary().values()) < rows
    assert max(ours.passages(["a [new] b"], TEXT)[0]) < rows


def test_byte_level_processors_are_kept(tmp_path):
    """A flag is honoured beside other steps of the post-processor."""
    tiny_backbones.write("qwen3", tmp_path)
    edit(tmp_path / "tokenizer_config.json", add_eos_token=True)
    ours = load_tokenizer(tmp_path)
    file = tokenizers.Tokenizer.from_file(str(tmp_path / FILE))
    assert isinstance(file.post_processor, processors.Sequence)
    (ids,) = ours.passages(["amber grows"], TEXT)
    assert ids.tolist() == [*file.encode("amber grows").ids, file.token_to_id("<|im_end|>")]
