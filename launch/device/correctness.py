"""Device checks of correctness: losses, models, attention against golden files and float32."""

import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from inf_jax.distributed.mesh import make_mesh
from inf_jax.losses import contrastive_loss
from inf_jax.models.attention import IMPLEMENTATIONS, implementations_for
from inf_jax.models.cudnn_attention import cudnn_attention
from inf_jax.models.encoder import EncoderOptions, make_encoder
from inf_jax.models.transformer import Execution
from inf_jax.models.xla_attention import ScoreOptions, Window, xla_attention
from tests.inf_jax.models import goldens

LOSSES = goldens.GOLDEN.parent / "losses"
PAPER = {  # key in the golden files of the paper's code -> objective
    "uni__no_trick": "uni(P,IQ)",
    "uni__qk_with_neg": "uni(P,I)",
    "uni__same_tower_with_neg": "uni(P,I,IQ,QQ,PP)",
    "multi__no_trick": "multi(P,IQ)",
    "multi__no_trick_with_neg": "multi(P,I,IQ)",
}
SIGLIP = (20.0, -5.0)  # scale and bias
FILES = (
    "losses_B12_D16_N1_div2_tied_seed0",
    "losses_B8_D16_N3_div1_tied_seed0",
    "st_B12_D64_neg2_seed0",
)
# Relative errors (of norms) that are allowed. bfloat16 has 8 bits: 2^-9 a rounding; a loss takes
# these times its scale of 20, and T5's gradients are 0.07 off on a CPU as well.
FLOAT32, BFLOAT16_LOSS, BFLOAT16, BFLOAT16_GRADIENTS = 2e-5, 0.1, 0.03, 0.1


def check_losses(out) -> None:
    """All engines on the golden files, then at a batch of many tiles, against float64."""
    engines = {
        "dense": {},
        "blockwise": {"tile": (8, 8)},
        "ring": {"tile": (8, 8), "mesh": make_mesh()},
        "gather": {"tile": (8, 8), "mesh": make_mesh()},
    }
    files = FILES[2:3] if out.tiny else FILES
    variants = list(itertools.product(engines, (None, "bfloat16")))

    def one(case: tuple[str, str, str | None]) -> None:
        file, engine, dtype = case
        with out.case(f"{file} {engine} {dtype or 'float32'}"):
            how = engines[engine] | {"engine": engine, "tile_dtype": dtype, "mask": "faithful"}
            value, gradient = _golden_loss(np.load(LOSSES / f"{file}.npz"), **how)
            limit = BFLOAT16_LOSS if dtype else FLOAT32
            out(
                f"{file} {engine} {dtype or 'float32'}",
                loss=max(value),
                gradients=max(gradient),
                objectives=len(value),
                ok=max(value) < limit and max(gradient) < limit,
            )

    few = [v for v in variants if v[0] in ("dense", "blockwise") or not (v[1] or out.tiny)]
    _side_by_side(one, [(file, *variant) for file in files for variant in few])
    b, e = (256, 64) if out.tiny else (4096, 1024)
    tile = (64, 128) if out.tiny else (1024, 2048)
    rng = np.random.default_rng(0)
    passages = rng.normal(size=(b, e))
    queries = passages + 1.5 * rng.normal(size=(b, e))
    texts = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, passages)]
    expected = {o: _reference(*texts, o) for o in ("uni(P)", "multi(P,IQ)")}

    def large(case: tuple[str, str, str | None]) -> None:
        objective, engine, dtype = case
        name = f"{objective} {b} x {e} {engine} {dtype or 'float32'}"
        with out.case(name):
            how = engines[engine] | ({} if engine == "dense" else {"tile": tile})
            found = _evaluate(texts, objective, engine=engine, tile_dtype=dtype, **how)
            errors = [relative(a, x) for a, x in zip(found, expected[objective], strict=True)]
            limit = 0.01 if dtype else FLOAT32
            out(name, loss=errors[0], gradients=max(errors[1:]), ok=max(errors) < limit)

    _side_by_side(large, [(o, *v) for o in expected for v in (few[2:3] if out.tiny else variants)])


def _golden_loss(golden, **how) -> tuple[list[float], list[float]]:
    """Relative errors of the losses and of the gradients by all inputs."""
    if "siglip_query" in golden:
        texts = golden["siglip_query"], golden["siglip_doc0"]
        scale, bias = SIGLIP
        found = _evaluate(texts, "sigmoid(P)", scale=scale, bias=bias, **how)
        right = [golden[f"siglip_t20_b-5__{x}"] for x in ("loss", "grad_query", "grad_doc0")]
        errors = [relative(a, x) for a, x in zip(found, right, strict=True)]
        return errors[:1], errors[1:]
    query, negatives = golden["query"], golden["neg_query"]
    texts = query, golden["key"].reshape(len(query), -1, query.shape[1]), negatives[:, 1:]
    values, gradients = [], []
    for name, objective in PAPER.items():
        found = _evaluate(texts, objective, scale=golden["scale"], **how)
        by_query, right = golden[f"{name}__grad_query"], [golden[f"{name}__loss"]]
        if "_neg" in name:  # the first of a row's is its own query again
            by_negatives = golden[f"{name}__grad_neg_query"]
            by_query = by_query + by_negatives[:, 0]
            gradients.append(relative(found[3], by_negatives[:, 1:]))
        right += [by_query, golden[f"{name}__grad_key"].reshape(texts[1].shape)]
        errors = [relative(a, x) for a, x in zip(found, right, strict=False)]
        values.append(errors[0])
        gradients += errors[1:]
    return values, gradients


def _evaluate(texts, objective: str, *, scale=20.0, **how) -> list[np.ndarray]:
    """[loss, gradient by each of the texts], in float32 on the device."""

    def loss(*texts):
        how.setdefault("mask", "faithful")
        return contrastive_loss(*texts, objective=objective, scale=scale, **how)[0]

    texts = [jnp.asarray(x, jnp.float32) for x in texts]
    value, gradients = jax.jit(jax.value_and_grad(loss, tuple(range(len(texts)))))(*texts)
    return [np.asarray(x) for x in (value, *gradients)]


def _reference(queries: np.ndarray, passages: np.ndarray, objective: str) -> list[np.ndarray]:
    """The same of uni(P) or multi(P,IQ) at scale 20, float64, on the host."""
    scores, b, value, slopes = 20 * queries @ passages.T, len(queries), 0.0, 0.0
    for axis in (1,) if objective == "uni(P)" else (1, 0):
        least = scores.max(axis, keepdims=True)
        exponentials = np.exp(scores - least)
        total = exponentials.sum(axis, keepdims=True)
        value += (np.log(total) + least).mean() - np.trace(scores) / b
        slopes = slopes + exponentials / total - np.eye(b)
    slopes = 20 * slopes / b
    return [np.asarray(value), slopes @ passages, slopes.T @ queries]


def check_models(out) -> None:
    """Token states of the golden models, padded on both sides and packed, and gradients."""
    device = jax.local_devices()[0]
    names = ("bert",) if out.tiny else goldens.NAMES
    _side_by_side(functools.partial(_check_model, out, device), names)


def _check_model(out, device: jax.Device, name: str) -> None:
    with out.case(name):
        shape = goldens.shape_of(name)
        rows, real, expected = goldens.all_rows(name)
        width = -rows[0].shape[1] % 8  # no kernel takes odd ones
        rows = tuple(np.pad(x, ((0, 0), (0, width))) for x in rows)
        real, expected = (
            np.pad(x, ((0, 0), (0, width)) + ((0, 0),) * (x.ndim - 2)) for x in (real, expected)
        )
        weight = np.random.default_rng(0).normal(size=expected.shape) * real[..., None]
        encoder = make_encoder(shape)

        def run(dtype: str, names: tuple[str, ...], where: jax.Device, precision: str):
            def scalar(params):
                execution = Execution(dtype=jnp.dtype(dtype), attention=names)
                states = encoder.hidden(params, *rows, execution=execution)
                states = states.astype(jnp.float32)
                return jnp.sum(states * weight.astype(np.float32)), states

            with jax.default_device(where), jax.default_matmul_precision(precision):
                params = jax.device_put(goldens.params_of(name), where)
                (_, states), gradients = jax.jit(jax.value_and_grad(scalar, has_aux=True))(params)
            flat = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(gradients)]
            return np.asarray(states)[real], np.concatenate(flat)

        cpu = jax.local_devices(backend="cpu")[0]
        _, right = run("float32", ("xla",), cpu, "highest")
        limits = {"float32": (FLOAT32, FLOAT32), "bfloat16": (BFLOAT16, BFLOAT16_GRADIENTS)}
        for dtype, limit in limits.items():
            options = EncoderOptions(dtype=dtype, attention="auto", device=device)
            chosen = make_encoder(shape, options).attention_in_training(rows[0].shape[1])
            exact = "highest" if dtype == "float32" else "default"
            states, gradients = run(dtype, implementations_for("auto", device), device, exact)
            errors = relative(states, expected[real]), relative(gradients, right)
            out(
                f"{name} {dtype}",
                states=errors[0],
                largest=float(np.abs(states - expected[real]).max()),
                gradients=errors[1],
                attention=chosen.partition(" (")[0],
                ok=errors[0] < limit[0] and errors[1] < limit[1],
            )


ATTENTION = (  # name, heads, groups, tokens, head width, causal, window
    ("whole", 12, 12, 128, 32, False, Window()),
    ("whole", 12, 12, 512, 64, False, Window()),
    ("whole, 126 tokens", 4, 4, 126, 64, False, Window()),
    ("whole, groups", 12, 2, 256, 128, False, Window()),
    ("causal", 12, 12, 512, 64, True, Window()),
    ("causal, groups", 12, 2, 512, 128, True, Window()),
    ("window 64", 16, 16, 512, 64, False, Window((64,))),
    ("causal, window 100", 8, 4, 512, 128, True, Window((100,))),
    ("either window, 64", 8, 8, 256, 64, False, Window((64, None), jnp.int32(0))),
    ("either window, none", 8, 8, 256, 64, False, Window((64, None), jnp.int32(1))),
)


def check_attention(out) -> None:
    """The device's own kernels and XLA's, in bfloat16, against XLA's in float32: packed rows."""
    own = implementations_for("auto", jax.local_devices()[0])[0]
    if own == "xla":  # the rehearsal
        attend = functools.partial(cudnn_attention, implementation="xla")
    else:
        attend = IMPLEMENTATIONS[own].attend
    cases = ATTENTION[2:3] if out.tiny else ATTENTION
    _side_by_side(functools.partial(_check_attention, out, own, attend), cases)


def _check_attention(out, own: str, attend: Callable, case: tuple) -> None:
    name, heads, groups, tokens, width, causal, window = case
    name = f"{name}: {heads} heads, {groups} groups, {tokens} x {width}"
    with out.case(name):
        operands, where, real = attention_rows(heads, groups, tokens, width)
        scores = ScoreOptions(scale=width**-0.5, causal=causal, window=window)
        weight = np.random.default_rng(9).normal(size=operands[0].shape) * real[:, None, :, None]
        weight = jnp.asarray(weight, jnp.float32)

        def both(function: Callable, operands: Sequence[jax.Array]) -> list[np.ndarray]:
            def scalar(*operands):
                mixed = function(*operands, **where, scores=scores).astype(jnp.float32)
                return jnp.sum(mixed * weight), mixed

            run = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True))
            (_, mixed), gradients = run(*operands)
            values = np.asarray(mixed) * real[:, None, :, None], *gradients
            return [np.asarray(x, np.float64) for x in values]

        with jax.default_matmul_precision("highest"):
            right = both(xla_attention, [x.astype(jnp.float32) for x in operands])
        errors = {}
        for label, function in ((own, attend), ("XLA", xla_attention)):
            pairs = zip(("out", "dq", "dk", "dv"), both(function, operands), right, strict=True)
            errors |= {f"{label} {part}": relative(a, b) for part, a, b in pairs}
        mine = [v for k, v in errors.items() if k.startswith(f"{own} ")]
        theirs = [v for k, v in errors.items() if k.startswith("XLA ")]
        ok = all(a < max(0.02, 3 * b) for a, b in zip(mine, theirs, strict=True))
        out(name, **errors, ok=ok)


def attention_rows(heads: int, groups: int, tokens: int, width: int, rows: int = 3):
    """(q, k, v) in bfloat16, {segments, positions} of packed rows whose ends are empty, and which
    tokens are real."""
    rng = np.random.default_rng(tokens + heads)
    segments, positions = np.zeros((2, rows, tokens), np.int32)
    for row in range(rows):
        start = 0
        for number in range(1, 4):
            end = int(min(start + rng.integers(9, tokens // 2), tokens - 5))
            segments[row, start:end] = number
            positions[row, start:end] = np.arange(end - start)
            start = end
    operands = [
        jnp.asarray(rng.normal(size=(rows, n, tokens, width)), jnp.bfloat16)
        for n in (heads, groups, groups)
    ]
    return operands, {"segments": segments, "positions": positions}, segments > 0


def relative(found, expected) -> float:
    """||found - expected|| / ||expected||; 1 where a number is missing."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    error = np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30)
    return float(error) if np.isfinite(error) else 1.0


def _side_by_side(function: Callable, cases: Sequence) -> None:
    """Compiling takes most of the time, and XLA lets other threads run meanwhile."""
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(function, cases))
