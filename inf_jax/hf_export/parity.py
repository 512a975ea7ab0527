"""Does an exported directory give the embeddings that were trained? Asked of every loader here.

Each loader opens the directory from its files alone and embeds the same texts; cosine and norm are
compared with the vectors of the parameters in memory.
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
from inf_jax.retriever import Retriever, load
from inf_jax.retriever.settings import RetrieverConfig
from inf_jax.text.templates import TextConfig, instructed_query, passage_text

NORM_TOLERANCE = 1e-3  # relative; a cosine alone would not see a missing normalisation

_LONG = "the passage goes on and on, with one more clause about causes, signs and care, "
QUERIES = (
    ("glaucoma", "What are the treatments for it?"),
    ("glaucoma", "What causes it?"),  # the poisoned instruction
    ("cataract", "What are the treatments for it?"),  # the poisoned query
    ("glaucoma", ""),
    ("", "Explain it to a child."),
    ("Sjögren’s syndrome – naïve café", "¿Cómo se trata? 何ですか 🙂"),
    ("a", "b"),
    (_LONG * 10, "Exclude anything about treatment."),
)
PASSAGES = (
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
    """The report.

    Attributes:
      loaders: name -> {"version", "texts", "min_cosine"}.
      not_verified: loaders that are not installed here.
      threshold: the least cosine that was allowed.
    """

    loaders: dict[str, dict]
    not_verified: tuple[str, ...]
    threshold: float

    @property
    def min_cosine(self) -> float:
        """The least cosine over all loaders and texts."""
        return min(found["min_cosine"] for found in self.loaders.values())

    @property
    def verified(self) -> bool:
        """Whether every loader was installed, and so has confirmed it."""
        return not self.not_verified

    def rows(self) -> list[tuple[str, ...]]:
        """(loader, version, texts, least cosine) for a table."""
        rows = [
            (name, found["version"], str(found["texts"]), f"{found['min_cosine']:.7f}")
            for name, found in self.loaders.items()
        ]
        return rows + [(name, "not installed", "0", "NOT verified") for name in self.not_verified]


def max_length(config: RetrieverConfig, role: str) -> int:
    """Tokens at which a tower's directory cuts any text, as `model_max_length` says it."""
    text = config.text
    if config.towers == "shared":
        return max(text.max_query_tokens, text.max_passage_tokens)
    return text.max_query_tokens if role == "query" else text.max_passage_tokens


def check(
    directory: Path, reference: Retriever, *, min_cosine: float, adapted: Path | None = None
) -> Parity:
    """Opens the directory with every loader that is installed and compares.

    Args:
      directory: the export.
      reference: the retriever on the parameters in memory.
      min_cosine: the least cosine allowed.
      adapted: the model that the export's adapters are for; they are checked with PEFT then.

    Raises:
      UserError: a loader cannot open the directory, or gives another embedding; names loader and
        text.
    """
    probes, config = _probes(reference), reference.config
    split = reference.mesh.shape["fsdp"]
    expected = _ours(reference, probes)
    loaders: dict[str, Callable[[], np.ndarray]] = {
        "inf_jax": lambda: _ours(load(directory, fsdp=split), probes)
    }
    where = {"inf_jax": list(range(len(probes)))}
    missing = []
    libraries = dict(LOADERS)
    if adapted:
        libraries["peft"] = functools.partial(embed_adapted, base=adapted)
    for name, embed in libraries.items():
        alike = "transformers" if name == "peft" else name
        where[name] = [n for n, probe in enumerate(probes) if alike in probe.loaders]
        if not where[name]:
            continue
        if all(importlib.util.find_spec(module) for module in ("torch", _module(name))):
            mine = [probes[n] for n in where[name]]
            loaders[name] = lambda embed=embed, mine=mine: embed(directory, config, mine)
        else:
            missing.append(name)
    found = {}
    for name, embed in loaders.items():
        try:
            with _quiet():
                vectors = embed()
        except Exception as error:  # whatever a library raises on a directory that it cannot use
            raise UserError(
                f"export refused: {name} cannot use it: {type(error).__name__}: "
                f"{textwrap.shorten(str(error), 300)}"
            ) from error
        mine = where[name]
        cosine = _compare(name, expected[mine], vectors, [probes[n] for n in mine], min_cosine)
        version = importlib.metadata.version(_module(name))
        found[name] = {"version": version, "texts": len(mine), "min_cosine": cosine}
    return Parity(found, tuple(missing), min_cosine)


def _compare(
    loader: str, expected: np.ndarray, found: np.ndarray, probes: list[Probe], least: float
) -> float:
    """The least cosine; UserError where one is under `least` or a length differs."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    with np.errstate(all="ignore"):
        cosines = (a * b).sum(1) / (lengths[0] * lengths[1])
        ratios = lengths[1] / lengths[0]
    cosines = np.nan_to_num(np.minimum(cosines, 1.0), nan=-1.0)
    worst = int(cosines.argmin())
    reasons = []
    if not cosines[worst] >= least:
        reasons.append((worst, f"cosine {cosines[worst]:.6f}, under {least}"))
    off = np.flatnonzero(~(np.abs(ratios - 1) <= NORM_TOLERANCE))
    if off.size:
        reasons.append((int(off[0]), f"{ratios[off[0]]:.4g} times the vector's length"))
    if reasons:
        n, reason = reasons[0]
        text = textwrap.shorten(probes[n].text, 60, placeholder=" ...")
        raise UserError(
            f"export refused: {loader} gives another embedding of the {probes[n].role} {text!r}: "
            f"{reason}"
        )
    return float(cosines[worst])


def _ours(retriever: Retriever, probes: list[Probe]) -> np.ndarray:
    queries, instructions = zip(*(p.parts for p in probes if p.role == "query"), strict=True)
    passages = [p.parts[0] for p in probes if p.role == "passage"]
    return np.concatenate(
        (retriever.encode_queries(queries, instructions), retriever.encode_passages(passages))
    )


def _probes(reference: Retriever) -> list[Probe]:
    """QUERIES, then PASSAGES, rendered; without those of no tokens, which some tokenizers have."""
    config, text = reference.config, reference.config.text
    whole = TextConfig(text.query_template, text.passage_template, 1 << 20, 1 << 20)
    tokens = {
        "query": reference.tokenizer.queries(QUERIES, whole),
        "passage": reference.tokenizer.passages(PASSAGES, whole),
    }
    if config.query_encoder == "attention":
        apart = reference.tokenizer.separate_texts(QUERIES, whole)
        tokens["query"] = [min(pair, key=len) for pair in zip(*apart, strict=True)]
    parts = {"query": QUERIES, "passage": [(passage,) for passage in PASSAGES]}
    rendered = {
        "query": [instructed_query(q, i, text.query_template) for q, i in QUERIES],
        "passage": [passage_text(p, text.passage_template) for p in PASSAGES],
    }
    limits = {"query": text.max_query_tokens, "passage": text.max_passage_tokens}

    def loaders(role: str, ids: np.ndarray) -> tuple[str, ...]:
        if role == "query" and config.query_encoder == "attention":
            return (INSTRUCTED_FILE,)
        cut_alike = role == "passage" and limits[role] == max_length(config, role)
        alike = len(ids) <= limits[role] or cut_alike
        return ("transformers", "sentence-transformers") if alike else ()

    return [
        Probe(role, probe, loaders(role, ids), of)
        for role in ("query", "passage")
        for probe, ids, of in zip(rendered[role], tokens[role], parts[role], strict=True)
        if len(ids)
    ]


def _module(loader: str) -> str:
    """The package that a loader needs beside PyTorch."""
    return "transformers" if loader == INSTRUCTED_FILE else loader.replace("-", "_")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its bar, and without its report of a pooler that nothing uses."""
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
