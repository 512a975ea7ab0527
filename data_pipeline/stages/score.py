"""The score stage: how hard an example's negatives are for an embedding model.

The hardness of a hard negative is its cosine with the positive instructed query less the positive
passage's: cos(I+Q+, P-) - cos(I+Q+, P+). A difference, because the range of cosines differs from
model to model and the loss depends on differences only. Well below 0 the negative teaches nothing;
well above 0 the model prefers it to the positive: sometimes the model's error, often a passage that
is relevant after all.
"""

import os
from collections.abc import Iterable, Iterator

import numpy as np

from data_pipeline.items import NEGATIVES, Item
from inf_jax.core.errors import UserError
from inf_jax.data.records import pairs

_STAGE = "score"
_DIGITS = 5  # batching changes later digits only
_MAX_WINDOW = 8  # batches; the window includes dropped items, which are not scored


def score_items(
    items: Iterable[Item], *, model: str | os.PathLike, band: tuple[float, float], batch: int
) -> Iterator[Item]:
    """Adds `scores` to items and drops those with a negative outside the band of hardness.

    The scores, cosines or their differences:
      positive                     cos(I+Q+, P+)
      poisoned_instruction         cos(I+Q+, P-1)
      poisoned_query               cos(I+Q+, P-2)
      margin_poisoned_instruction  positive - poisoned_instruction, which is minus the hardness
      margin_poisoned_query        positive - poisoned_query
      own_poisoned_instruction     cos(I-Q+, P-1), the poisoned pair's own
      own_poisoned_query           cos(I+Q-, P-2)
    Those of a missing poison are left out. The reasons are `score:too_easy:<field>` if the hardness
    of the field's passage is below `band[0]`, `score:too_hard:<field>` if it is above `band[1]`.

    Args:
      model: as for `inf_jax.load`: a directory, a hub id, or `package:NAME/SUB`.
      band: lowest and highest hardness allowed, within [-2, 2].
      batch: examples encoded together, which bounds memory.

    Yields:
      All items, in order; dropped ones untouched.

    Raises:
      UserError: an invalid band or batch, a missing model, or an item without example that is not
        dropped.
    """
    if not band[0] < band[1]:
        raise UserError(f"score: the band {band} is empty; give the lower bound first")
    if batch < 1:
        raise UserError(f"score: batch={batch}, must be at least 1")
    retriever = None
    for window, alive in _windows(items, batch):
        if alive:
            if retriever is None:
                retriever = _load(os.fspath(model))  # only if there is something to score
            for item, scores in zip(alive, _cosines(retriever, alive), strict=True):
                item.scores.update(scores)
                item.provenance[_STAGE] = {"model": os.fspath(model)}
                item.drop(_STAGE, *_outside(scores, band))
        yield from window


def _windows(items: Iterable[Item], batch: int) -> Iterator[tuple[list[Item], list[Item]]]:
    """Yields (all items, those not dropped) of windows with up to `batch` of the latter."""
    window, alive = [], []
    for item in items:
        window.append(item)
        if item.alive:
            if item.example is None:
                raise UserError(f"score: item {item.id} has no example; run the stage generate")
            alive.append(item)
        if len(alive) == batch or len(window) == _MAX_WINDOW * batch:
            yield window, alive
            window, alive = [], []
    if window:
        yield window, alive


def _load(model: str):
    import inf_jax  # imports JAX, which other stages do not need

    return inf_jax.load(model)


def _cosines(retriever, items: list[Item]) -> list[dict[str, float]]:
    """The scores of each item, see `score_items`."""
    triples = [pairs(item.example) for item in items]
    # the positive pair stands in for a missing poison
    complete = [pair or triple[0] for triple in triples for pair in triple]
    instructions, queries, passages, *_ = map(list, zip(*complete, strict=True))
    q = _unit(retriever.encode_queries(queries, instructions)).reshape(len(items), 3, -1)
    p = _unit(retriever.encode_passages(passages)).reshape(q.shape)
    scores = []
    for triple, cosines in zip(triples, np.einsum("nqe,npe->nqp", q, p), strict=True):
        values = {"positive": cosines[0, 0]}
        for column, name in enumerate(NEGATIVES, 1):
            if triple[column]:
                values[name] = cosines[0, column]
                values[f"margin_{name}"] = cosines[0, 0] - cosines[0, column]
                values[f"own_{name}"] = cosines[column, column]
        scores.append({name: round(float(value), _DIGITS) for name, value in values.items()})
    return scores


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _outside(scores: dict[str, float], band: tuple[float, float]) -> Iterator[str]:
    for name, field in NEGATIVES.items():
        if name in scores:
            hardness = -scores[f"margin_{name}"]
            if hardness < band[0]:
                yield f"too_easy:{field}"
            elif hardness > band[1]:
                yield f"too_hard:{field}"
