"""Checks that an export reproduces the trained model's embeddings in each library.

Each loader opens the directory from its files alone and embeds the same texts; cosine and norm are
compared with those of the parameters in memory.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.hf_export.parity_loaders import INSTRUCTED_FILE, LOADERS, Probe, embed_adapted
from inf_jax.retriever.loading import load
from inf_jax.retriever.retriever import Retriever
from inf_jax.retriever.settings import RetrieverConfig
from inf_jax.text.templates import TextConfig, instructed_query, passage_text

NORM_TOLERANCE = 1e-3  # relative; cosines alone do not show a missing normalisation
UNCUT = 1 << 20  # tokens

_LONG = "the passage goes on and on, with one more clause about causes, signs and care, "
PARITY_QUERIES = (
    ("glaucoma", "What are the treatments for it?"),
    ("glaucoma", "What causes it?"),  # as a poisoned instruction
    ("cataract", "What are the treatments for it?"),  # as a poisoned query
    ("glaucoma", ""),
    ("", "Explain it to a child."),
    ("Sjögren’s syndrome – naïve café", "¿Cómo se trata? 何ですか 🙂"),
    ("a", "b"),
    (_LONG * 10, "Exclude anything about treatment."),
)
PARITY_PASSAGES = (
    "Eye drops that lower the pressure in the eye are the first treatment.",
    "The pressure rises when fluid cannot drain from the front of the eye.",
    "A surgeon takes the clouded lens out and puts an artificial one in.",
    "",
    ".",
    "CAPITALS, digits 12345.678 and\ttabs\nnew lines   and spaces",
    "Ünïcödé ß ﬁ 中文字 русский العربية 🙂👩‍🔬 \u200b x\u0301",
    "antidisestablishmentarianism" * 6,
    _LONG * 3,
    _LONG * 60,
)


@dataclasses.dataclass(frozen=True)
class Parity:
    """The report of a verification.

    Attributes:
      loaders: name -> {"version", "texts", "min_cosine"}.
      not_verified: loaders that are not installed.
      threshold: the least cosine that was allowed.
    """

    loaders: dict[str, dict]
    not_verified: tuple[str, ...]
    threshold: float

    @property
    def min_cosine(self) -> float:
        """The least cosine over all loaders and texts."""
        return min(result["min_cosine"] for result in self.loaders.values())

    @property
    def verified(self) -> bool:
        """Whether every loader was installed, and thus compared."""
        return not self.not_verified

    def rows(self) -> list[tuple[str, ...]]:
        """(loader, version, texts, least cosine) for a table."""
        rows = [
            (name, result["version"], str(result["texts"]), f"{result['min_cosine']:.7f}")
            for name, result in self.loaders.items()
        ]
        return rows + [(name, "not installed", "0", "NOT verified") for name in self.not_verified]


def max_length(config: RetrieverConfig, role: str) -> int:
    """Tokens to which a tower's directory cuts any text: its `model_max_length`."""
    text = config.text
    if config.towers == "shared":
        return max(text.max_query_tokens, text.max_passage_tokens)
    return text.max_query_tokens if role == "query" else text.max_passage_tokens


def check_export(
    directory: Path, reference: Retriever, *, min_cosine: float, adapter_base: Path | None = None
) -> Parity:
    """Opens the directory with every installed loader and compares the embeddings.

    Args:
      directory: the export.
      reference: the retriever with the parameters in memory.
      min_cosine: least allowed cosine.
      adapter_base: directory of the model that the export's adapters are for; they are verified
        with PEFT. None: there are none.

    Raises:
      UserError: a loader cannot open the directory or gives another embedding (names loader and
        text).
    """
    probes, config = _probes(reference), reference.config
    expected = _ours(reference, probes)
    libraries = dict(LOADERS)
    if adapter_base:
        libraries["peft"] = functools.partial(embed_adapted, base=adapter_base)
    compared: dict[str, list[int]] = {"inf_jax": list(range(len(probes)))}
    embed: dict[str, Callable[[], np.ndarray]] = {
        "inf_jax": lambda: _ours(load(directory, fsdp=reference.mesh.shape["fsdp"]), probes)
    }
    missing = []
    for name, library in libraries.items():
        marked_as = "transformers" if name == "peft" else name
        numbers = [n for n, probe in enumerate(probes) if marked_as in probe.loaders]
        if not numbers:
            continue
        if all(importlib.util.find_spec(module) for module in ("torch", _module(name))):
            compared[name] = numbers
            embed[name] = functools.partial(
                library, directory, config, [probes[n] for n in numbers]
            )
        else:
            missing.append(name)
    results = {}
    for name, numbers in compared.items():
        try:
            with _quiet():
                vectors = embed[name]()
        except Exception as error:  # whatever a library raises on a directory that it cannot use
            raise UserError(
                f"export refused: {name} cannot use it: {type(error).__name__}: "
                f"{textwrap.shorten(str(error), 300)}"
            ) from error
        cosine = _compare(
            name, expected[numbers], vectors, [probes[n] for n in numbers], min_cosine
        )
        version = importlib.metadata.version(_module(name))
        results[name] = {"version": version, "texts": len(numbers), "min_cosine": cosine}
    return Parity(results, tuple(missing), min_cosine)


def _compare(
    loader: str, expected: np.ndarray, vectors: np.ndarray, probes: list[Probe], min_cosine: float
) -> float:
    """The least cosine; raises UserError if it is below `min_cosine` or a norm differs."""
    a, b = expected.astype(np.float64), vectors.astype(np.float64)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    with np.errstate(all="ignore"):
        cosines = (a * b).sum(1) / (norms[0] * norms[1])
        ratios = norms[1] / norms[0]
    cosines = np.nan_to_num(np.minimum(cosines, 1.0), nan=-1.0)
    worst = int(cosines.argmin())
    problems = []
    if not cosines[worst] >= min_cosine:
        problems.append((worst, f"cosine {cosines[worst]:.6f}, below {min_cosine}"))
    off = np.flatnonzero(~(np.abs(ratios - 1) <= NORM_TOLERANCE))
    if off.size:
        problems.append((int(off[0]), f"{ratios[off[0]]:.4g} times the vector's length"))
    if problems:
        n, problem = problems[0]
        text = textwrap.shorten(probes[n].text, 60, placeholder=" ...")
        raise UserError(
            f"export refused: {loader} gives another embedding of the {probes[n].role} {text!r}: "
            f"{problem}"
        )
    return float(cosines[worst])


def _ours(retriever: Retriever, probes: list[Probe]) -> np.ndarray:
    queries, instructions = zip(*(p.parts for p in probes if p.role == "query"), strict=True)
    passages = [p.parts[0] for p in probes if p.role == "passage"]
    return np.concatenate(
        (retriever.encode_queries(queries, instructions), retriever.encode_passages(passages))
    )


def _probes(reference: Retriever) -> list[Probe]:
    """PARITY_QUERIES, then PARITY_PASSAGES and texts with tokens beyond the model's table; without
    texts that have no tokens."""
    config, text = reference.config, reference.config.text
    uncut = TextConfig(text.query_template, text.passage_template, UNCUT, UNCUT)
    queries, instructions = config.queries.tokenise(reference.tokenizer, PARITY_QUERIES, uncut)
    if instructions is not None:
        queries = [min(pair, key=len) for pair in zip(queries, instructions, strict=True)]
    # other libraries must not give such a token an id that the model has no vector for
    beyond = tuple(f"a {token} b" for token in reference.tokenizer.beyond[:3])
    all_passages = PARITY_PASSAGES + beyond
    passages = reference.tokenizer.passages(all_passages, uncut)
    probes = []
    for parts, tokens in zip(PARITY_QUERIES, queries, strict=True):
        loaders = (INSTRUCTED_FILE,)
        if config.queries.pooled:
            # A query that is too long loses the end of the query here, of the whole text elsewhere.
            uncut_query = len(tokens) <= text.max_query_tokens
            loaders = ("transformers", "sentence-transformers") if uncut_query else ()
        rendered = instructed_query(*parts, text.query_template)
        probes.append((len(tokens), Probe("query", rendered, loaders, parts)))
    same_limit = text.max_passage_tokens == max_length(config, "passage")
    for passage, tokens in zip(all_passages, passages, strict=True):
        alike = same_limit or len(tokens) <= text.max_passage_tokens
        loaders = ("transformers", "sentence-transformers") if alike else ()
        rendered = passage_text(passage, text.passage_template)
        probes.append((len(tokens), Probe("passage", rendered, loaders, (passage,))))
    return [probe for length, probe in probes if length]


def _module(loader: str) -> str:
    """The package, besides PyTorch, that a loader needs."""
    return "transformers" if loader == INSTRUCTED_FILE else loader.replace("-", "_")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turns off transformers' progress bar and its warnings about poolers that nothing uses."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
