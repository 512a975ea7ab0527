"""The end-of-text token (EOS) that last-token pooling reads. The tokenizer itself puts it behind
every text, by its post-processor, so that whoever opens the tokenizer's files gets the same ids."""

import json

import tokenizers

from inf_jax.core.errors import UserError

CHOICES = ("auto", "always", "never")


def choice_for(append_eos: str, pooling: str) -> str:
    """What `text.load_tokenizer` is asked for: "auto" appends nothing for poolings but "last"."""
    return "never" if append_eos == "auto" and pooling != "last" else append_eos


def is_missing(choice: str, *, eos_id: int | None, ends: int | None, source: str) -> bool:
    """Whether the EOS is to be appended.

    Args:
      choice: "auto", where there is an EOS and no special token ends a text yet (Qwen3-Embedding's
        tokenizer ends it with another than its EOS); "always", unless the EOS does already; or
        "never".
      eos_id: the tokenizer's EOS, if it has one.
      ends: the special token that ends each text, if one does.
      source: the tokenizer's name, for messages.

    Raises:
      UserError: "always", and there is no EOS.
    """
    if choice == "always" and eos_id is None:
        raise UserError(
            f"model.append_eos='always': the tokenizer of {source} has no eos_token; name one in "
            "its tokenizer_config.json"
        )
    if choice == "auto":
        return eos_id is not None and ends is None
    return choice == "always" and ends != eos_id


def with_eos(
    backend: tokenizers.Tokenizer, token: str, token_id: int
) -> tokenizers.processors.PostProcessor:
    """The tokenizer's post-processor, changed so that `token` ends every text.

    The special tokens that it puts there now stay. In place of a post-processor behind the other,
    which `tokenizers` leaves without effect, the template itself is changed.

    Raises:
      UserError: a post-processor without a template (BERT's, RoBERTa's own kinds).
    """
    state = json.loads(backend.to_str())
    found = state["post_processor"]
    steps = [found] if found else []
    if found and found["type"] == "Sequence":
        steps = found["processors"]
    template = next((x for x in steps if x["type"] == "TemplateProcessing"), None)
    if template is None:
        odd = [x["type"] for x in steps if x["type"] != "ByteLevel"]
        if odd:
            raise UserError(
                f"no EOS can be appended: the tokenizer's post-processor is {', '.join(odd)}, no "
                "template; set model.append_eos='never'"
            )
        one = {"Sequence": {"id": "A", "type_id": 0}}
        other = {"Sequence": {"id": "B", "type_id": 1}}
        template = {"type": "TemplateProcessing", "single": [one], "pair": [one, other]}
        template["special_tokens"] = {}
        steps = [*steps, template]
    for name, type_id in (("single", 0), ("pair", 1)):
        template[name].append({"SpecialToken": {"id": token, "type_id": type_id}})
    template["special_tokens"][token] = {"id": token, "ids": [token_id], "tokens": [token]}
    state["post_processor"] = {"type": "Sequence", "processors": steps}
    return tokenizers.Tokenizer.from_str(json.dumps(state)).post_processor
