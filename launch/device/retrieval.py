"""Device checks of speed: encoding, exact search, attention."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from inf_jax.evaluation.search import topk
from inf_jax.models.attention import IMPLEMENTATIONS, implementations_for
from inf_jax.models.encoder import EncoderOptions, make_encoder
from inf_jax.models.xla_attention import ScoreOptions
from inf_jax.retriever.encode import Grid, encode_texts

from .correctness import attention_rows
from .peers import attention_peer, encoding_peer, search_peer
from .training import BASE, model_shape, random_texts, seconds_of


def measure_retrieval(out) -> None:
    """Passages of MedQuAD's lengths through E5-base's shape; then exact search."""
    with out.case("encode"):
        _encode(out)
    sizes = (1000, 16, 32, 5) if out.tiny else (1_000_000, 768, 1024, 100)
    passages, width, queries, k = sizes
    rng = np.random.default_rng(0)
    texts = [rng.standard_normal((n, width), np.float32) for n in (queries, passages)]
    for dtype in ("bfloat16", "float32"):
        with out.case(f"search {dtype}"):
            _search(out, dtype, *texts, k)


def _encode(out) -> None:
    count = 40 if out.tiny else 16384
    shape, fields = model_shape(BASE, out.tiny)
    _, texts = random_texts(count, "medquad", shape.vocab_size)
    tokens = sum(map(len, texts))
    options = EncoderOptions(dtype="bfloat16", attention="auto", device=jax.local_devices()[0])
    encoder = make_encoder(shape, options)
    params = jax.jit(encoder.init)(jax.random.key(0))
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    rows = Grid(rows=2 if out.tiny else 128, row_tokens=512, texts_per_row=32)
    turns: dict[str, list[float]] = {}

    def turn(label: str, run) -> None:
        started = time.perf_counter()
        run()
        turns.setdefault(label, []).append(time.perf_counter() - started)

    contenders = {
        "inf_jax": functools.partial(encode_texts, encoder.encode, params, texts, grid=rows),
        "sentence-transformers, batch 256": encoding_peer(fields, texts, batch=256),
    }
    for run in contenders.values():
        run()
    for _ in range(1 if out.tiny else 2):
        for label, run in contenders.items():
            turn(label, run)
    for label, seconds in turns.items():
        best = min(seconds)
        figures = {"s": best, "passages/s": count / best, "tokens/s": tokens / best}
        out(f"E5-base, {count} passages: {label}", **figures)


def _search(out, dtype: str, q: np.ndarray, p: np.ndarray, k: int) -> None:
    kind, sizes = jnp.dtype(dtype), f"{len(q)} queries in {len(p)} x {p.shape[1]}, top {k}"
    on_device = jnp.asarray(q, kind), jnp.asarray(p, kind)
    (right, places), theirs = search_peer(q, p, k, dtype)
    for block in (64,) if out.tiny else (8192, 65536):
        found = functools.partial(topk, k=k, block=block)
        seconds = seconds_of(found, *on_device, repeats=1)
        scores, indices = (np.asarray(x) for x in found(*on_device))
        same = np.mean([len(set(a) & set(b)) / k for a, b in zip(indices, places, strict=True)])
        error = float(np.abs(scores - right).max() / np.abs(right).max())
        out(
            f"search {dtype}, {sizes}: inf_jax, blocks of {block}",
            ms=1e3 * seconds,
            **{"queries/s": len(q) / seconds, "same passages": float(same), "error": error},
            ok=bool(same > 0.999 if dtype == "float32" else same > 0.9),
        )
    figures = {"ms": 1e3 * theirs, "queries/s": len(q) / theirs}
    out(f"search {dtype}, {sizes}: PyTorch", **figures)


def measure_attention(out) -> None:
    """The device's own kernel and XLA's on packed rows, beside PyTorch's sdpa without segments."""
    own = implementations_for("auto", jax.local_devices()[0])[0]
    names = dict.fromkeys((own, "xla"))
    sizes = (
        ((2, 4, 64, 16),)
        if out.tiny
        else ((256, 16, 256, 64), (64, 16, 512, 64), (16, 12, 2048, 128))
    )
    for rows, heads, tokens, width in sizes:
        operands, where, _ = attention_rows(heads, heads, tokens, width, rows=rows)
        where = {n: jnp.asarray(x) for n, x in where.items()}
        for causal in (False, True):
            name = f"{rows} rows, {heads} heads, {tokens} x {width}" + (
                ", causal" if causal else ""
            )
            pairs = 4 * rows * heads * width * tokens**2 * 3.5 / (2 if causal else 1)
            for by in names:
                if out.seconds_left() < 10:
                    return
                with out.case(f"{name}: {by}"):
                    scores = ScoreOptions(scale=width**-0.5, causal=causal)

                    def scalar(q, k, v, where, by=by, scores=scores):
                        mixed = IMPLEMENTATIONS[by].attend(q, k, v, **where, scores=scores)
                        return jnp.sum(mixed.astype(jnp.float32) ** 2)

                    run = jax.jit(jax.grad(scalar, (0, 1, 2)))
                    seconds = seconds_of(run, *operands, where, repeats=5)
                    out(f"{name}: {by}", ms=1e3 * seconds, tflops=1e-12 * pairs / seconds)
            with out.case(f"{name}: PyTorch sdpa, one segment"):
                seconds = attention_peer((rows, heads, tokens, width), causal=causal, repeats=5)
                figures = {"ms": 1e3 * seconds, "tflops": 1e-12 * pairs / seconds}
                out(f"{name}: PyTorch sdpa, one segment", **figures)
