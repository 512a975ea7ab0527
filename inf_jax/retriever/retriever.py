"""Encodes queries and passages with a trained model, its tokenizer and its templates."""

import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Self

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from inf_jax.checkpoints.integrity import fingerprint
from inf_jax.core.errors import UserError
from inf_jax.distributed.mesh import batch_devices, local_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.models.config import EncoderConfig
from inf_jax.models.encoder import make_encoder, tower
from inf_jax.retriever.encode import choose_grid, encode_texts, shortened
from inf_jax.retriever.settings import RetrieverConfig
from inf_jax.retriever.similarity import similarities
from inf_jax.retriever.stream import TextStream, gather, one_ahead, pair_stream
from inf_jax.text.batches import text_batches
from inf_jax.text.checks import check_tokens
from inf_jax.text.tokenizer import TextTokenizer

CHUNK_TOKENS = 8192  # tokens that a device encodes at once
# Texts that are read, tokenised and packed together: a window. Large, so that texts of all lengths
# fill the rows; two are in memory.
WINDOW_TEXTS, WINDOW_CHARACTERS = 1 << 15, 1 << 25

# One encoder per shape: retrievers that differ only in their weights share the compiled code.
_make_encoder = functools.lru_cache(maxsize=8)(make_encoder)
# (token ids of the texts, of their instructions or None) of some texts
Tokenise = Callable[[list], tuple[list[np.ndarray], list[np.ndarray] | None]]


class Retriever:
    """An encoder with its tokenizer, templates and limits, on the devices of this process.

    Args:
      params: {tower: tree} of arrays, keyed "shared", or "query" and "passage".
      config: see RetrieverConfig.
      shape: the encoder's shape.
      tokenizer: the tokenizer of both towers.
      dtype: dtype of the computation, float32 or bfloat16.
      attention: "auto" or the name of an implementation, see `EncoderOptions`.
      mesh: of this process's devices, or of those of all, which then encode the same texts
        together; None: one copy of the parameters on each device of this process.
      chunk_tokens: tokens that a device encodes at once; more need more memory.

    Attributes:
      embedding_size: int, entries of a vector, e; `config.truncate_dim` if that is set.
      encoder, params: what encodes, and its parameters, {tower: tree}, on the mesh.
      mesh: the mesh on which the parameters are.
      dtype: of the computation.

    Raises:
      UserError: a token limit exceeds the encoder's positions.
    """

    def __init__(
        self,
        params: dict,
        config: RetrieverConfig,
        *,
        shape: EncoderConfig,
        tokenizer: TextTokenizer,
        dtype: str = "float32",
        attention: str = "auto",
        mesh: Mesh | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
    ):
        longest = max(config.text.max_query_tokens, config.text.max_passage_tokens)
        if longest > shape.max_positions:
            raise UserError(
                f"texts of up to {longest} tokens, but the encoder has {shape.max_positions} "
                "positions: lower the limits"
            )
        self.config, self.tokenizer, self._chunk_tokens = config, tokenizer, chunk_tokens
        self.dtype = dtype
        options = config.encoder_options(
            dtype=dtype,
            scan_layers=jax.default_backend() != "cpu",  # unrolled layers are faster there
            attention=attention,
        )
        self.encoder = _make_encoder(shape, options)
        self.embedding_size: int = config.truncate_dim or self.encoder.width
        self.mesh: Mesh = local_mesh() if mesh is None else mesh
        self.params: dict = jax.device_put(params, state_shardings(self.mesh, params))

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        instruction: str | Iterable[str] | None = None,
        dim: int | None = None,
        out: np.ndarray | None = None,
        progress: bool | str = False,
    ) -> np.ndarray:
        """Encodes passages, or queries if an instruction is given.

        Texts are read and encoded in windows: however many there are, only the vectors grow.

        Args:
          texts: n texts, as a list, a generator or any other iterable; or one text.
          instruction: one for all texts, or an iterable of one each; "" for a query without
            instruction. None: the texts are passages.
          dim: keep the first `dim` entries of each vector (Matryoshka), scaled to unit length
            again if the model's vectors have unit length and are compared by cosine; None: as many
            as the model's settings say, usually all.
          out: floating-point array [n, e], for example a `np.memmap` or float16; it is filled and
            returned. None: a new float32 array.
          progress: show a progress bar; a string is its label.

        Returns:
          float32[n, e], or float32[e] for a single text.
        """
        if instruction is None:
            return self.encode_passages(texts, dim=dim, out=out, progress=progress)
        return self.encode_queries(texts, instruction, dim=dim, out=out, progress=progress)

    def encode_blocks(
        self,
        texts: str | Iterable[str],
        *,
        instruction: str | Iterable[str] | None = None,
        dim: int | None = None,
        progress: bool | str = False,
    ) -> Iterator[np.ndarray]:
        """The vectors of `encode` in blocks, in the order of the texts, to be written as they come.

        They are computed in parts of one size, so that their bits do not depend on the number of
        devices (of one kind); those of a few texts, which `encode` deals out, may in the last bits.

        Yields:
          float32[..., e] each, of some ten thousand texts; for texts that are read as they are
          needed, neither texts nor vectors are held beyond two blocks.
        Raises:
          UserError: as `encode_queries` and `encode_passages`.
        """
        if instruction is None:
            return self._passages(texts, dim, progress, False)[0]
        return self._queries(texts, instruction, dim, progress, False)[0]

    def encode_queries(
        self,
        queries: str | Iterable[str],
        instructions: str | Iterable[str] = "",
        *,
        dim: int | None = None,
        out: np.ndarray | None = None,
        progress: bool | str = False,
    ) -> np.ndarray:
        """Encodes instructed queries; a long one loses the end of the query, not the instruction.

        With the attention query encoder the limit applies to query and instruction each.

        Returns:
          float32[n, e], or float32[e] for a single query.
        Raises:
          UserError: arguments that are not strings, a wrong number of instructions, a `dim` out of
            range, an `out` of another shape.
        """
        blocks, count = self._queries(queries, instructions, dim, progress)
        vectors = gather(blocks, count=count, width=self.width(dim), out=out)
        return vectors[0] if isinstance(queries, str) else vectors

    def encode_passages(
        self,
        passages: str | Iterable[str],
        *,
        dim: int | None = None,
        out: np.ndarray | None = None,
        progress: bool | str = False,
    ) -> np.ndarray:
        """Encodes passages; a long one loses its end.

        Returns:
          float32[n, e], or float32[e] for a single passage.
        Raises:
          UserError: arguments that are not strings, a `dim` out of range, an `out` of another
            shape.
        """
        blocks, count = self._passages(passages, dim, progress)
        vectors = gather(blocks, count=count, width=self.width(dim), out=out)
        return vectors[0] if isinstance(passages, str) else vectors

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """What decides this model's vectors besides templates and limits of texts, by name; equal
        for the same model on any mesh, so that vectors of two models are told apart."""
        settings = dataclasses.asdict(self.config)
        del settings["text"]
        return {
            "weights": fingerprint(self.params),
            "tokenizer": self.tokenizer.fingerprint[:16],
            "settings": json.dumps(settings, sort_keys=True),
            "attention": "causal" if self.encoder.config.causal else "bidirectional",
            "architecture": json.dumps(self.encoder.config.of_vectors(), sort_keys=True),
        }

    def with_query_template(self, template: str) -> Self:
        """The same model, weights included, with another template of an instructed query.

        Raises:
          UserError: not such a template, or a model that encodes query and instruction separately.
        """
        if not self.config.queries.pooled:
            raise UserError("query_template: this model encodes query and instruction separately")
        other = copy.copy(self)
        text = dataclasses.replace(self.config.text, query_template=template)
        other.config = dataclasses.replace(self.config, text=text)
        return other

    def similarity(self, queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
        """float32[n, m] of vectors float32[n, e] and float32[m, e] of this model, or one of them,
        float32[e], compared as its `config.similarity` says; a higher one is nearer. Raises
        UserError for other shapes."""
        return similarities(queries, passages, kind=self.config.similarity)

    def _queries(
        self,
        queries: str | Iterable[str],
        instructions: str | Iterable[str],
        dim: int | None,
        progress: bool | str,
        deal: bool = True,
    ) -> tuple[Iterator[np.ndarray], int | None]:
        """(blocks of vectors, number of queries if known)."""
        texts, each = TextStream(queries, "queries"), TextStream(instructions, "instructions")
        if isinstance(instructions, str):
            pairs = ((query, instructions) for query in texts)
        else:
            pairs = pair_stream(texts, each)
        blocks = self._encode(
            "query",
            pairs,
            lambda pairs: self.config.queries.tokenise(self.tokenizer, pairs, self.config.text),
            count=texts.count,
            label="queries" if progress is True else progress or "",
            deal=deal,
        )
        return self._shortened(blocks, dim), texts.count

    def _passages(
        self,
        passages: str | Iterable[str],
        dim: int | None,
        progress: bool | str,
        deal: bool = True,
    ) -> tuple[Iterator[np.ndarray], int | None]:
        """(blocks of vectors, number of passages if known)."""
        texts = TextStream(passages, "passages")
        blocks = self._encode(
            "passage",
            texts,
            lambda texts: (self.tokenizer.passages(texts, self.config.text), None),
            count=texts.count,
            label="passages" if progress is True else progress or "",
            deal=deal,
        )
        return self._shortened(blocks, dim), texts.count

    def _encode(
        self,
        role: str,
        texts: Iterable,
        tokenise: Tokenise,
        *,
        count: int | None,
        label: str,
        deal: bool,
    ) -> Iterator[np.ndarray]:
        """The vectors of each window of texts, or (query, instruction) pairs, float32[..., e]; with
        `deal` those of one small window are dealt out to all devices."""
        text, grids, done = self.config.text, set(), 0
        limit, encode = text.max_passage_tokens, self.encoder.encode
        if role == "query":
            limit, encode = text.max_query_tokens, self.config.queries.encode(self.encoder)
        windows = text_batches(
            texts, count=WINDOW_TEXTS, characters=WINDOW_CHARACTERS, length=_characters
        )
        with tqdm(total=count, desc=label, unit="text", disable=not label) as bar:
            for (tokens, instructions), last in one_ahead(tokenise, windows):
                check_tokens(tokens, "queries" if role == "query" else "passages", done)
                check_tokens(instructions or (), "instructions", done)
                done += len(tokens)
                grid = choose_grid(
                    [np.fromiter(map(len, ids), np.int64) for ids in (tokens, instructions) if ids],
                    limit=limit,
                    chunk_tokens=self._chunk_tokens,
                    devices=batch_devices(self.mesh) if deal else 1,
                    earlier=grids,
                    last=last,
                )
                grids.add(grid)
                yield encode_texts(
                    encode,
                    tower(self.params, role),
                    tokens,
                    instructions,
                    grid=grid,
                    mesh=self.mesh,
                    on_progress=bar.update,
                )

    def _shortened(self, blocks: Iterable[np.ndarray], dim: int | None) -> Iterator[np.ndarray]:
        """`shortened` of each block; a wrong `dim` is an error at once."""
        self.width(dim)
        dim = (self.config.truncate_dim or None) if dim is None else dim
        unit = self.config.unit_after_cut
        return (shortened(block, dim, normalise=unit) for block in blocks)

    def width(self, dim: int | None) -> int:
        """Entries of a vector with this `dim`, see `encode`; UserError where it is out of range."""
        if dim is None:
            return self.embedding_size
        none = np.empty((0, self.encoder.width), np.float32)
        return shortened(none, dim, normalise=False).shape[1]

    def __repr__(self) -> str:
        return f"Retriever({self.config}, embedding_size={self.embedding_size})"


def _characters(text: str | tuple[str, str]) -> int:
    """Of a text, or of query and instruction."""
    return len(text) if isinstance(text, str) else sum(map(len, text))
