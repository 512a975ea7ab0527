"""Embeds queries and passages with a trained model: `inf_jax.load(directory).encode(texts)`."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from inf_jax.core.errors import UserError
from inf_jax.core.packing import rows_needed
from inf_jax.distributed.mesh import local_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.models.config import EncoderConfig
from inf_jax.models.encoder import make_encoder, tower
from inf_jax.retriever.encode import encode_texts, shortened
from inf_jax.retriever.settings import RetrieverConfig
from inf_jax.text.tokenizer import TextTokenizer

CHUNK_TOKENS = 8192  # token slots of a device's chunk at the most


# one encoder a shape: retrievers that differ in their weights alone share the compiled code
_encoder = functools.lru_cache(maxsize=8)(make_encoder)


class Retriever:
    """An encoder with its tokenizer, templates and limits, on the devices of this process.

    Args:
      params: {tower: tree}, as `step.init_params` makes it.
      config: see RetrieverConfig.
      shape: the encoder's shape.
      tokenizer: of both towers.
      dtype: compute dtype, float32 or bfloat16.
      attention: "auto" or an implementation by name, see `EncoderOptions`.
      mesh: of devices of this process, see `load`'s fsdp; None is a copy on each of all.

    Attributes:
      embedding_size: int, e.
      mesh: where the parameters lie.

    Raises:
      UserError: a limit is over the encoder's positions.
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
    ):
        longest = max(config.text.max_query_tokens, config.text.max_passage_tokens)
        if longest > shape.max_positions:
            raise UserError(
                f"texts of up to {longest} tokens, but the encoder has {shape.max_positions} "
                "positions: lower the limits"
            )
        self.config, self.tokenizer = config, tokenizer
        unrolled = jax.default_backend() == "cpu"  # faster there
        options = config.options(dtype=dtype, scan_layers=not unrolled, attention=attention)
        self._encoder = _encoder(shape, options)
        self.embedding_size: int = self._encoder.width
        self.mesh: Mesh = local_mesh() if mesh is None else mesh
        self._params = jax.device_put(params, state_shardings(self.mesh, params))

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        instruction: str | Sequence[str] | None = None,
        dim: int | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Passages, or with an instruction, queries.

        Args:
          texts: n texts, or one.
          instruction: one for all texts, or one each; "" embeds a query that has none. None means
            that the texts are passages.
          dim: only the first so many entries of each vector (Matryoshka), brought to unit length
            where the whole ones have it; None is all.
          progress: show a progress bar.

        Returns:
          float32[n, e], or float32[e] for a single text.
        """
        if instruction is None:
            return self.encode_passages(texts, dim=dim, progress=progress)
        return self.encode_queries(texts, instruction, dim=dim, progress=progress)

    def encode_queries(
        self,
        queries: str | Sequence[str],
        instructions: str | Sequence[str] = "",
        *,
        dim: int | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Instructed queries; a long one loses the end of its query and keeps the instruction.

        With the attention query encoder, query and instruction have the limit each.

        Returns:
          float32[n, e], or float32[e] for a single query.
        Raises:
          UserError: something else than texts, or not one instruction each; a `dim` that is none.
        """
        texts = _texts(queries, "queries")
        if isinstance(instructions, str):
            each = [instructions] * len(texts)
        else:
            each = _texts(instructions, "instructions")
        if len(each) != len(texts):
            raise UserError(
                f"{len(texts)} queries but {len(each)} instructions: give one each, or a single "
                "string for all"
            )
        pairs, text = list(zip(texts, each, strict=True)), self.config.text
        if self.config.query_encoder == "attention":
            firsts, tokens = self.tokenizer.apart(pairs, text)
        else:
            firsts, tokens = None, self.tokenizer.queries(pairs, text)
        vectors = self._embed("query", tokens, text.max_query_tokens, progress, firsts)
        vectors = self._shortened(vectors, dim)
        return vectors[0] if isinstance(queries, str) else vectors

    def encode_passages(
        self, passages: str | Sequence[str], *, dim: int | None = None, progress: bool = False
    ) -> np.ndarray:
        """Passages; a long one loses its end.

        Returns:
          float32[n, e], or float32[e] for a single passage.
        Raises:
          UserError: something else than texts; a `dim` that is none.
        """
        tokens = self.tokenizer.passages(_texts(passages, "passages"), self.config.text)
        vectors = self._embed("passage", tokens, self.config.text.max_passage_tokens, progress)
        vectors = self._shortened(vectors, dim)
        return vectors[0] if isinstance(passages, str) else vectors

    def _shortened(self, vectors: np.ndarray, dim: int | None) -> np.ndarray:
        return shortened(vectors, dim, normalise=self.config.normalise)

    def _embed(
        self,
        role: str,
        tokens: list[np.ndarray],
        limit: int,
        progress: bool,
        instructions: list[np.ndarray] | None = None,
    ) -> np.ndarray:
        # Grids in powers of two: few compilations, and one short query does not pay for a big one.
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        longest, per_row = lengths.max(initial=1), 16
        if instructions is not None:
            firsts = np.fromiter(map(len, instructions), np.int64, len(tokens))
            longest = max(longest, firsts.max(initial=1))
            lengths, per_row = lengths + firsts, 8
        row_tokens = min(limit, _power_of_two(max(32, longest)))
        row_tokens *= 1 if instructions is None else 2  # a row holds both texts of a pair
        rows = max(1, CHUNK_TOKENS // row_tokens)
        if lengths.sum() < rows * row_tokens * self.mesh.size:
            needed = rows_needed(lengths, row_tokens, per_row)
            rows = min(rows, _power_of_two(-(-needed // self.mesh.size)))
        return encode_texts(
            self._encoder.encode if instructions is None else self._encoder.encode_queries,
            tower(self._params, role),
            tokens,
            instructions,
            row_tokens=row_tokens,
            rows=rows,
            texts_per_row=16,
            mesh=self.mesh,
            progress={"query": "queries", "passage": "passages"}[role] if progress else "",
        )

    def __repr__(self) -> str:
        return f"Retriever({self.config}, embedding_size={self.embedding_size})"


def _texts(value: str | Sequence[str], name: str) -> list[str]:
    if isinstance(value, bytes) or not hasattr(value, "__iter__"):
        raise UserError(f"{name}: a {type(value).__name__}, not a text or texts")
    texts = [value] if isinstance(value, str) else list(value)
    for n, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{name}[{n}] is a {type(text).__name__}, not a text")
    return texts


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (max(int(n), 1) - 1).bit_length()
