"""Writes the tokenizer of an export: as transformers and sentence-transformers then read it."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from inf_jax.core.errors import UserError
from inf_jax.io.json_files import read_json, write_json
from inf_jax.text.eos import with_special_token
from inf_jax.text.hf_tokenizer import CONFIG_FILE, FILE, FLAGS, open_tokenizer, within_rows
from inf_jax.text.lower_case import lower_case_first

# Fields of a tokenizer's files that record how it was used before; they do not belong in an export.
_USAGE_FIELDS = """max_length stride truncation_strategy pad_to_multiple_of is_local
    local_files_only auto_map""".split()


def write_tokenizer(
    backbone: Path,
    folder: Path,
    *,
    max_length: int,
    eos: str = "",
    rows: int | None = None,
    lower_case: bool = False,
) -> None:
    """Writes the backbone's tokenizer files, so that no text gets an id beyond the model's table.

    Args:
      backbone: directory to read from.
      folder: directory to write to.
      max_length: tokens to which `truncation=True` cuts a text, at its end.
      eos: token appended to every text; "": none.
      rows: of the model's embedding table; added tokens beyond it are left out. None: all stay.
      lower_case: whether texts are lower-cased first.

    Raises:
      UserError: as `open_tokenizer`, or transformers adds a token beyond the table by itself.
    """
    tokenizer = open_tokenizer(backbone)
    for name in _USAGE_FIELDS:
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.model_max_length = max_length
    tokenizer.truncation_side = "right"
    beyond = _beyond(tokenizer, rows)
    # Usual for decoders; padding is masked anyway.
    if tokenizer.pad_token is None or tokenizer.pad_token in beyond:
        substitutes = (tokenizer.eos_token, tokenizer.unk_token)
        tokenizer.pad_token = next((x for x in substitutes if x and x not in beyond), None)
    backend = tokenizer.backend_tokenizer
    if lower_case:
        lower_case_first(backend)
    if eos:
        backend.post_processor = with_special_token(
            backend, eos, tokenizer.convert_tokens_to_ids(eos), remedy="append none"
        )
    tokenizer.save_pretrained(folder)
    config = read_json(folder / CONFIG_FILE, kind=dict)
    if beyond:
        state, _ = within_rows(read_json(folder / FILE, kind=dict), rows, str(backbone))
        write_json(folder / FILE, state)
        config = {name: _without(name, value, beyond) for name, value in config.items()}
    if lower_case:  # a class of the tokenizer's own would build another normalizer
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    # transformers 5 writes none of them; transformers 4 rebuilds some post-processors from them
    own = read_json(backbone / CONFIG_FILE, {}, kind=dict)
    config |= {name: own[name] for name in FLAGS if isinstance(own.get(name), bool)}
    write_json(folder / CONFIG_FILE, config | ({"add_eos_token": True} if eos else {}))
    if beyond and (left := _beyond(open_tokenizer(folder), rows)):
        raise UserError(
            f"{backbone}: transformers gives {', '.join(sorted(left))} ids beyond the {rows} rows "
            f"of the embedding table, whatever {CONFIG_FILE} says; add rows for them to the model"
        )


def _beyond(tokenizer: Any, rows: int | None) -> set[str]:
    """Tokens that the embedding table lacks."""
    return {t for t, number in tokenizer.get_vocab().items() if rows is not None and number >= rows}


def _without(name: str, value: Any, tokens: Collection[str]) -> Any:
    """A field of tokenizer_config.json without these tokens; null where it is one of them."""

    def absent(x: Any) -> bool:
        return (x.get("content") if isinstance(x, dict) else x) not in tokens

    if isinstance(value, list):
        return [x for x in value if not isinstance(x, str | dict) or absent(x)]
    if isinstance(value, dict) and "content" not in value:
        return {k: x for k, x in value.items() if not isinstance(x, str | dict) or absent(x)}
    if name.endswith("_token") and isinstance(value, str | dict) and not absent(value):
        return None
    return value
