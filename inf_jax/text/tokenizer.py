"""Tokenises instructed queries and passages: one path for training, evaluation and export."""

import functools
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tokenizers

from inf_jax.core.errors import UserError
from inf_jax.text import eos
from inf_jax.text.batches import text_batches
from inf_jax.text.hf_tokenizer import (
    beyond_rows,
    open_tokenizer,
    special_tokens_around,
    within_rows,
)
from inf_jax.text.lower_case import lower_case_first
from inf_jax.text.query_parts import QueryParts, kept_tokens, split_parts, token_kinds
from inf_jax.text.templates import TextConfig, passage_text, pieces, render, render_query

# Texts that the backend tokenises in one call: its encodings take some 130 bytes a token. Enough to
# keep all cores busy.
_BATCH_TEXTS, _BATCH_CHARACTERS = 1024, 1 << 20


class TextTokenizer:
    """A Hugging Face fast tokenizer with this project's templates and truncation.

    Args:
      hf_tokenizer: not changed.
      append_eos: "auto", "always" or "never", see `eos.needs_eos`.
      lower_case: lower-case texts before the tokenizer's own normalisation, as `do_lower_case` of
        sentence-transformers.
      rows: of the model's embedding table. An added token beyond them, as Gemma 3 has for images,
        is treated as ordinary text.

    Attributes:
      fingerprint: str, a hash of everything that decides which ids a text gets.
      special: (int32[...], int32[...]), the special tokens before and after every text.
      lower_case: bool, as given.
      appended_eos: str, the EOS added to what the tokenizer's own files add; "" for none.
      beyond: added tokens beyond `rows`; ordinary text here.

    Raises:
      UserError: there is no EOS to append; or the vocabulary, or a special token around texts, is
        beyond `rows`.
    """

    def __init__(
        self,
        hf_tokenizer,
        *,
        append_eos: str = "never",
        rows: int | None = None,
        lower_case: bool = False,
    ):
        # a copy, without the truncation and padding that a file may set
        self._backend = tokenizers.Tokenizer.from_str(hf_tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        keep = getattr(hf_tokenizer, "split_special_tokens", False)
        self._backend.encode_special_tokens = bool(keep)
        source = hf_tokenizer.name_or_path
        self.lower_case: bool = lower_case
        if lower_case:
            lower_case_first(self._backend)
        self.beyond: tuple[str, ...] = ()
        if rows is not None:
            state, dropped = within_rows(json.loads(self._backend.to_str()), rows, source)
            if dropped:
                self.beyond = tuple(dropped)
                self._backend = tokenizers.Tokenizer.from_str(json.dumps(state))
                self._backend.encode_special_tokens = bool(keep)
        self.special: tuple[np.ndarray, np.ndarray] = special_tokens_around(self._backend)
        self.appended_eos: str = ""
        _, after = self.special
        ends = int(after[-1]) if after.size else None
        eos_id = hf_tokenizer.eos_token_id
        if eos.needs_eos(append_eos, eos_id=eos_id, ends=ends, source=source):
            self.appended_eos = hf_tokenizer.eos_token
            self._backend.post_processor = eos.with_special_token(
                self._backend, self.appended_eos, eos_id, remedy="set model.append_eos='never'"
            )
            self.special = special_tokens_around(self._backend)
        beyond = [i for ids in self.special for i in ids if rows is not None and i >= rows]
        if beyond:
            token = self._backend.id_to_token(beyond[0]) or self.appended_eos
            raise UserError(beyond_rows(token, beyond[0], rows, source))
        state = self._backend.to_str() + str(self._backend.encode_special_tokens)
        self.fingerprint: str = hashlib.sha256(state.encode()).hexdigest()

    def vocabulary(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def queries(self, queries: Sequence[tuple[str, str]], config: TextConfig) -> list[np.ndarray]:
        """Token ids of (query, instruction) pairs, special tokens included.

        A text over `max_query_tokens` loses the end of its query and keeps the whole instruction;
        the query keeps `max_query_tokens // 4` tokens, beyond that the instruction loses its end.

        Returns:
          int32[tokens] for each pair, at most `max_query_tokens`.

        Raises:
          UserError: the limit is too small for the special tokens and the template's own words.
        """
        rendered, limit = self._rendered(queries, config), config.max_query_tokens
        ids = self._encode([text for text, _ in rendered])
        overlong = [n for n, row in enumerate(ids) if len(row) > limit]
        # offsets are slow to compute: only for these
        encodings = self._encodings([rendered[n][0] for n in overlong], offsets=True)
        for n, encoding in zip(overlong, encodings, strict=True):
            ids[n] = ids[n][kept_tokens(token_kinds(encoding, rendered[n][1]), limit)]
        return ids

    def query_parts(
        self, queries: Sequence[tuple[str, str]], config: TextConfig
    ) -> list[tuple[np.ndarray, QueryParts]]:
        """The ids as from `queries`, each with the parts of its text before truncation.

        Slower than `queries`; same arguments and errors.
        """
        rendered, limit = self._rendered(queries, config), config.max_query_tokens
        result = []
        encodings = self._encodings([text for text, _ in rendered], offsets=True)
        for encoding, (_, spans) in zip(encodings, rendered, strict=True):
            ids, kinds = np.array(encoding.ids, np.int32), token_kinds(encoding, spans)
            within = ids[kept_tokens(kinds, limit)] if len(ids) > limit else ids
            result.append((within, split_parts(ids, kinds, limit)))
        return result

    def passages(self, passages: Sequence[str], config: TextConfig) -> list[np.ndarray]:
        """int32[tokens] of each passage, special tokens included; one over the limit loses its end.

        Raises UserError as `queries`.
        """
        limit = config.max_passage_tokens
        self._check_limit("passage", config.passage_template, limit)
        return self._encode([passage_text(p, config.passage_template) for p in passages], limit)

    def separate_texts(
        self, queries: Sequence[tuple[str, str]], config: TextConfig
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Token ids of queries and instructions as separate texts, for query_encoder "attention".

        The bare texts with special tokens, without words of the template. Each text over
        `max_query_tokens` loses its end. An empty text is only its special tokens.

        Returns:
          (instructions, queries), int32[tokens] for each pair. Raises UserError as `queries`.
        """
        self._check_limit("query", "{query}{instruction}", config.max_query_tokens)
        texts = [i for _, i in queries] + [q for q, _ in queries]
        ids = self._encode(texts, config.max_query_tokens)
        return ids[: len(queries)], ids[len(queries) :]

    def _rendered(self, queries: Sequence[tuple[str, str]], config: TextConfig) -> list[tuple]:
        self._check_limit("query", config.query_template, config.max_query_tokens)
        return [render_query(q, i, config.query_template) for q, i in queries]

    def _encode(self, texts: Sequence[str], limit: float = math.inf) -> list[np.ndarray]:
        """Token ids; a text over the limit loses its end, but not its last special tokens."""
        ids = []
        for encoding in self._encodings(texts):
            row = np.array(encoding.ids, np.int32)
            if len(row) > limit:
                suffix = encoding.special_tokens_mask[::-1].index(0)  # special tokens at the end
                row = np.concatenate((row[: limit - suffix], row[len(row) - suffix :]))
            ids.append(row)
        return ids

    def _encodings(
        self, texts: Sequence[str], *, offsets: bool = False
    ) -> Iterator[tokenizers.Encoding]:
        """The backend's encoding of each text, few in memory at a time."""
        encode = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
        for batch in text_batches(texts, count=_BATCH_TEXTS, characters=_BATCH_CHARACTERS):
            yield from encode(batch)

    @functools.lru_cache(maxsize=8)  # noqa: B019 (a tokenizer lives as long as its process)
    def _check_limit(self, tower: str, template: str, limit: int) -> None:
        bare = render(pieces(template), {"query": "", "instruction": "", "passage": ""})[0]
        needed = max(len(self._backend.encode(bare).ids) + 1, 2)  # one token of the text itself
        if limit < needed:
            raise UserError(
                f"max_{tower}_tokens={limit} is too small for the special tokens and the words of "
                f"{tower}_template={template!r}; it must be at least {needed}"
            )


def load_tokenizer(
    name_or_dir: str | os.PathLike,
    *,
    append_eos: str = "never",
    rows: int | None = None,
    lower_case: bool = False,
) -> TextTokenizer:
    """The tokenizer of a local Hugging Face directory or of a hub id; arguments: TextTokenizer.

    Raises:
      UserError: as `open_tokenizer` or TextTokenizer.
    """
    options = {"append_eos": append_eos, "rows": rows, "lower_case": lower_case}
    tokenizer = TextTokenizer(open_tokenizer(name_or_dir), **options)
    if tokenizer.beyond:
        shown = ", ".join(tokenizer.beyond[:5]) + (", ..." if tokenizer.beyond[5:] else "")
        logging.getLogger(__name__).warning(
            "%s: the model has no vector for the added tokens %s: ordinary text here, an "
            "IndexError in other libraries",
            name_or_dir,
            shown,
        )
    return tokenizer
