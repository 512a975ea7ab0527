"""Appends the end-of-text token (EOS), which last-token pooling reads, to a tokenizer's texts.

The tokenizer's post-processor does it, so that everyone who loads its files gets the same ids.
"""

import json

import tokenizers

from inf_jax.core.errors import UserError


def choice_for(append_eos: str, pooling: str) -> str:
    """The `append_eos` of `load_tokenizer`: "auto" is "never" for poolings other than "last"."""
    return "never" if append_eos == "auto" and pooling != "last" else append_eos


def needs_eos(choice: str, *, eos_id: int | None, ends: int | None, source: str) -> bool:
    """Whether the EOS must be appended.

    Args:
      choice: "auto": if there is an EOS and no special token ends a text yet (Qwen3-Embedding's
        tokenizer ends texts with a token other than its EOS); "always": unless the EOS ends texts
        already; or "never".
      ends: the special token that ends each text, if one does.
      source: the tokenizer's name, for messages.

    Raises:
      UserError: "always", but there is no EOS.
    """
    if choice == "always" and eos_id is None:
        raise UserError(
            f"model.append_eos='always': the tokenizer of {source} has no eos_token; set one in "
            "its tokenizer_config.json"
        )
    if choice == "auto":
        return eos_id is not None and ends is None
    return choice == "always" and ends != eos_id


def with_special_token(
    backend: tokenizers.Tokenizer,
    token: str,
    token_id: int,
    *,
    at_end: bool = True,
    remedy: str,
) -> tokenizers.processors.PostProcessor:
    """The tokenizer's post-processor, changed so that `token` ends (or begins) every text.

    The special tokens that it adds now stay. The template itself is changed: `tokenizers` ignores a
    second post-processor after the first.

    Raises:
      UserError: a post-processor without a template (BERT's and RoBERTa's own kinds); ends in
        `remedy`.
    """
    state = json.loads(backend.to_str())
    present = state["post_processor"] or {"type": "Sequence", "processors": []}
    steps = present["processors"] if present["type"] == "Sequence" else [present]
    template = next((x for x in steps if x["type"] == "TemplateProcessing"), None)
    if template is None:
        odd = [x["type"] for x in steps if x["type"] != "ByteLevel"]
        if odd:
            raise UserError(
                f"{token!r} cannot be added to each text: the tokenizer's post-processor is "
                f"{', '.join(odd)}, not a template; {remedy}"
            )
        one, other = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
        template = {"type": "TemplateProcessing", "single": [one], "pair": [one, other]}
        template["special_tokens"] = {}
        steps = [*steps, template]
    for name, type_id in (("single", 0), ("pair", 1)):
        place, type_id = (len(template[name]), type_id) if at_end else (0, 0)
        template[name].insert(place, {"SpecialToken": {"id": token, "type_id": type_id}})
    template["special_tokens"][token] = {"id": token, "ids": [token_id], "tokens": [token]}
    state["post_processor"] = {"type": "Sequence", "processors": steps}
    return tokenizers.Tokenizer.from_str(json.dumps(state)).post_processor
