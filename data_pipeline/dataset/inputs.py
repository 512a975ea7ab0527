"""Configures builds: the named sources, and the input files and rules of one build."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_pipeline.quality.near_duplicates import is_near
from data_pipeline.quality.rules import Limits, Report, held_out
from data_pipeline.sources import inf_ir, medquad
from data_pipeline.sources.files import Row, input_files, one_split
from inf_jax.core.errors import UserError
from inf_jax.data.records import Example
from inf_jax.io.json_files import sha256_of_file

DEV_FRACTION = 0.02  # of the queries, where a source has no evaluation file
_SAMPLES = Path(__file__).parents[1] / "samples"


@dataclasses.dataclass(eq=False)
class InfIrConfig(tfds.core.BuilderConfig):
    """One source: how its files are read, and the limits of its texts.

    Attributes:
      read: read(path, dropped=Counter) -> Iterator[Example].
      example: example(row) -> Example, if each row yields one example; None if `read` needs all
        rows together.
      path_train, path_dev: files shipped with the package; "" if the user must give them.
      limits: lengths of texts, see `rules.validate`.
      homepage, citation, license: of the source.
    """

    read: Callable[..., Iterator[Example]] = inf_ir.read
    example: Callable[[Row], Example] | None = inf_ir.example
    path_train: str = ""
    path_dev: str = ""
    limits: Limits = dataclasses.field(default_factory=Limits)
    homepage: str = ""
    citation: str = ""
    license: str = ""


MEDQUAD = InfIrConfig(
    name="medquad",
    description="Questions and answers on diseases (GARD and GHR of MedQuAD): the disease is the "
    "query, the question about it the instruction.",
    read=medquad.read,
    example=None,
    path_train=str(_SAMPLES / "medquad" / "train.jsonl.gz"),
    path_dev=str(_SAMPLES / "medquad" / "dev.jsonl.gz"),
    limits=Limits(
        document_words=(medquad.MIN_ANSWER_WORDS, Limits.document_words[1]),
        repeated_documents=False,
    ),
    homepage="https://github.com/abachaa/MedQuAD",
    citation="""@article{BenAbacha-BMC-2019,
  author = {Asma {Ben Abacha} and Dina Demner{-}Fushman},
  title = {A Question-Entailment Approach to Question Answering},
  journal = {{BMC} Bioinformatics}, volume = {20}, pages = {511}, year = {2019},
}""",
    license="CC BY 4.0",
)
INF_IR = InfIrConfig(
    name="inf_ir",
    description="The released InF-IR corpus, or any file with its field names.",
    homepage="https://huggingface.co/datasets/InF-IR/InF-IR",
    citation="""@article{zhuang2025_2505.21439,
  author = {Yuchen Zhuang and Aaron Trinh and Rushi Qiang and Haotian Sun and Chao Zhang and
            Hanjun Dai and Bo Dai},
  title = {Towards Better Instruction Following Retrieval Models},
  journal = {arXiv preprint arXiv:2505.21439}, year = {2025},
}""",
    license="see the corpus' homepage",
)
FACTORY = InfIrConfig(
    name="factory",
    description="A corpus of the triplet factory (`python -m data_pipeline.run`): queries and "
    "passages of its sources, the rest written and judged by language models.",
    license="that of the sources, and the terms of the models; see the corpus' DATA_CARD.md",
)


@dataclasses.dataclass
class Inputs:
    """The inputs of one build.

    Attributes:
      config: the source.
      path_train, path_dev: source files; default: the shipped ones. Without a dev file,
        `dev_fraction` of the queries (by hash) is held out of the train file.
      dev_fraction: in [0, 1); 0 for no dev split, and with a dev file.
      near_duplicates: in [0, 1): Jaccard similarity from which an example is dropped as a near
        duplicate of an earlier one (`data_pipeline.quality.near_duplicates`); 0 keeps all.

    Raises:
      UserError: there is no train file, or a fraction is out of range.
    """

    config: InfIrConfig
    path_train: str | Path = ""
    path_dev: str | Path = ""
    dev_fraction: float = DEV_FRACTION
    near_duplicates: float = 0.0

    def __post_init__(self):
        for name in ("dev_fraction", "near_duplicates"):
            if not 0 <= (value := getattr(self, name)) < 1:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag}={value}: must be at least 0 and less than 1")
        if self.near_duplicates:
            is_near(self.near_duplicates)  # raises UserError if out of range
        if not self.path_train:  # the shipped dev file is not used with another train file
            self.path_train = self.config.path_train
            self.path_dev = self.path_dev or self.config.path_dev
        if not self.path_train:
            raise UserError(
                f"source {self.config.name!r} ships no data; give your file by --path-train=FILE"
            )
        self.path_train, self.path_dev = str(self.path_train), str(self.path_dev)
        if self.path_dev:
            self.dev_fraction = 0.0

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; dev first, since its texts are dropped from train."""
        return ("dev", "train") if self.path_dev or self.dev_fraction else ("train",)

    def path(self, split: str) -> str:
        """The file of a split."""
        return self.path_dev if split == "dev" and self.path_dev else self.path_train

    def belongs(self, example: Example, split: str) -> bool:
        """Whether an example of the split's file belongs to the split."""
        return not self.dev_fraction or held_out(example, self.dev_fraction) == (split == "dev")

    def check_not_empty(self, report: Report, split: str) -> None:
        """Raises UserError if nothing was kept, with the most frequent reasons."""
        if report.kept:
            return
        counts = (report.dropped_by_source + report.reasons).most_common(3)
        why = ", ".join(f"{count} for {reason!r}" for reason, count in counts)
        raise UserError(
            f"split {split!r} of source {self.config.name!r} is empty: {report.rows} rows "
            f"read{', dropped: ' + why if why else ''}; give other files, or another "
            "--dev-fraction"
        )

    def recipe(self) -> dict[str, Any]:
        """Everything the records depend on besides the code: checksums of files, and rules.

        Builds with equal recipes write equal files. Stored as the dataset's metadata.

        Raises:
          UserError: a file is missing, or a directory has files of several splits.
        """
        sources = {"train": _checksums(self.path_train)}
        if self.path_dev:
            sources["dev"] = _checksums(self.path_dev)
        recipe = {
            "sources": sources,
            "dev_fraction": self.dev_fraction,
            "limits": dataclasses.asdict(self.config.limits),
        }
        if self.near_duplicates:
            recipe["near_duplicates"] = self.near_duplicates
        return json.loads(json.dumps(recipe))  # tuples become lists, as in the stored recipe


def _checksums(path: str) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of each source file; without directory, since files may be moved."""
    one_split(path)
    return [
        {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
        for file in input_files(path)
    ]
