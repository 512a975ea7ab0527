"""Device check of speed: the loss and its gradients beside dense PyTorch."""

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inf_jax.core.batch import TextIds
from inf_jax.losses import contrastive_loss
from inf_jax.losses.objective import parse_objective
from inf_jax.planning.chips import peak_flops
from inf_jax.planning.flops import loss_flops

from .peers import free, loss_peer
from .training import OBJECTIVE, SCALE, program_bytes, random_ids, seconds_of

PAIRS = (16384, 65536, 262144)


class LossCase(NamedTuple):
    """A loss of `pairs` rows: objective and mask."""

    pairs: int
    objective: str = OBJECTIVE
    mask: str = "identity"

    def __str__(self) -> str:
        return f"{self.objective}, {self.pairs} pairs, {self.mask}"


def measure_loss(out) -> None:
    """Loss and gradients of bfloat16 tiles, beside dense PyTorch."""
    width, (first, middle, last) = (32, (128, 256, 320)) if out.tiny else (1024, PAIRS)
    cases = [LossCase(b, o) for b in (first, middle) for o in (OBJECTIVE, "uni(P)")]
    peers = list(cases)
    cases += [LossCase(last), LossCase(middle, mask="faithful")]
    with ThreadPoolExecutor(8) as pool:
        prepared = [pool.submit(_compiled_loss, case, width) for case in cases]
    for case, program in zip(cases, prepared, strict=True):
        name = f"{case} x {width}"
        with out.case(name):
            if out.seconds_left() < 15:
                raise TimeoutError("no time left")
            texts = _vectors(case.pairs, width)
            repeats = max(1, 10 * first // case.pairs)
            run = functools.partial(program.result(), *texts, random_ids(case.pairs))
            seconds = seconds_of(run, repeats=repeats)
            memory = program_bytes(program.result()) / 2**30
            _loss_line(out, f"{name}: inf_jax", case, width, seconds, memory, float(run()[0]))
            if case in peers:
                texts = [np.asarray(x) for x in texts]
                found = loss_peer(texts, case.objective, SCALE, repeats=repeats)
                _loss_line(out, f"{name}: PyTorch, dense", case, width, *found)
        free()


def _loss_line(out, name: str, case: LossCase, width: int, seconds, memory, loss) -> None:
    peak = peak_flops(jax.local_devices()[0].device_kind)
    objective = parse_objective(case.objective)
    flops = 3 * loss_flops(objective, pairs=case.pairs, width=width, candidates=0)
    share = flops / seconds / peak if peak else None
    out(name, ms=1e3 * seconds, **{"share of peak": share, "GiB": memory, "loss": loss})


def _compiled_loss(case: LossCase, width: int):
    def loss(queries, passages, ids):
        return contrastive_loss(
            queries,
            passages,
            objective=case.objective,
            scale=SCALE,
            ids=ids,
            mask=case.mask,
            engine="blockwise",
            tile_dtype="bfloat16",
        )[0]

    side = jax.ShapeDtypeStruct((case.pairs, width), jnp.float32)
    ids = TextIds(*[jax.ShapeDtypeStruct((case.pairs, 2), jnp.uint32)] * 3)
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(side, side, ids).compile()


@functools.cache
def _vectors(b: int, e: int) -> tuple[jax.Array, jax.Array]:
    """Queries near their passages, float32 unit vectors, made on the device."""
    passages, noise = (jax.random.normal(jax.random.key(i), (b, e)) for i in range(2))
    queries = passages + 1.5 * noise
    return tuple(x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (queries, passages))
