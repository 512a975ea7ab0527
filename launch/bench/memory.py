"""Measures that host memory is flat in the number of passages encoded and of queries evaluated.

    python launch/bench.py memory [--passages 10000 1000000] [--queries 1000 50000] [--write]

Each number has a process of its own, with a BERT of 2 layers and width 32 and random weights. Texts
come from generators. Passages of 60 words are encoded into one float32 array, which counts. A query
has an instruction and three passages of 5000, two of them poisons; it is searched with and without
its instruction, for the 1000 best of all passages.
"""

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from inf_jax.core.cli_flags import FlagParser, at_least

from .process import Worker, peak_memory, serve
from .report import publish, table

HELP = "host memory of encoding and evaluation, by the number of passages and queries"
TAKES_CONFIG = False
_WORDS = [f"w{n}" for n in range(4000)]


def add_arguments(parser: FlagParser) -> None:
    """Flags of `bench.py memory`."""
    add, number = parser.add, at_least(1)
    add("--passages", "to encode", many=True, of=number, default=[10_000, 1_000_000], metavar="N")
    add("--queries", "to evaluate", many=True, of=number, default=[1000, 50_000], metavar="N")
    add("--threads", "CPU cores to use", of=number, default=2, metavar="N")
    parser.add_boolean("--write", "append the result to launch/benchmarks.md")
    add("--worker", None, choices=tuple(WORKERS))


def main(args: argparse.Namespace) -> None:
    """Runs the benchmark, or with --worker one of its processes."""
    if args.worker:
        serve(WORKERS[args.worker], threads=args.threads)
        return
    rows = []
    for kind, counts in (("passages", args.passages), ("queries", args.queries)):
        first = None
        for count in counts:
            worker = Worker(
                ["memory", f"--threads={args.threads}", f"--worker={kind}"], threads=args.threads
            )
            try:
                found = worker.ask(count)
                worker.close()
            finally:
                worker.kill()
            peak = found["peak"] / 2**20
            first = peak if first is None else first
            rows.append(
                (
                    f"{count:,} {kind}",
                    f"{found['seconds']:.1f}",
                    f"{count / found['seconds']:,.0f}",
                    f"{peak:,.0f}",
                    f"{peak - first:+,.0f}",
                )
            )
            print(" | ".join(rows[-1]), flush=True)
    header = ("", "seconds", "per second", "peak memory, MiB", "beyond the first, MiB")
    publish("memory", table(header, rows), threads=args.threads, write=args.write)


def passages_worker() -> Callable[[int], dict]:
    """Encodes that many passages."""
    retriever = _tiny_retriever()

    def answer(count: int) -> dict:
        texts, started = _texts(random.Random(0)), time.perf_counter()
        vectors = retriever.encode_passages(next(texts) for _ in range(count))
        seconds = time.perf_counter() - started
        assert vectors.shape == (count, retriever.embedding_size)
        return {"seconds": seconds, "peak": peak_memory()}

    return answer


def queries_worker() -> Callable[[int], dict]:
    """Evaluates that many queries."""
    from inf_jax.data.records import Example
    from inf_jax.evaluation.scores import METRICS, score_task
    from inf_jax.evaluation.task import task_from_examples

    retriever = _tiny_retriever()

    def examples(count: int) -> Iterator[Example]:
        passages = list(itertools.islice(_texts(random.Random(0)), 5000))
        for n in range(count):
            texts = (passages[(3 * n + i) % len(passages)] for i in range(3))
            yield Example(
                id=str(n),
                query_positive=f"what is w{n}",
                instruction_positive="w1 alone",
                document_positive=next(texts),
                instruction_negative="w2 alone",
                hard_negative_document_1=next(texts),
                query_negative=f"what is w{(n + 1) % count}",
                hard_negative_document_2=next(texts),
            )

    def answer(count: int) -> dict:
        started = time.perf_counter()
        task = task_from_examples(examples(count))
        queries, instructions = zip(*task.searches.values(), strict=True)
        vectors = (
            retriever.encode_queries(queries, instructions),
            retriever.encode_passages(task.corpus.values()),
        )
        scores = score_task(task, *vectors, top_k=1000, mesh=retriever.mesh)
        assert list(scores) == list(METRICS) and len(task.queries) == count
        return {"seconds": time.perf_counter() - started, "peak": peak_memory()}

    return answer


WORKERS = {"passages": passages_worker, "queries": queries_worker}


def _texts(rng: random.Random) -> Iterator[str]:
    """Passages of 60 words."""
    while True:
        yield " ".join(rng.choices(_WORDS, k=60))


def _tiny_retriever():
    """A Retriever of a random BERT."""
    import jax
    from tokenizers import BertWordPieceTokenizer

    import inf_jax
    from inf_jax.models import hf
    from inf_jax.models.encoder import make_encoder
    from inf_jax.models.hf.config import config_from_hf

    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "alone", *_WORDS]
    fields = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": len(vocab),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tokenizer = BertWordPieceTokenizer({word: n for n, word in enumerate(vocab)})
        tokenizer.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 128})
        )
        (directory / "config.json").write_text(json.dumps(fields))
        shape = config_from_hf(fields)
        hf.save_weights(make_encoder(shape).init(jax.random.key(0)), directory, shape)
        return inf_jax.load(directory)
