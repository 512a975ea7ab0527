"""The contenders of `bench.py loss`: each computes the loss and its gradients for given vectors.

They run in worker processes. A worker answers: "prepare" makes inputs and compiles, "step"
evaluates once, "forget" drops everything prepared, "facts" describes packages and free memory.
"""

import argparse
import gc
import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .process import peak_memory, reset_peak_memory

SCALE = 20.0
# A contender's name up to the dash is its worker's.
LABELS = {
    "torch": "PyTorch, dense",
    "cached-64": "sentence-transformers, cached, 64",
    "cached-256": "sentence-transformers, cached, 256",
    "cached-1024": "sentence-transformers, cached, 1024",
    "one-dense": "inf_jax dense",
    "one-blockwise": "inf_jax blockwise",
    "mesh-ring": "inf_jax ring, 8 devices",
    "mesh-gather": "inf_jax gather, 8 devices",
}
DEVICES = 8  # of the mesh on a CPU; on GPUs the mesh has all devices
OBJECTIVES = ("multi(P,IQ)", "uni(P)")  # those that all contenders can compute
# float32[batch, batch] matrices that a dense contender holds at once, as measured.
MATRICES = {
    "torch": {"multi(P,IQ)": 5, "uni(P)": 4},
    "one-dense": {"multi(P,IQ)": 4, "uni(P)": 2},
}


class Prepared(NamedTuple):
    """A contender that is ready to run.

    Attributes:
      run: evaluates once; the computation is finished when it returns.
      figures: turns the result of `run` into the loss and sums over the gradients, by which the
        contenders are compared.
      peak: peak bytes of the last `run` if the platform tells; None to take the process's.
    """

    run: Callable[[], Any]
    figures: Callable[[Any], dict[str, float]]
    peak: Callable[[], int] | None = None


def inputs(batch: int, dim: int):
    """Queries and passages, float32[batch, dim] unit vectors; each query is near its passage."""
    import numpy as np

    rng = np.random.default_rng(batch)
    passages = rng.standard_normal((batch, dim), np.float32)
    queries = rng.standard_normal((batch, dim), np.float32)
    queries += passages
    for x in (queries, passages):
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    return queries, passages


def _figures(loss: float, gradients, vectors) -> dict[str, float]:
    """The loss, and norms and dot products of the gradients; none of them is near 0."""
    import numpy as np

    def dot(a, b) -> float:
        return float(np.einsum("ij,ij->i", a, b).sum(dtype=np.float64))

    (query, passage), (queries, passages) = gradients, vectors
    return {
        "loss": float(loss),
        "norm of the queries' gradient": dot(query, query) ** 0.5,
        "norm of the passages' gradient": dot(passage, passage) ** 0.5,
        "queries' gradient times passages": dot(query, passages),
        "passages' gradient times queries": dot(passage, queries),
    }


def worker(args: argparse.Namespace) -> Callable[[dict], Any]:
    """The answering function of a worker, for `process.serve`."""
    make = (torch_cells if args.worker in ("torch", "cached") else jax_cells)(args)
    prepared: dict[str, Prepared] = {}

    def answer(question: dict) -> Any:
        name = question.get("contender")
        if question["do"] == "facts":
            return _facts(args)
        if question["do"] == "forget":
            prepared.clear()
            gc.collect()
            return None
        if question["do"] == "prepare":
            prepared[name] = make(name, question["objective"], question["batch"])
            return None
        contender = prepared[name]
        before = reset_peak_memory() if question["memory"] else 0
        started = time.perf_counter()
        result = contender.run()
        seconds = time.perf_counter() - started
        peak = contender.peak() if contender.peak else peak_memory() - before
        return {"seconds": seconds, "peak": peak, "figures": contender.figures(result)}

    return answer


def _facts(args: argparse.Namespace) -> dict[str, Any]:
    """`versions` of the packages and `free` memory in bytes (of the GPU, where it counts)."""
    theirs = args.worker in ("torch", "cached")
    names = ("torch", "sentence-transformers") if theirs else ("jax",)
    facts = {name: importlib.metadata.version(name) for name in names}
    if args.platform == "gpu" and args.worker == "one":
        import jax

        device = jax.devices()[0]
        free, facts["device"] = device.memory_stats()["bytes_limit"], device.device_kind
    else:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        free = int(available.split()[1]) * 1024 - 2 * 2**30  # leaves some for other processes
    return {"versions": facts, "free": free}


def jax_cells(args: argparse.Namespace) -> Callable[[str, str, int], Prepared]:
    """Makes contenders of inf_jax; the part of the name after the dash is the engine."""
    import jax
    import numpy as np

    from inf_jax.distributed.mesh import batch_sharding, compiler_options, make_mesh
    from inf_jax.losses import contrastive_loss

    def make(name: str, objective: str, batch: int) -> Prepared:
        kind, engine = name.split("-")
        mesh = make_mesh() if kind == "mesh" else make_mesh(devices=jax.devices()[:1])
        vectors = inputs(batch, args.dim)
        arrays = [jax.device_put(x, batch_sharding(mesh)) for x in vectors]

        def loss(queries, passages):
            return contrastive_loss(
                queries,
                passages,
                objective=objective,
                scale=SCALE,
                mask="faithful",
                engine=engine,
                mesh=mesh if kind == "mesh" else None,
            )[0]

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arrays)
        step = step.compile(compiler_options(mesh))

        def figures(result) -> dict[str, float]:
            return _figures(result[0], [np.asarray(x) for x in result[1]], vectors)

        def on_gpu() -> int:  # the allocator reserves most of the memory at once: ask the compiler
            memory = step.memory_analysis()
            return memory.temp_size_in_bytes + memory.output_size_in_bytes

        peak = on_gpu if args.platform == "gpu" else None
        return Prepared(lambda: jax.block_until_ready(step(*arrays)), figures, peak)

    return make


def torch_cells(args: argparse.Namespace) -> Callable[[str, str, int], Prepared]:
    """Makes contenders: dense InfoNCE in PyTorch, the cached loss of sentence-transformers.

    The latter is the second stage of its CachedMultipleNegativesRankingLoss (calculate_loss with
    gradients): mini-batches of rows, each against all columns. It takes the mean over the two
    directions where multi takes the sum.
    """
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(args.threads)
    device = torch.device("cpu")
    if args.platform == "gpu":
        if not torch.cuda.is_available():
            raise SystemExit(
                "error: --platform=gpu needs PyTorch with CUDA; the installed one is for CPUs"
            )
        device = torch.device("cuda")

    def leaves(x, size: int) -> list[torch.Tensor]:
        return [
            part.clone().requires_grad_() for part in torch.from_numpy(x).to(device).split(size)
        ]

    def dense(objective: str):
        def loss(queries, passages):
            scores = (SCALE * queries[0]) @ passages[0].T
            target = torch.arange(len(scores), device=device)
            value = cross_entropy(scores, target)
            if objective == "multi(P,IQ)":
                value = value + cross_entropy(scores.T, target)
            value.backward()
            return value

        return loss

    def cached(objective: str, size: int):
        from sentence_transformers.sentence_transformer.losses import (
            CachedMultipleNegativesRankingLoss,
        )
        from sentence_transformers.util import dot_score

        both = objective == "multi(P,IQ)"
        module = CachedMultipleNegativesRankingLoss(
            torch.nn.Sequential(torch.nn.Identity()),  # the encoder is not used
            scale=SCALE,
            similarity_fct=dot_score,
            mini_batch_size=size,
            directions=("query_to_doc", "doc_to_query") if both else ("query_to_doc",),
            partition_mode="per_direction",
        )

        def loss(queries, passages):
            return module.calculate_loss([queries, passages], with_backward=True)

        return loss, (2 if both else 1)

    def make(name: str, objective: str, batch: int) -> Prepared:
        kind, _, size = name.partition("-")
        loss, factor = (dense(objective), 1) if kind == "torch" else cached(objective, int(size))
        vectors = inputs(batch, args.dim)
        queries, passages = (leaves(x, int(size or batch)) for x in vectors)
        at_rest = 0

        def run():
            nonlocal at_rest
            for x in (*queries, *passages):
                x.grad = None
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                at_rest = torch.cuda.memory_allocated()
            value = loss(queries, passages)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return value

        def figures(value) -> dict[str, float]:
            gradients = []
            for parts in (queries, passages):
                gradients.append(factor * torch.cat([x.grad for x in parts]).cpu().numpy())
                for x in parts:
                    x.grad = None
            return _figures(factor * value.item(), gradients, vectors)

        def on_gpu() -> int:
            return torch.cuda.max_memory_allocated() - at_rest

        return Prepared(run, figures, on_gpu if device.type == "cuda" else None)

    return make
