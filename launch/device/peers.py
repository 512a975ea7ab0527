"""PyTorch and sentence-transformers, as device_check measures them, with random weights."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import AutoConfig, AutoModel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Backbone(torch.nn.Module):
    """sentence-transformers' Transformer without a tokenizer: features are token ids."""

    def __init__(self, fields: dict):
        super().__init__()
        fields = dict(fields)
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        self.model = AutoModel.from_config(config, attn_implementation="sdpa")
        self.width = config.hidden_size
        self._options = {} if config.model_type == "bert" else {"use_cache": False}

    def forward(self, features: dict, **_) -> dict:
        """Adds token_embeddings."""
        states = self.model(
            input_ids=features["input_ids"],
            attention_mask=features["attention_mask"],
            **self._options,
        )
        return features | {"token_embeddings": states.last_hidden_state}


def make_model(fields: dict) -> SentenceTransformer:
    """Random weights, mean pooling, unit vectors."""
    backbone = Backbone(fields)
    modules = [backbone, Pooling(backbone.width, "mean"), Normalize()]
    return SentenceTransformer(modules=modules, device=DEVICE)


def padded(texts: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """A batch as its collator makes it: as long as its longest text."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"input_ids": _put(ids), "attention_mask": _put(mask)}


def training_peer(fields: dict, texts, scale: float) -> Callable[[int], float]:
    """Steps of sentence-transformers: float32 weights, autocast to bfloat16, fused AdamW, clipping.

    Args:
      texts: (queries, passages), token ids.

    Returns:
      (steps) -> seconds a step; its attributes `loss` and `peak_bytes` tell of the last.
    """
    model = make_model(fields).train()
    loss_fn = MultipleNegativesRankingLoss(
        model,
        scale=scale,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
    features = [padded(side) for side in texts]
    loss = torch.zeros(())

    def steps(count: int) -> float:
        nonlocal loss
        _synchronise(reset=True)
        started = time.perf_counter()
        for _ in range(count):
            with torch.autocast(DEVICE, torch.bfloat16):
                loss = loss_fn([dict(f) for f in features], None)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        _synchronise()
        return (time.perf_counter() - started) / count

    steps.loss = lambda: float(loss.detach())
    steps.peak_bytes = _peak_bytes
    return steps


def loss_peer(texts: Sequence[np.ndarray], objective: str, scale: float, *, repeats: int):
    """Cross-entropy of all scores, products in bfloat16: (seconds, GiB, loss)."""
    queries, passages = (_put(x).requires_grad_() for x in texts)
    labels = torch.arange(len(queries), device=DEVICE)

    def run() -> torch.Tensor:
        queries.grad = passages.grad = None
        with torch.autocast(DEVICE, torch.bfloat16):
            scores = queries @ passages.T * scale
            loss = torch.nn.functional.cross_entropy(scores, labels)
            if objective == "multi(P,IQ)":
                loss = loss + torch.nn.functional.cross_entropy(scores.T, labels)
        loss.backward()
        return loss.detach()

    value = float(run())
    _synchronise(reset=True)
    seconds = _seconds_of(run, repeats=repeats)
    return seconds, _peak_bytes() / 2**30, value


def encoding_peer(
    fields: dict, texts: Sequence[np.ndarray], *, batch: int
) -> Callable[[], np.ndarray]:
    """As SentenceTransformer.encode: longest texts first, batches padded, weights in bfloat16."""
    model = make_model(fields).eval().to(torch.bfloat16)
    order = np.argsort([-len(x) for x in texts], kind="stable")

    @torch.inference_mode()
    def encode() -> np.ndarray:
        parts = [
            model(padded([texts[i] for i in order[a : a + batch]]))["sentence_embedding"].float()
            for a in range(0, len(texts), batch)
        ]
        vectors = np.empty((len(texts), parts[0].shape[1]), np.float32)
        vectors[order] = torch.cat(parts).cpu().numpy()
        return vectors

    return encode


def search_peer(
    queries: np.ndarray, passages: np.ndarray, k: int, dtype: str, *, block: int = 2**17
):
    """() -> (scores, indices) of the k best, block by block as in sentence-transformers'
    semantic_search, but on the device throughout; and its seconds."""
    queries, passages = (_put(x).to(getattr(torch, dtype)) for x in (queries, passages))

    @torch.inference_mode()
    def run() -> tuple[torch.Tensor, torch.Tensor]:
        best = None
        for start in range(0, len(passages), block):
            scores = (queries @ passages[start : start + block].T).float()
            values, places = torch.topk(scores, min(k, scores.shape[1]), dim=1)
            found = values, places + start
            if best is not None:
                found = tuple(torch.cat(pair, 1) for pair in zip(best, found, strict=True))
            values, places = torch.topk(found[0], k, dim=1)
            best = values, torch.gather(found[1], 1, places)
        return best

    found = [x.cpu().numpy() for x in run()]
    return found, _seconds_of(run, repeats=2)


def attention_peer(shape: tuple[int, ...], *, causal: bool, repeats: int) -> float:
    """Seconds of PyTorch's sdpa, forward and gradients, without a mask beyond the causal one."""
    q, k, v = (
        torch.randn(shape, dtype=torch.bfloat16, device=DEVICE, requires_grad=True) for _ in "qkv"
    )
    upstream = torch.randn(shape, dtype=torch.bfloat16, device=DEVICE)

    def run() -> None:
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        torch.autograd.grad(mixed, (q, k, v), upstream)

    run()
    return _seconds_of(run, repeats=repeats)


def _seconds_of(run: Callable, *, repeats: int) -> float:
    """Median of three turns of so many calls."""
    turns = []
    for _ in range(3):
        _synchronise()
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        _synchronise()
        turns.append((time.perf_counter() - started) / repeats)
    return statistics.median(turns)


def _put(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(x)).to(DEVICE)


def _synchronise(*, reset: bool = False) -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()


def _peak_bytes() -> int:
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0


def free() -> None:
    """Gives memory that is not in use back to the device, for jax."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
