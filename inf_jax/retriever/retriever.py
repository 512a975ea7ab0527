"""Encodes queries and passages with a trained model, its tokenizer and its templates."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from inf_jax.core.errors import UserError
from inf_jax.core.packing import rows_needed
from inf_jax.distributed.mesh import local_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.models.config import EncoderConfig
from inf_jax.models.encoder import make_encoder, tower
from inf_jax.retriever.encode import Grid, encode_texts, shortened
from inf_jax.retriever.settings import RetrieverConfig
from inf_jax.retriever.similarity import similarities
from inf_jax.text.checks import check_text, check_tokens
from inf_jax.text.tokenizer import TextTokenizer

CHUNK_TOKENS = 8192  # tokens that a device encodes at once
WINDOW_TEXTS = 1 << 15  # texts that are tokenised at once, which bounds host memory
TEXTS_PER_ROW = 16

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
      mesh: devices of this process; None: one copy of the parameters on each of them.
      chunk_tokens: tokens that a device encodes at once; more need more memory.

    Attributes:
      embedding_size: int, entries of a vector, e; `config.truncate_dim` if that is set.
      mesh: the mesh on which the parameters are.

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
        options = config.encoder_options(
            dtype=dtype,
            scan_layers=jax.default_backend() != "cpu",  # unrolled layers are faster there
            attention=attention,
        )
        self._encoder = _make_encoder(shape, options)
        self.embedding_size: int = config.truncate_dim or self._encoder.width
        self.mesh: Mesh = local_mesh() if mesh is None else mesh
        self._params = jax.device_put(params, state_shardings(self.mesh, params))

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        instruction: str | Sequence[str] | None = None,
        dim: int | None = None,
        progress: bool | str = False,
    ) -> np.ndarray:
        """Encodes passages, or queries if an instruction is given.

        Args:
          texts: n texts, or one.
          instruction: one for all texts, or one each; "" for a query without instruction. None:
            the texts are passages.
          dim: keep the first `dim` entries of each vector (Matryoshka), scaled to unit length
            again if the model's vectors have unit length; None: as many as the model's settings
            say, usually all.
          progress: show a progress bar; a string is its label.

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
        progress: bool | str = False,
    ) -> np.ndarray:
        """Encodes instructed queries; a long one loses the end of the query, not the instruction.

        With the attention query encoder the limit applies to query and instruction each.

        Returns:
          float32[n, e], or float32[e] for a single query.
        Raises:
          UserError: arguments that are not strings, a wrong number of instructions, a `dim` out of
            range.
        """
        texts = _strings(queries, "queries")
        if isinstance(instructions, str):
            instructions = [instructions] * len(texts)
        instructions = _strings(instructions, "instructions")
        if len(instructions) != len(texts):
            raise UserError(
                f"{len(texts)} queries but {len(instructions)} instructions: give one each, or a "
                "single string for all"
            )
        vectors = self._encode(
            "query",
            list(zip(texts, instructions, strict=True)),
            lambda pairs: self.config.queries.tokenise(self.tokenizer, pairs, self.config.text),
            label="queries" if progress is True else progress or "",
        )
        vectors = self._shortened(vectors, dim)
        return vectors[0] if isinstance(queries, str) else vectors

    def encode_passages(
        self,
        passages: str | Sequence[str],
        *,
        dim: int | None = None,
        progress: bool | str = False,
    ) -> np.ndarray:
        """Encodes passages; a long one loses its end.

        Returns:
          float32[n, e], or float32[e] for a single passage.
        Raises:
          UserError: arguments that are not strings, a `dim` out of range.
        """
        vectors = self._encode(
            "passage",
            _strings(passages, "passages"),
            lambda texts: (self.tokenizer.passages(texts, self.config.text), None),
            label="passages" if progress is True else progress or "",
        )
        vectors = self._shortened(vectors, dim)
        return vectors[0] if isinstance(passages, str) else vectors

    def similarity(self, queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
        """float32[n, m] of vectors float32[n, e] and float32[m, e] of this model, compared as its
        `config.similarity` says; a higher one is nearer."""
        return similarities(queries, passages, kind=self.config.similarity)

    def _encode(self, role: str, texts: list, tokenise: Tokenise, *, label: str) -> np.ndarray:
        """float32[n, e] of `texts`, in windows."""
        vectors = np.empty((len(texts), self._encoder.width), np.float32)
        encode = self._encoder.encode
        if role == "query":
            encode = self.config.queries.encode(self._encoder)
        with tqdm(total=len(texts), desc=label, unit="text", disable=not label) as bar:
            for start in range(0, len(texts), WINDOW_TEXTS):
                window = slice(start, start + WINDOW_TEXTS)
                tokens, instructions = tokenise(texts[window])
                check_tokens(tokens, "queries" if role == "query" else "passages", start)
                check_tokens(instructions or (), "instructions", start)
                vectors[window] = encode_texts(
                    encode,
                    tower(self._params, role),
                    tokens,
                    instructions,
                    grid=self._grid(role, tokens, instructions),
                    mesh=self.mesh,
                    on_progress=bar.update,
                )
        return vectors

    def _shortened(self, vectors: np.ndarray, dim: int | None) -> np.ndarray:
        if dim is None and self.config.truncate_dim:
            dim = self.config.truncate_dim
        return shortened(vectors, dim, normalise=self.config.normalise)

    def _grid(
        self, role: str, tokens: list[np.ndarray], instructions: list[np.ndarray] | None
    ) -> Grid:
        """Powers of two: few compilations, and one short text does not pay for a big grid."""
        text = self.config.text
        limit = text.max_query_tokens if role == "query" else text.max_passage_tokens
        lengths = [np.fromiter(map(len, x), np.int64) for x in (tokens, instructions) if x]
        longest = max(int(x.max()) for x in lengths)
        # a row holds all texts of a pair
        row_tokens = min(limit, _power_of_two(max(32, longest))) * len(lengths)
        rows = max(1, self._chunk_tokens // row_tokens)
        total = sum(lengths)
        if total.sum() < rows * row_tokens * self.mesh.size:
            needed = rows_needed(total, row_tokens, TEXTS_PER_ROW // len(lengths))
            rows = min(rows, _power_of_two(-(-needed // self.mesh.size)))
        return Grid(rows, row_tokens, TEXTS_PER_ROW)

    def __repr__(self) -> str:
        return f"Retriever({self.config}, embedding_size={self.embedding_size})"


def _strings(value: str | Sequence[str], name: str) -> list[str]:
    # the order of a set, and what of a mapping is meant, are not known
    if isinstance(value, bytes | Set | Mapping) or not isinstance(value, Iterable):
        raise UserError(f"{name} must be a string or strings, not a {type(value).__name__}")
    strings = [value] if isinstance(value, str) else list(value)
    for n, string in enumerate(strings):
        check_text(string, f"{name}[{n}]")
    return strings


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (max(int(n), 1) - 1).bit_length()
