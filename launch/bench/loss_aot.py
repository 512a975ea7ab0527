"""`bench.py loss --aot`: memory of the loss per TPU chip, by ahead-of-time compilation.

libtpu's compiler stands in for the chip: `memory_analysis()` says what the program takes there, and
its text is the schedule. Nothing is run, so the only seconds are those of the compiler.
"""

import argparse
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from inf_jax.core.cli_flags import FlagParser

from .loss_figure import save
from .process import Worker, serve
from .report import publish, table

BATCHES = (2**18, 2**20, 2**22)
DIM = 1024
TOPOLOGIES = ("v5e:16x16", "v5p:8x8x16")
OBJECTIVE = "multi(P,IQ)"
SCALE = 20.0
# (engine, variant); "trained" adds identity masks, empty slots and metrics, as in training
PROGRAMS = (("ring", "plain"), ("ring", "trained"), ("gather", "plain"), ("dense", "plain"))

# Without these libtpu looks for the TPU machine it believes to be on, and logs at length.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_PLATFORMS": "cpu",
}


def add_arguments(parser: FlagParser) -> None:
    """Flags of `bench.py loss --aot`."""
    parser.add_boolean("--aot", "memory per TPU chip instead; needs the extra aot")
    text = f"with --aot (default: {' '.join(TOPOLOGIES)})"
    parser.add("--topologies", text, many=True, default=[*TOPOLOGIES], metavar="NAME")


def main(args: argparse.Namespace) -> None:
    """Compiles all programs in one worker and prints the table."""
    args.dim = args.dim or DIM
    if args.worker:
        serve(lambda: compiler(args), threads=args.threads)
        return
    options = ["loss", "--aot", f"--dim={args.dim}", f"--threads={args.threads}", "--worker=aot"]
    worker = Worker(options, threads=args.threads, environment=ENVIRONMENT)
    try:
        versions = worker.ask(None)
        cells = []
        for topology in args.topologies:
            for batch in args.batches or BATCHES:
                for engine, variant in PROGRAMS:
                    cell = {"topology": topology, "batch": batch}
                    cell |= {"engine": engine, "variant": variant}
                    cell |= worker.ask(cell)
                    cells.append(cell)
                    print(*_row(cell), sep="; ", flush=True)
        worker.close()
    finally:
        worker.kill()
    text = summary(cells, dim=args.dim, versions=versions)
    if args.write:
        text += "\n\n" + save("aot", cells)
    publish("loss, compiled for TPUs", text, threads=args.threads, write=args.write)


def compiler(args: argparse.Namespace) -> Callable[[dict | None], Any]:
    """The worker: answers None with the versions, and a program with its measurements."""
    import importlib.metadata

    try:
        libtpu = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(
            "error: --aot needs libtpu (484 MB), which is not installed: pip install -e '.[aot]'"
        ) from None
    import jax

    from inf_jax.planning.chips import CHIPS
    from inf_jax.planning.hlo import collectives
    from inf_jax.planning.hlo_cost import instruction_costs
    from inf_jax.planning.roofline import Layout, predict
    from inf_jax.planning.topology import parse_topology

    def answer(program: dict | None) -> Any:
        if program is None:
            return f"jax {jax.__version__}, libtpu {libtpu}"
        traced, flops = _trace(program, dim=args.dim)
        started = time.perf_counter()
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            return {
                "flops": flops,
                "seconds": time.perf_counter() - started,
                **demanded(str(error)),
            }
        memory = compiled.memory_analysis()
        at_rest = memory.argument_size_in_bytes + memory.output_size_in_bytes
        kinds: dict[str, list[int]] = {}
        text = compiled.as_text()
        found, costs = collectives(text), instruction_costs(text)
        chip, shape = parse_topology(program["topology"])
        predicted = predict(costs, found, CHIPS[chip], Layout(shape))
        cycles = sum(cost.times * cost.cycles for cost in costs)
        for c in found:
            sums = kinds.setdefault(c.kind, [0, 0, 0, 0])
            moved = c.times * c.size
            for i, n in enumerate((1, c.times, moved, moved * c.overlapped)):
                sums[i] += n
        return {
            "seconds": time.perf_counter() - started,
            "flops": flops,
            "demand": max(memory.temp_size_in_bytes, memory.peak_memory_in_bytes - at_rest),
            "temp": memory.temp_size_in_bytes,
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "peak": memory.peak_memory_in_bytes,
            "collectives": kinds,
            "at_peak": predicted.compute,
            "cycles": cycles / CHIPS[chip].clock if CHIPS[chip].clock else None,
            "exposed": predicted.exposed,
        }

    return answer


def _trace(program: dict, *, dim: int):
    """The traced loss with gradients, and the FLOPs per chip of its matrix products."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from inf_jax.core.batch import TextIds
    from inf_jax.distributed.mesh import batch_sharding, make_mesh
    from inf_jax.losses.contrastive import TILES, contrastive_loss
    from inf_jax.planning.flops import product_flops

    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=program["topology"]
    ).devices
    mesh = make_mesh(devices=devices)
    rows, trained = batch_sharding(mesh), program["variant"] == "trained"

    def array(*shape: int, dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((program["batch"], *shape), dtype, sharding=rows)

    def loss(queries, passages, more):
        value, metrics = contrastive_loss(
            queries,
            passages,
            objective=OBJECTIVE,
            scale=SCALE,
            mask="identity" if trained else "faithful",
            engine=program["engine"],
            mesh=None if program["engine"] == "dense" else mesh,
            tile=TILES["tpu"],
            **more,
        )
        return value, metrics if trained else None

    more = {}
    if trained:
        hashes = TextIds(*(array(2, dtype=jnp.uint32) for _ in TextIds._fields))
        more = {"ids": hashes, "valid": array(dtype=jnp.bool_)}
    vectors = array(dim, dtype=jnp.bfloat16)
    step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    traced = jax.jit(step, out_shardings=((None, None), (rows, rows))).trace(vectors, vectors, more)
    return traced, product_flops(traced.jaxpr.jaxpr, devices=mesh.size)


def demanded(message: str) -> dict[str, Any]:
    """`demand` and `limit` in bytes of a program that does not fit, from the compiler's message.

    Raises:
      SystemExit: the message is about something else than memory.
    """
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    sizes = [float(n) * units[u] for n, u in re.findall(r"\b([\d.]+)([KMGT])\b", message)]
    if "RESOURCE_EXHAUSTED" not in message or len(sizes) < 2:
        raise SystemExit(f"error: the compiler failed: {message[:2000]}")
    return {"demand": sizes[0], "limit": sizes[1]}


def summary(cells: Sequence[dict[str, Any]], *, dim: int, versions: str) -> str:
    """The Markdown report.

    Args:
      cells: one per program: its topology, batch, engine and variant with what `compiler` answers.
      dim: embedding width.
      versions: of jax and libtpu, for the text.
    """
    header = (
        "chips",
        "batch",
        "engine",
        "temp MiB",
        "in + out MiB",
        "peak MiB",
        "product TFLOP",
        "s at peak",
        "s, compiler's cycles",
        "s of collectives not overlapped",
        "collectives (executions; MiB; share of bytes overlapped)",
        "compilation, s",
    )
    return (
        f"{OBJECTIVE}, loss and gradients, bf16[batch, {dim}] embeddings; {versions}. All figures "
        "are per chip and come from the compiler for that chip; nothing was run. temp is HBM "
        "besides inputs and outputs; peak is the most at any time by the compiler's count, "
        'including what it keeps on the chip. "needs" is the demand with which the compiler '
        'refuses a program, against the available memory. "trained" has identity masks, empty '
        "slots and the metrics, as in training. FLOPs are of the matrix products of the traced "
        "program, loops included, and take the seconds at peak; the compiler's cycles are of all "
        "instructions at the chip's clock, but for waiting for collectives. Overlapped: the share "
        "of the bytes that move while the chip "
        "computes a product, or works on a larger array; it waits for the others.\n\n"
        + table(header, [*map(_row, cells)])
    )


def _row(cell: dict[str, Any]) -> tuple[str, ...]:
    def mib(key: str) -> str:
        return f"{cell[key] / 2**20:,.1f}"

    name = cell["engine"] + ("" if cell["variant"] == "plain" else f", {cell['variant']}")
    if "temp" in cell:
        sizes = (mib("temp"), f"{(cell['arguments'] + cell['outputs']) / 2**20:,.1f}", mib("peak"))
        times = tuple(
            f"{cell[key]:.4f}" if cell[key] is not None else ""
            for key in ("at_peak", "cycles", "exposed")
        )
        moved = ", ".join(
            f"{n} {kind} ({runs:,}; {size / 2**20:,.1f}; {beside / max(size, 1):.0%})"
            for kind, (n, runs, size, beside) in sorted(cell["collectives"].items())
        )
    else:
        times = ("", "", "")
        sizes = (f"needs {mib('demand')} of {mib('limit')}", "", "")
        moved = ""
    return (
        cell["topology"],
        f"{cell['batch']:,}",
        name,
        *sizes,
        f"{cell['flops'] / 1e12:.2f}",
        *times,
        moved,
        f"{cell['seconds']:.0f}",
    )
