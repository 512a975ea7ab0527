"""Tiny backbones: weights of the golden models, and tokenizers of the kinds that such models have,
trained on the words of the tiny dataset."""

import json
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from inf_jax.models import hf
from inf_jax.models.hf.config import config_from_hf
from tests.inf_jax.models.goldens import GOLDEN, params_of

VOCAB = 480  # at least that of each tokenizer
TEXTS = [
    "amber birch cedar grows on wet hills near the coast and in cold valleys",
    "cooks boil iris slowly with salt or bake it under butter, an old monk wrote of thyme",
    "frost and beetles kill young rowan unless a gardener covers it",
    "Tell where it grows. Tell how it is cooked. Tell who first named it. Tell what harms it.",
    "Instruct: Query: query: passage: task: search result | title: none | text:",
] * 3
# Qwen's: punctuation includes the line breaks after it
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen(*, ends: bool = False) -> tuple[tokenizers.Tokenizer, dict]:
    """Byte-level BPE: Qwen3 adds no special tokens; Qwen3-Embedding's (`ends`) puts a token
    after each text that is not its EOS."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(_QWEN), "isolated")
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_alone])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer, special, initial_alphabet=alphabet)
    steps = [processors.ByteLevel(trim_offsets=False)]
    if ends:
        steps.append(_around(tokenizer, "$A <|endoftext|>"))
    tokenizer.post_processor = processors.Sequence(steps)
    fields = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}
    return tokenizer, fields | {"pad_token": "<|endoftext|>", "padding_side": "left"}


def llama3() -> tuple[tokenizers.Tokenizer, dict]:
    """Byte-level BPE with a token before each text, none after it, and no padding token."""
    tokenizer, _ = qwen()
    tokenizer.add_special_tokens(["<|begin|>"])
    steps = [processors.ByteLevel(trim_offsets=False), _around(tokenizer, "<|begin|> $A")]
    tokenizer.post_processor = processors.Sequence(steps)
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>"}
    return tokenizer, fields | {"eos_token": "<|im_end|>"}


def mistral(*, ends: bool = False) -> tuple[tokenizers.Tokenizer, dict]:
    """SentencePiece's BPE with byte fallback, a token before each text and no padding token;
    E5-mistral's (`ends`) also puts one after it and pads with that."""
    tokenizer = tokenizers.Tokenizer(
        models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # splits words during training
    _train(tokenizer, trainers.BpeTrainer, special, vocab_size=470)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.post_processor = _around(tokenizer, "<s> $A </s>" if ends else "<s> $A")
    fields = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    fields |= {"unk_token": "<unk>", "add_bos_token": True, "add_eos_token": ends}
    return tokenizer, fields | ({"pad_token": "</s>"} if ends else {})


def gemma() -> tuple[tokenizers.Tokenizer, dict]:
    """EmbeddingGemma's: a token before and after each text; replaces spaces, prepends none."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Replace("▁", " ")
    letters = ["abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:|▁ "]
    _train(tokenizer, trainers.BpeTrainer, ["<pad>", "<eos>", "<bos>", "<unk>"], texts=letters)
    tokenizer.post_processor = _around(tokenizer, "<bos> $A <eos>")
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    return tokenizer, fields | {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}


def t5() -> tuple[tokenizers.Tokenizer, dict]:
    """SentencePiece's Unigram with the EOS after each text."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    steps = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    _train(tokenizer, trainers.UnigramTrainer, special, unk_token="<unk>", vocab_size=200)
    tokenizer.post_processor = _around(tokenizer, "$A </s>")
    fields = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>"}
    return tokenizer, fields | {"unk_token": "<unk>", "extra_ids": 0}


KINDS = {
    "qwen3": qwen,
    "qwen3-embedding": lambda: qwen(ends=True),
    "llama3": llama3,
    "mistral": mistral,
    "e5-mistral": lambda: mistral(ends=True),
    "embeddinggemma": gemma,
    "t5": t5,
}


def write(kind: str, directory: Path, *, max_length: int = 64) -> Path:
    """Writes the files of a tokenizer of KINDS."""
    tokenizer, fields = KINDS[kind]()
    tokenizer.save(str(directory / "tokenizer.json"))
    fields = fields | {"model_max_length": max_length}
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))
    return directory


def backbone(directory: Path, golden: str, tokenizer: str, **fields) -> Path:
    """Writes a HF directory: a golden model's weights with random word embeddings."""
    directory.mkdir(parents=True)
    write(tokenizer, directory, max_length=96)
    config = json.loads((GOLDEN / golden / "config.json").read_text())
    config |= {"vocab_size": VOCAB, **fields}
    if "max_position_embeddings" in config:
        config["max_position_embeddings"] = 96
    (directory / "config.json").write_text(json.dumps(config))
    words = np.random.default_rng(0).normal(size=(VOCAB, 32)).astype(np.float32)
    shape = config_from_hf(config)
    hf.save_weights(params_of(golden) | {"word": 0.5 * words}, directory, shape)
    return directory


def _train(
    tokenizer, trainer, special: list[str], *, texts=TEXTS, vocab_size=450, **options
) -> None:
    options |= {"vocab_size": vocab_size, "special_tokens": special, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainer(**options))


def _around(tokenizer: tokenizers.Tokenizer, single: str):
    special = [(x, tokenizer.token_to_id(x)) for x in single.split() if x != "$A"]
    return processors.TemplateProcessing(single=single, special_tokens=special)
