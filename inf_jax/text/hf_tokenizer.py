"""Opens a Hugging Face tokenizer as all of its files describe it, or refuses it.

transformers 5 rebuilds many tokenizers from tokenizer_config.json and takes only the vocabulary of
tokenizer.json; and where there is a tokenizer.json it ignores add_bos_token and add_eos_token. Here
both flags count, and files that would give a text different ids are refused.
"""

import importlib.metadata
import json
import logging
import os
import string
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from inf_jax.core.errors import UserError, first_line
from inf_jax.core.json_text import parse_json
from inf_jax.text.eos import with_special_token

CONFIG_FILE, FILE = "tokenizer_config.json", "tokenizer.json"
FLAGS = ("add_bos_token", "add_eos_token")  # of tokenizer_config.json
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that load the file itself
_TOKENIZER_FILES = ("*token*", "vocab*", "*.model", "tekken*")
# Read before transformers does, which has a traceback for some contents.
_JSON_FILES = (CONFIG_FILE, FILE, "special_tokens_map.json", "added_tokens.json", "config.json")
# Texts in which tokenizers that are built in different ways differ, also after lower-casing.
_PROBES = (
    "What is a wedge? It's 12,345.67 (e.g. 8%) of all.",
    "The CAPITALS, iPhone; Größe, Äpfel, naïve café, Ångström",
    "one  two\nthree\tfour can't don't foo_bar <b> http://a.b/c?d=1&e#f",
    "“quotes” – dashes… ﬁ ① ½ x\u0301 \u200b 🙂👩‍🔬",
    "中文字 日本語のテキスト 한국어 русский العربية हिन्दी ไทย",
    " ".join(f"a{mark}b {mark}" for mark in string.punctuation),
    "control\x01 characters\x7f; long words: " + "wo" * 60,
)


def open_tokenizer(name_or_dir: str | os.PathLike) -> Any:
    """The transformers tokenizer of a local Hugging Face directory or of a hub id.

    Neither truncates nor pads. `padding_side` and `truncation_side` are as in the files and have no
    effect on texts that fit.

    Raises:
      UserError: no tokenizer or no fast one; the hub cannot be reached; a damaged file;
        tokenizer.json contradicts what transformers makes of tokenizer_config.json, or its
        add_bos_token or add_eos_token.
    """
    from transformers import AutoTokenizer  # slow to import

    name = os.fspath(name_or_dir)
    local = os.path.isdir(name)
    remedy = "give a local directory that holds tokenizer.json, or the hub id of such a model"
    if local and not any(f for pattern in _TOKENIZER_FILES for f in Path(name).glob(pattern)):
        raise UserError(f"no tokenizer in {name!r}: the directory has no tokenizer files; {remedy}")
    fields: dict[str, Any] = {}
    if local:
        contents = {file: _object(Path(name, file)) for file in _JSON_FILES}
        fields = contents[CONFIG_FILE]
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
    except Exception as error:  # OSError, ValueError, KeyError, ...: by what is missing
        reason = textwrap.shorten(str(error) or repr(error), 250)
        where = "directory" if local else "no such directory, and not a hub id that can be loaded"
        raise UserError(f"no tokenizer in {name!r} ({where}): {reason}; {remedy}") from error
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise UserError(f"the tokenizer of {name!r} ({kind}) has no fast version; {remedy}")
    # without vocabulary files transformers returns a tokenizer of the special tokens only
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(f"the tokenizer of {name!r} has no vocabulary; {remedy}")
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    source = Path(name, CONFIG_FILE)
    added = _apply_flags(backend, tokenizer, fields, source)
    if local and Path(name, FILE).exists():
        _check_file(Path(name, FILE), tokenizer, fields, source)
    if added:
        logging.getLogger(__name__).warning(
            "%s: %s, so each text gets it here; transformers 5 ignores that beside %s",
            source,
            " and ".join(f"{flag}=true" for flag in added),
            FILE,
        )
    return tokenizer


def _object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; {} where there is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; download it again") from error
    return parse_json(data, path, kind=dict, remedy="download it again")


def special_tokens_around(backend: tokenizers.Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """(int32[...], int32[...]), the special tokens before and after a text."""
    probe = backend.encode("a")
    ids = np.array(probe.ids, np.int32)
    text = np.flatnonzero(np.array(probe.special_tokens_mask, int) == 0)
    first, end = (text[0], text[-1] + 1) if text.size else (len(ids), len(ids))
    return ids[:first], ids[end:]


def within_rows(state: dict[str, Any], rows: int, source: str) -> tuple[dict[str, Any], list[str]]:
    """A tokenizer without the added tokens that an embedding table of `rows` rows lacks.

    Args:
      state: contents of a tokenizer.json.
      source: the tokenizer's name, for messages.

    Returns:
      (state, the tokens left out). UserError where a token of the vocabulary is beyond the table.
    """
    beyond = [token["content"] for token in state["added_tokens"] if token["id"] >= rows]
    model = state["model"]
    vocab = model["vocab"]
    pairs = vocab.items() if isinstance(vocab, dict) else ((x[0], n) for n, x in enumerate(vocab))
    for token, number in pairs:
        if number >= rows and token not in beyond:
            raise UserError(beyond_rows(token, number, rows, source))
    if not beyond:
        return state, []
    model = model | {
        "vocab": {token: number for token, number in vocab.items() if number < rows}
        if isinstance(vocab, dict)
        else vocab[:rows]
    }
    if "merges" in model:
        model["merges"] = [
            m
            for m in model["merges"]
            if (m.replace(" ", "", 1) if isinstance(m, str) else "".join(m)) not in beyond
        ]
    added = [token for token in state["added_tokens"] if token["id"] < rows]
    return state | {"model": model, "added_tokens": added}, beyond


def beyond_rows(token: str, number: int, rows: int, source: str) -> str:
    """The message for a token that the embedding table lacks."""
    return (
        f"the tokenizer of {source!r} gives {token!r} the id {number}, but the model has a table "
        f"of {rows} tokens; use the tokenizer that it was trained with"
    )


def _apply_flags(
    backend: tokenizers.Tokenizer, tokenizer: Any, fields: Mapping[str, Any], source: Path
) -> list[str]:
    """Makes texts begin and end as add_bos_token and add_eos_token say; returns the flags that
    changed something. UserError where a false flag contradicts the post-processor."""
    changed = []
    for flag, end, token, token_id in (
        (FLAGS[0], False, tokenizer.bos_token, tokenizer.bos_token_id),
        (FLAGS[1], True, tokenizer.eos_token, tokenizer.eos_token_id),
    ):
        wanted = fields.get(flag)
        if wanted is not None and not isinstance(wanted, bool):
            raise UserError(f"{source}: {flag}={wanted!r} must be true or false; correct it")
        around = special_tokens_around(backend)[end]
        present = token_id is not None and around.size > 0 and around[-end] == token_id
        if wanted is None or wanted == present:
            continue
        if token_id is None:
            raise UserError(f"{source}: {flag}=true, but it names no {flag[4:]}; add its name")
        if not wanted:
            raise UserError(
                f"{source}: {flag}=false, but the post-processor of {FILE} adds {token!r} to each "
                "text; make them agree: set it to true if the model was trained with that token"
            )
        remedy = f"set {flag} to false in {source}"
        backend.post_processor = with_special_token(
            backend, token, token_id, at_end=end, remedy=remedy
        )
        changed.append(flag)
    return changed


def _check_file(path: Path, tokenizer: Any, fields: Mapping[str, Any], source: Path) -> None:
    """Raises UserError where tokenizer.json gives a probe other ids than `tokenizer`."""
    try:
        file = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exceptions
        raise UserError(f"{path}: not a tokenizer ({first_line(error)}); download again") from error
    file.no_truncation()
    file.no_padding()
    rebuilt = tokenizer.backend_tokenizer
    file.encode_special_tokens = rebuilt.encode_special_tokens
    _apply_flags(file, tokenizer, fields, source)
    for probe in (*_PROBES, *_replaced(json.loads(file.to_str())["normalizer"])):
        ours, theirs = file.encode(probe), rebuilt.encode(probe)
        if ours.ids != theirs.ids:
            version = importlib.metadata.version("transformers")
            remedy = (
                f"in a copy, correct {CONFIG_FILE} (do_lower_case, strip_accents, ...), or set its "
                f"tokenizer_class to {_GENERIC[0]}, with which {FILE} counts"
            )
            if fields.get("tokenizer_class") in _GENERIC:
                remedy = (
                    f"it makes a {type(tokenizer).__name__} for each model of this type, whatever "
                    f"tokenizer_class is: give the model a {FILE} of that kind"
                )
            raise UserError(
                f"{path} and {CONFIG_FILE} disagree about {_parts(file, rebuilt, probe)}: for "
                f"{_difference(ours.tokens, theirs.tokens)}, which transformers {version} and "
                f"sentence-transformers take; {remedy}"
            )


def _replaced(normalizer: Any) -> Iterator[str]:
    """A text for each string that a tokenizer.json's normalizer replaces by another."""
    if isinstance(normalizer, list):
        for step in normalizer:
            yield from _replaced(step)
    elif isinstance(normalizer, dict):
        if isinstance(found := normalizer.get("String"), str):
            yield f"a{found}b {found} c"
        yield from _replaced(list(normalizer.values()))


def _parts(one: tokenizers.Tokenizer, other: tokenizers.Tokenizer, text: str) -> str:
    """What of two tokenizers differs, that give a text different ids."""
    both = (one, other)
    a, b = (backend.encode(text, add_special_tokens=False).ids for backend in both)
    if a == b:
        return "the post_processor"
    a, b = (json.loads(backend.to_str()) for backend in both)
    names = [name for name in ("normalizer", "pre_tokenizer") if a[name] != b[name]]
    return " and ".join(f"the {name}" for name in names) or "the vocabulary"


def _difference(ours: list[str], theirs: list[str]) -> str:
    """The first tokens in which two tokenisations differ."""
    pairs = zip(ours, theirs, strict=False)
    start = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    a, b = (" ".join(tokens[start : start + 4]) or "nothing" for tokens in (ours, theirs))
    return f"a text the first gives {a!r}, the second {b!r}"
