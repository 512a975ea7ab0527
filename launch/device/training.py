"""Device check of speed: training steps of whole models beside sentence-transformers."""

import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inf_jax.config.sections import LossConfig, OptimConfig
from inf_jax.core.batch import Batch, TextIds
from inf_jax.core.packing import pack_chunk, rows_needed, stack_chunks
from inf_jax.losses.objective import parse_objective
from inf_jax.models.config import EncoderConfig
from inf_jax.models.encoder import EncoderOptions, make_encoder
from inf_jax.models.hf.config import config_from_hf
from inf_jax.optim.optimisers import make_optimizer
from inf_jax.planning.chips import peak_flops
from inf_jax.planning.flops import model_flops
from inf_jax.planning.model_shapes import PUBLIC
from inf_jax.planning.roofline import predicted_seconds
from inf_jax.training.forward import EncodingPlan
from inf_jax.training.step import TrainState, make_train_step

from .peers import free, training_peer

SCALE = 20.0
# Deciles of the tokens of the MedQuAD sample's instructed queries and passages, cut at 512.
QUERY_DECILES = (7, 11, 12, 13, 14, 15, 16, 17, 19, 21, 44)
PASSAGE_DECILES = (13, 47, 81, 106, 138, 170, 213, 275, 358, 473, 512)
OBJECTIVE = "multi(P,IQ)"


class Case(NamedTuple):
    """A training step: model of plan_models.json, pairs, lengths "256" or "medquad", whether ours
    scans over the layers, and whether sentence-transformers runs beside it."""

    label: str
    model: str
    pairs: int
    lengths: str
    scan_layers: bool = False
    peer: bool = True


MINILM, BASE, LARGE, QWEN = (
    "sentence-transformers/all-MiniLM-L6-v2",
    "intfloat/e5-base-v2",
    "intfloat/e5-large-v2",
    "Qwen/Qwen2.5-1.5B",
)
CASES = (
    Case("E5-large", LARGE, 64, "256"),
    Case("Qwen2.5-1.5B", QWEN, 16, "256"),
    Case("E5-base", BASE, 128, "256"),
    Case("MiniLM", MINILM, 512, "256"),
    Case("E5-base", BASE, 96, "medquad"),
    Case("MiniLM", MINILM, 256, "medquad"),
    Case("E5-large", LARGE, 64, "256", scan_layers=True, peer=False),
    Case("E5-large", LARGE, 48, "medquad"),
)
TINY = (Case("MiniLM", MINILM, 3, "medquad"),)


def measure_training(out) -> None:
    """Steps of ours and of sentence-transformers in turns, on the same lengths."""
    device = jax.local_devices()[0]
    peak = peak_flops(device.device_kind)
    cases = TINY if out.tiny else CASES
    with ThreadPoolExecutor(5) as pool:
        prepared = [pool.submit(_prepare, case, out.tiny) for case in cases]
    with out.lock(alone=True):  # the pool has ended: nothing disturbs
        with out.case("matrix product"):
            _ceiling(out, device)
        for case, compiled in zip(cases, prepared, strict=True):
            name = f"{case.label}, {case.pairs} pairs, {case.lengths} tokens"
            with out.case(name):
                ours = compiled.result()
                if out.seconds_left() < 20:
                    raise TimeoutError("no time left")
                _turns(out, name, case, ours, peak)
            free()


def _ceiling(out, device: jax.Device) -> None:
    """What a plain product of bfloat16 matrices reaches."""
    n = 256 if out.tiny else 8192
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2))
    seconds = seconds_of(jax.jit(jnp.matmul), a, b, repeats=20)
    versions = {"jax": jax.__version__, "device": device.device_kind}
    out(
        f"matrix product, bfloat16 {n}^3",
        ms=1e3 * seconds,
        tflops=2e-12 * n**3 / seconds,
        **versions,
    )


class Prepared(NamedTuple):
    """Our step, compiled: `start` makes (state, batch)."""

    step: Callable
    start: Callable
    shape: EncoderConfig
    fields: dict
    texts: tuple[list[np.ndarray], list[np.ndarray]]
    facts: dict[str, Any]


def model_shape(model: str, tiny: bool) -> tuple[EncoderConfig, dict]:
    """The config of a model in plan_models.json, without dropout, and its fields."""
    fields = json.loads(PUBLIC.read_text())[model]
    fields |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if fields["model_type"] != "bert":
        fields = {k: v for k, v in fields.items() if not k.endswith("dropout_prob")}
    if tiny:
        fields |= {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 64}
        fields |= {"vocab_size": 2000}
    return config_from_hf(fields), fields


def random_texts(pairs: int, lengths: str, vocab: int, seed: int = 0):
    """(queries, passages), lists of int32 token ids."""
    rng = np.random.default_rng(seed)

    def of(deciles: tuple[int, ...]) -> list[np.ndarray]:
        if lengths == "medquad":
            sizes = np.interp(rng.random(pairs), np.linspace(0, 1, 11), deciles).astype(int)
        else:
            sizes = np.full(pairs, int(lengths))
        return [rng.integers(1000, vocab, n).astype(np.int32) for n in sizes]

    return of(QUERY_DECILES), of(PASSAGE_DECILES)


def _prepare(case: Case, tiny: bool) -> Prepared:
    shape, fields = model_shape(case.model, tiny)
    options = EncoderOptions(
        dtype="bfloat16",
        attention="auto",
        scan_layers=case.scan_layers,
        device=jax.local_devices()[0],
    )
    encoder = make_encoder(shape, options)
    texts = random_texts(case.pairs, case.lengths, shape.vocab_size)
    every = [*texts[0], *texts[1]]
    tokens = 256 if case.lengths == "256" else 512
    sizes = np.array([len(x) for x in every])
    per_row = 1 if case.lengths == "256" else 32
    rows = rows_needed(sizes, tokens, per_row)
    chunk = pack_chunk(
        every,
        np.arange(len(every), dtype=np.uint32),
        rows=rows,
        row_tokens=tokens,
        texts_per_row=per_row,
    )
    packed = stack_chunks([chunk])
    batch = Batch(packed, random_ids(case.pairs), np.ones(case.pairs, bool))
    tx = make_optimizer(OptimConfig(), lambda _: 1e-5)

    def start_state(key: jax.Array) -> TrainState:
        params = {"shared": encoder.init(key)}
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

    loss = LossConfig(objective=OBJECTIVE, scale=SCALE, tile_dtype="bfloat16")
    step = make_train_step(EncodingPlan(encoder.encode), loss, tx)
    key = jax.random.key(0)
    start = jax.jit(start_state).lower(key).compile()
    shapes = jax.eval_shape(start_state, key)
    started = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(shapes, batch).compile()
    facts = {
        "attention": encoder.attention_in_training(tokens).partition(" (")[0],
        "fill": float((packed.segments > 0).mean()),
        "compile s": time.perf_counter() - started,
        "GiB": program_bytes(compiled) / 2**30,
    }
    facts |= _prediction(compiled, jax.local_devices()[0].device_kind)
    return Prepared(
        compiled,
        lambda: (start(jax.random.key(0)), jax.device_put(batch)),
        shape,
        fields,
        texts,
        facts,
    )


def random_ids(pairs: int) -> TextIds:
    """Hashes that are all different."""
    numbers = np.random.default_rng(1).integers(0, 2**32, (3, pairs, 2), dtype=np.uint32)
    return TextIds(*(jnp.asarray(x) for x in numbers))


def program_bytes(compiled) -> int:
    """Memory of a compiled program while it runs, its arguments and results included."""
    m = compiled.memory_analysis()
    sizes = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return sizes - m.alias_size_in_bytes


def _turns(out, name: str, case: Case, ours: Prepared, peak: float | None) -> None:
    sizes = np.array([len(x) for side in ours.texts for x in side], np.float64)
    flops = model_flops(
        ours.shape,
        parse_objective(OBJECTIVE),
        tokens=sizes.sum(),
        squares=(sizes**2).sum(),
        pairs=case.pairs,
    )
    state, batch = ours.start()
    loss = 0.0

    def our_steps(count: int) -> float:
        nonlocal state, loss
        jax.block_until_ready(state)
        started = time.perf_counter()
        for _ in range(count):
            state, metrics = ours.step(state, batch)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - started
        loss = float(metrics["loss"])
        return seconds / count

    contenders = {"inf_jax": our_steps}
    if case.peer:
        contenders["sentence-transformers"] = training_peer(ours.fields, ours.texts, SCALE)
    count, rounds = (1, 1) if out.tiny else (5, 3)
    times: dict[str, list[float]] = {label: [] for label in contenders}
    for label, steps in list(contenders.items()):
        try:
            steps(1 if out.tiny else 3)  # warm-up
        except Exception as error:  # out of memory, for one
            out(f"{name}: {label}", ok=None, error=" ".join(str(error).split())[:200])
            del contenders[label]
    for _ in range(rounds):
        for label, steps in contenders.items():
            times[label].append(steps(count))
    base = min((statistics.median(t) for n, t in times.items() if n != "inf_jax" and t), default=0)
    for label, steps in contenders.items():
        seconds = statistics.median(times[label])
        mine = label == "inf_jax"
        extra = {"attention": "sdpa", "GiB": getattr(steps, "peak_bytes", lambda: 0)() / 2**30}
        out(
            f"{name}: {label}" + (", scan_layers" if case.scan_layers else ""),
            **{
                "ms a step": 1e3 * seconds,
                "least": 1e3 * min(times[label]),
                "pairs/s": case.pairs / seconds,
                "tokens/s": sizes.sum() / seconds,
                "MFU": flops / seconds / peak if peak else None,
                "times faster": base / seconds if mine and base else None,
            },
            **(ours.facts if mine else extra),
            **(_beside_prediction(ours.facts, seconds) if mine else {}),
            loss=loss if mine else steps.loss() * 2,
        )


def _prediction(compiled, device_kind: str) -> dict[str, Any]:
    """What `planning.roofline` says of our step; a program that it cannot read costs no case."""
    try:
        predicted = predicted_seconds(compiled.as_text(), device_kind)
    except Exception as error:
        return {"no prediction": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    return {"predicted ms": 1e3 * predicted.step} if predicted else {}


def _beside_prediction(facts: dict[str, Any], seconds: float) -> dict[str, float]:
    predicted = facts.get("predicted ms")
    return {"measured/predicted": 1e3 * seconds / predicted} if predicted else {}


def seconds_of(run: Callable, *arguments, repeats: int) -> float:
    """Median of three turns of so many calls, after a warm-up."""
    jax.block_until_ready(run(*arguments))
    turns = []
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(repeats):
            found = run(*arguments)
        jax.block_until_ready(found)
        turns.append((time.perf_counter() - started) / repeats)
    return statistics.median(turns)
