"""The runs of the paper's grid and of the questions that its reviewers asked."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from inf_jax.losses.objective import parse_objective

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "configs" / "paper" / "inf_embed.py"
SEEDS = (0, 1, 2)
WITHOUT = "without_instructions"  # the dataset of the same pairs
NOISY = "noisy instructions"  # the question with a table of its own
NEGATIVES = (0, 1, 2, 4, 8)  # instructions drawn for a query


class Cell(NamedTuple):
    """One row of a table: a config trained with some seeds, and how it is scored.

    Attributes:
      question: what the row answers; "" in the grid.
      name: of the row, unique in its question.
      backbone: of configs/paper/inf_embed.py.
      keys: overrides of its config, KEY=VALUE.
      data: name of the dataset: "inf_ir", "unfiltered", "promptriever" or WITHOUT.
      seeds: of the runs; their scores are pooled.
      noise: kinds of noise in instructions that are scored as well, as of `inf_jax.benchmark`.
    """

    question: str
    name: str
    backbone: str
    keys: tuple[str, ...]
    data: str = "inf_ir"
    seeds: tuple[int, ...] = (0,)
    noise: str = ""

    def run(self, seed: int) -> tuple[str, ...]:
        """What tells one training run from another; cells with equal ones share it."""
        return (self.backbone, self.data, *sorted(self.keys), f"seed={seed}")


def paper_config() -> ModuleType:
    """The module configs/paper/inf_embed.py."""
    spec = importlib.util.spec_from_file_location("inf_embed", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def objective_keys(objective: str, negatives: int) -> tuple[str, ...]:
    """The keys of an objective; block I draws that many instructions for a query."""
    drawn = negatives if "I" in parse_objective(objective).blocks else 0
    return (f"loss.objective={objective}", f"loss.instruction_negatives={drawn}")


def grid(backbones: Sequence[str], objectives: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """One cell for each backbone and objective."""
    negatives = paper_config().INSTRUCTION_NEGATIVES
    return [
        Cell("", objective, backbone, objective_keys(objective, negatives), seeds=tuple(seeds))
        for backbone in backbones
        for objective in objectives
    ]


class Asked(NamedTuple):
    """How far the questions go.

    Attributes:
      unfiltered, promptriever: whether there are files of these data.
      noises: kinds of noise in instructions, of `inf_jax.benchmark --noise`.
      negatives: numbers of instruction negatives.
      seeds: of the pooled row.
    """

    unfiltered: bool = False
    promptriever: bool = False
    noises: tuple[str, ...] = ()
    negatives: tuple[int, ...] = NEGATIVES
    seeds: tuple[int, ...] = SEEDS


def questions(backbone: str, asked: Asked) -> list[Cell]:
    """The reviewers' questions on one backbone of configs/paper/inf_embed.py. The first cell of
    each is what the others compare to."""
    drawn = paper_config().INSTRUCTION_NEGATIVES
    usual = objective_keys("uni(P,I)", drawn)
    plain = objective_keys("uni(P)", drawn)
    cells = [
        Cell("do instructions matter", "with instructions", backbone, plain),
        Cell(
            "do instructions matter",
            "without, the same rows",
            backbone,
            plain,
            data=WITHOUT,
        ),
    ]
    if asked.unfiltered:
        cells += [
            Cell("does the filter matter", "filtered", backbone, usual),
            Cell("does the filter matter", "unfiltered", backbone, usual, data="unfiltered"),
        ]
    if asked.promptriever:
        cells += [
            Cell("which corpus, at equal size", "InF-IR", backbone, plain),
            Cell(
                "which corpus, at equal size",
                "Promptriever",
                backbone,
                (*plain, "loss.negatives=1"),
                data="promptriever",
            ),
        ]
    cells += [
        Cell("how many instruction negatives", f"m = {m}", backbone, _negatives(m))
        for m in asked.negatives
    ]
    cells += [
        Cell("joint or attention encoder", "joint", backbone, usual),
        Cell(
            "joint or attention encoder",
            "attention",
            backbone,
            (*objective_keys("uni(P,I)", 0), "model.query_encoder=attention"),
        ),
    ]
    if asked.noises:
        cells.append(Cell(NOISY, "all kinds", backbone, usual, noise=",".join(asked.noises)))
    cells.append(Cell("seeds, pooled", "uni(P,I)", backbone, usual, seeds=asked.seeds))
    return cells


def _negatives(count: int) -> tuple[str, ...]:
    return objective_keys("uni(P,I)", count) if count else objective_keys("uni(P)", 0)
