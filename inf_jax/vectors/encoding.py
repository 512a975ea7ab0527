"""Encodes the texts of a source into a `VectorStore`, each process its share of the shards."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from inf_jax.core.errors import UserError
from inf_jax.retriever.retriever import Retriever
from inf_jax.retriever.settings import RetrieverConfig
from inf_jax.retriever.similarity import unit_vectors
from inf_jax.vectors.store import Manifest, VectorStore
from inf_jax.vectors.texts import Checked, TextRecord, TextSource

SHARD_SIZE = 1 << 16


class Share(NamedTuple):
    """Which shards a process encodes: those whose number has the remainder `process`."""

    process: int = 0
    count: int = 1


def make_manifest(
    retriever: Retriever,
    source: TextSource,
    checked: Checked,
    *,
    model: str,
    dtype: str = "float16",
    dim: int | None = None,
    shard_size: int = SHARD_SIZE,
) -> Manifest:
    """The manifest of a source's vectors.

    Args:
      model: name of the retriever.
      dtype: of the stored vectors.
      dim: as of `Retriever.encode`.

    Raises:
      UserError: `dim` is out of range, or the model's similarity is a distance.
    """
    config, text = retriever.config, retriever.config.text
    if config.similarity not in ("dot", "cosine"):
        raise UserError(
            f"{model}: its vectors are compared by {config.similarity}, and the search is by inner "
            "product; compare them with `Retriever.similarity`"
        )
    templates = {"passage": [text.passage_template, text.max_passage_tokens]}
    if source.role == "query":
        templates["query"] = [text.query_template, text.max_query_tokens]
    return Manifest(
        role=source.role,
        model=model,
        identity=retriever.identity,
        templates=templates,
        instruction=source.instruction,
        dtype=dtype,
        compute_dtype=retriever.dtype,
        width=retriever.width(dim),
        count=checked.count,
        shard_size=shard_size,
        texts=checked.fingerprint,
    )


def encode_source(
    retriever: Retriever,
    source: TextSource,
    checked: Checked,
    store: VectorStore,
    *,
    share: Share = Share(),
    progress: bool = True,
) -> int:
    """Writes the shards of `share` that are not finished; memory does not grow with the texts.

    Each shard is encoded by itself, so that its bytes do not depend on what was finished before.
    No shard is finished whose texts are not those that were checked.

    Args:
      checked: of the source.

    Returns:
      The number of vectors written.

    Raises:
      UserError: the source has changed since it was checked, or as `VectorStore.write`.
    """
    made, records, written = store.manifest, source.records(), 0
    with tqdm(total=made.count, desc="encode", unit="text", disable=not progress) as bar:
        for shard in range(made.shards):
            part = itertools.islice(records, made.rows(shard))
            if shard % share.count != share.process or store.is_finished(shard):
                bar.update(sum(1 for _ in part))
                continue
            ids: list[str] = []
            texts = _as_checked(source, checked, part, made.numbers(shard), ids)
            if made.role == "passage":
                blocks = retriever.encode_blocks((text.text for text in texts), dim=made.width)
            else:
                blocks = _query_blocks(retriever, list(texts), made.width)
            store.write(shard, _counted(comparable(blocks, retriever.config), bar), ids)
            written += len(ids)
    if next(records, None) is not None:
        raise source.changed(f"it has more than its {made.count:,} texts")
    return written


def comparable(blocks: Iterable[np.ndarray], config: RetrieverConfig) -> Iterator[np.ndarray]:
    """The vectors whose inner products are the model's similarities: scaled to unit length where
    that is the cosine and the model does not scale them."""
    scale = config.similarity == "cosine" and not config.unit_after_cut
    return (unit_vectors(block) if scale else block for block in blocks)


def _as_checked(
    source: TextSource,
    checked: Checked,
    records: Iterator[tuple[str, Any]],
    numbers: range,
    ids: list[str],
) -> Iterator[TextRecord]:
    """The texts of the records with these numbers, whose ids it notes."""
    for number, (where, record) in zip(numbers, records, strict=False):
        text = source.parse(where, record)
        source.check_unchanged(where, text, number, checked)
        ids.append(text.id)
        yield text
    if len(ids) < len(numbers):
        raise source.changed(f"it has fewer than its {checked.count:,} texts")


def _query_blocks(retriever: Retriever, texts: list[TextRecord], width: int) -> Iterator:
    queries, instructions = ([text[n] for text in texts] for n in (1, 2))
    return retriever.encode_blocks(queries, instruction=instructions, dim=width)


def _counted(blocks: Iterator, bar: tqdm) -> Iterator:
    for block in blocks:
        yield block
        bar.update(len(block))
