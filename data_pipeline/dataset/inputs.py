"""Configures builds: the named sources, and the input files and rules of one build."""

import dataclasses
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_pipeline.quality.near_duplicates import is_near
from data_pipeline.quality.rules import Limits, Report, held_out
from data_pipeline.sources import inf_ir, medquad
from data_pipeline.sources.files import Row, input_files
from data_pipeline.sources.pair_readers import OF_READERS
from data_pipeline.sources.pairs import SourcePair
from data_pipeline.sources.tables import one_split
from inf_jax.core.errors import UserError
from inf_jax.data.records import Example
from inf_jax.io.json_files import sha256_of_file
from inf_jax.io.paths import is_url

DEV_FRACTION = 0.02  # of the queries, where a source has no evaluation file
MAX_NEGATIVES = 32  # of a pair
_SAMPLES = Path(__file__).parents[1] / "samples"


def split_files(path: str | Path, **options: Any) -> list[Path]:
    """The files of one split; UserError if there are none, or they are of several splits."""
    del options
    one_split(path)
    return input_files(path)


def input_tree(directory: Path) -> Iterator[Path]:
    """All files below a directory but those that builds and runs wrote there, where `--data-dir` is
    the directory or in it."""
    built = {file.parents[3] for file in directory.glob("**/inf_ir/*/*/dataset_info.json")}
    built |= {file.parents[2] for file in directory.glob("**/inf_ir/*/.*.lock")}  # by this build
    own = [root / name for root in built for name in ("inf_ir", "tokenised")]
    for file in directory.rglob("*"):
        if file.is_file() and not any(file.is_relative_to(each) for each in own):
            yield file


@dataclasses.dataclass(eq=False)
class InfIrConfig(tfds.core.BuilderConfig):
    """One source: how its files are read, and the limits of its texts.

    Attributes:
      read: read(path, dropped=Counter, **options) -> Iterator[Example], or of SourcePair.
      example: example(row) -> Example, if each row yields one example; None if `read` needs all
        rows together.
      plain: whether `read` gives pairs (instruction and negatives are optional), no triplets.
      files: files(path, **options) -> the files that `read` reads.
      path_train, path_dev: files shipped with the package; "" if the user must give them.
      limits: lengths of texts, see `rules.validate`.
      homepage, citation, license: of the source.
    """

    read: Callable[..., Iterator[Example]] = inf_ir.read
    example: Callable[[Row], Example] | None = inf_ir.example
    plain: bool = False
    files: Callable[..., list[Path]] = split_files
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
      options: the other arguments of the source's `read`; "dev_split" is the `split` of its dev.
      max_negatives: of a pair; 0 for all.
      evaluation: files of benchmarks' texts, which a source of pairs may not contain, as for
        `BenchmarkTexts.read`.

    Raises:
      UserError: there is no train file, a fraction is out of range, or the source has no such
        option.
    """

    config: InfIrConfig
    path_train: str | Path = ""
    path_dev: str | Path = ""
    dev_fraction: float = DEV_FRACTION
    near_duplicates: float = 0.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_negatives: int = MAX_NEGATIVES
    evaluation: tuple[str, ...] = ()

    def __post_init__(self):
        self._check_options()
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
        for flag, path in (("path-train", self.path_train), ("path-dev", self.path_dev)):
            if is_url(path):
                raise UserError(
                    f"--{flag}={path}: is a URL; copy the files to a local disk, such as with "
                    "`gcloud storage cp -r` or `hf download`"
                )
        if self.separate_dev:
            if self.dev_fraction not in (0.0, DEV_FRACTION):
                where = self.path_dev or f"--dev-split={self.options['dev_split']}"
                raise UserError(
                    f"--dev-fraction={self.dev_fraction:g}: would have no effect, the dev split is "
                    f"that of {where}; leave it out"
                )
            self.dev_fraction = 0.0

    def _check_options(self) -> None:
        known = inspect.signature(self.config.read).parameters
        names = [*(known.keys() - OF_READERS), *(["dev_split"] if "split" in known else [])]
        given = dict(self.options)
        if not self.config.plain:
            given |= {"evaluation": 1} if self.evaluation else {}
            given |= {"max_negatives": 1} if self.max_negatives != MAX_NEGATIVES else {}
        if unknown := [name for name in given if name not in names]:
            flag = unknown[0].replace("_", "-")
            raise UserError(f"--{flag}: source {self.config.name!r} has no such option")
        fields = self.options.get("fields")
        if fields is not None and "query" not in fields:
            raise UserError("--fields: names no field for 'query'; add query=NAME")
        if self.max_negatives < 0:
            raise UserError(f"--max-negatives={self.max_negatives}: must be 0 or more")

    @property
    def limits(self) -> Limits:
        """The lengths of texts; with the source's further examples of its passages, these recur."""
        more = bool(self.options.get("keyword_instructions"))
        recur = self.config.limits.repeated_documents or more
        return dataclasses.replace(self.config.limits, repeated_documents=recur)

    @property
    def separate_dev(self) -> bool:
        """Whether the dev split has files, or a split of the source, of its own."""
        return bool(self.path_dev or self.options.get("dev_split"))

    def read_examples(self, split: str, *, dropped: Counter[str]) -> Iterator[Example]:
        """The examples of a split, of a source of triplets; errors as its reader's."""
        path = self.path(split)
        examples = self.config.read(path, dropped=dropped, **self.reader_options(split))
        return (example for example in examples if self.belongs(example, split))

    def read_pairs(
        self, split: str, *, dropped: Counter[str], noted: Counter[str]
    ) -> Iterator[SourcePair]:
        """The pairs of a split's files, of a source of pairs; errors as its reader's, and
        `dropped` and `noted` are its counts."""
        options = self.reader_options(split)
        if "noted" in inspect.signature(self.config.read).parameters:
            options["noted"] = noted
        return self.config.read(self.path(split), dropped=dropped, **options)

    def reader_options(self, split: str) -> dict[str, Any]:
        """The other arguments of the source's `read` for a split."""
        options = dict(self.options)
        dev_split = options.pop("dev_split", "")
        if split == "dev" and dev_split:
            options["split"] = dev_split
        if "negatives" in options:
            options["max_negatives"] = self.max_negatives
        if "hold_out_types" in options:
            options["held_out"] = split == "dev"
        if split == "dev":
            options.pop("keyword_instructions", None)
        return options

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; dev first, since its texts are dropped from train."""
        return ("dev", "train") if self.separate_dev or self.dev_fraction else ("train",)

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
        if split == "dev" and self.dev_fraction and not report.rows:
            raise UserError(
                f"--dev-fraction={self.dev_fraction:g}: holds out none of the queries that source "
                f"{self.config.name!r} has; give a larger one such as 0.2, a file by --path-dev, "
                "or 0 for no dev split"
            )
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
        splits = ["train", *(["dev"] if self.separate_dev else [])]
        sources = {split: _checksums(self._files(split)) for split in splits}
        recipe = {
            "sources": sources,
            "dev_fraction": self.dev_fraction,
            "limits": dataclasses.asdict(self.limits),
        }
        if self.near_duplicates:
            recipe["near_duplicates"] = self.near_duplicates
        if self.config.plain or self.options:
            recipe["options"] = dict(self.options)
        if self.config.plain:
            if file := self.options.get("negatives"):
                recipe["options"]["negatives"] = _checksums(_all_files(Path(file)))
            recipe["max_negatives"] = self.max_negatives
            if self.evaluation:
                recipe["evaluation"] = _checksums(
                    [file for path in self.evaluation for file in _all_files(Path(path))]
                )
        return json.loads(json.dumps(recipe))  # tuples become lists, as in the stored recipe

    def _files(self, split: str) -> list[Path]:
        return self.config.files(self.path(split), **self.reader_options(split))


def _checksums(files: list[Path]) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of each source file; without directory, since files may be moved."""
    return [
        {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
        for file in files
    ]


def _all_files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path")
    return [path] if path.is_file() else sorted(input_tree(path))
