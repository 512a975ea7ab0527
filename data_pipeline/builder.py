"""The TFDS builder `inf_ir`: text TFRecords of validated examples, written without TensorFlow.

Apart from `build`, the main, because TFDS stores the name of the module that defines the builder.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer as tfds_writer
from tqdm import tqdm

from data_pipeline.sources import inf_ir, medquad
from data_pipeline.sources.files import input_files
from data_pipeline.validate import Limits, Report, evaluation_hashes, held_out, kept
from inf_jax import tfrecord
from inf_jax.errors import UserError
from inf_jax.records import FIELDS, Example, decode_example, encode_example

REPORT_FILE = "validation_report.json"
DEV_FRACTION = 0.02  # of the queries, where a source has no evaluation file
_SAMPLES = Path(__file__).parent / "samples"


@dataclasses.dataclass(eq=False)
class InfIrConfig(tfds.core.BuilderConfig):
    """One source: how its files are read and what its records must be.

    Attributes:
      read: read(path, dropped=Counter) -> Iterator[Example].
      path_train, path_dev: files shipped with the code; "" where the user must give them.
      limits: lengths of texts, see `validate`.
      homepage, citation, license: of the source.
    """

    read: Callable[..., Iterator[Example]] = inf_ir.read
    path_train: str = ""
    path_dev: str = ""
    limits: Limits = dataclasses.field(default_factory=Limits)
    homepage: str = ""
    citation: str = ""
    license: str = ""


_MEDQUAD = InfIrConfig(
    name="medquad",
    description="Questions and answers on diseases (GARD and GHR of MedQuAD): the disease is the "
    "query, the question about it the instruction.",
    read=medquad.read,
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
_INF_IR = InfIrConfig(
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


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What one build reads.

    Attributes:
      config: the source.
      train, dev: paths; dev "" where evaluation queries are held out of train.
      dev_fraction: share of train's queries that is held out; 0 for none.
    """

    config: InfIrConfig
    train: str
    dev: str
    dev_fraction: float

    @classmethod
    def resolve(
        cls, config: InfIrConfig, *, path_train: str, path_dev: str, dev_fraction: float
    ) -> "Inputs":
        """The user's paths where given, else the shipped files.

        Raises:
          UserError: there is no train file, or the fraction is none.
        """
        if not 0 <= dev_fraction < 1:
            raise UserError(f"--dev_fraction={dev_fraction}: must be at least 0 and less than 1")
        train = path_train or config.path_train
        if not train:
            raise UserError(
                f"source {config.name!r} ships no data; give your file by --path_train=FILE"
            )
        # the shipped dev file belongs to the shipped train file alone
        dev = path_dev or ("" if path_train else config.path_dev)
        return cls(config, train, dev, 0.0 if dev else dev_fraction)

    def recipe(self) -> dict[str, Any]:
        """What the records depend on besides the code's version: files' checksums, rules.

        Equal recipes give equal files. It is stored as the dataset's metadata.

        Raises:
          UserError: a file is missing.
        """
        sources = {"train": _checksums(self.train)}
        if self.dev:
            sources["dev"] = _checksums(self.dev)
        recipe = {
            "sources": sources,
            "dev_fraction": self.dev_fraction,
            "limits": dataclasses.asdict(self.config.limits),
        }
        return json.loads(json.dumps(recipe))  # tuples become lists, as in the stored one


class InfIr(tfds.core.GeneratorBasedBuilder):
    """Examples with InF-IR's field names; splits "train" and, unless nothing is held out, "dev".

    Args:
      path_train, path_dev: source files; default: the shipped ones. Without a dev file,
        `dev_fraction` of the queries (by hash) is held out of the train file.
      dev_fraction: between 0 (no dev split) and 1.
      **kwargs: TFDS's own: `config` (a source's name), `data_dir`.

    Raises:
      UserError: a source file that is missing or damaged, or gives no example.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar = [_MEDQUAD, _INF_IR]

    def __init__(
        self,
        *,
        path_train: str = "",
        path_dev: str = "",
        dev_fraction: float = DEV_FRACTION,
        **kwargs,
    ):
        super().__init__(**kwargs)
        own = {"path_train": path_train, "path_dev": path_dev, "dev_fraction": dev_fraction}
        self._original_state.update(own)  # TFDS makes a pickled builder again from these
        self._own = own
        self.reports: dict[str, Report] = {}

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return self.dataset_info_from_configs(
            description="Triplets (instruction, query, passage), each with a poisoned instruction "
            "and a poisoned query and the passages that fit these.",
            features=tfds.features.FeaturesDict(
                {name: tfds.features.Text() for name in ("id", *FIELDS)}
            ),
            homepage=config.homepage,
            citation=config.citation,
            license=config.license,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        # not in __init__: a dataset that is only read needs no source files
        inputs = Inputs.resolve(self.builder_config, **self._own)
        self.info.metadata.clear()
        self.info.metadata.update(inputs.recipe())
        # dev first: train must know its texts. Both keep the readers' order; TFDS shuffles by id.
        splits = {}
        eval_hashes: set[int] = set()
        if inputs.dev or inputs.dev_fraction:
            dev = list(self._kept(inputs, "dev"))
            eval_hashes.update(*map(evaluation_hashes, dev))
            splits["dev"] = self._generate_examples(dev, "dev")
        splits["train"] = self._generate_examples(self._kept(inputs, "train", eval_hashes), "train")
        return splits

    def _generate_examples(self, examples: Iterable[Example], split: str):
        # no bar where nobody watches; TFDS's own are switched off in `build`
        for example in tqdm(examples, desc=f"{split}: validating", unit=" examples", disable=None):
            yield example.id, dataclasses.asdict(example)
        report = self.reports[split]
        if not report.kept:
            counts = (report.dropped_by_source + report.reasons).most_common(3)
            why = ", ".join(f"{count} for {reason!r}" for reason, count in counts)
            raise UserError(
                f"split {split!r} of source {self.builder_config.name!r} is empty: {report.rows} "
                f"rows read{', dropped: ' + why if why else ''}; give other files, or another "
                "--dev_fraction"
            )

    def _kept(
        self, inputs: Inputs, split: str, eval_hashes: Collection[int] = frozenset()
    ) -> Iterator[Example]:
        """The examples of one split, as they pass the rules; counts them in `reports`."""
        self.reports[split] = report = Report()
        path = inputs.dev if split == "dev" and inputs.dev else inputs.train
        examples = inputs.config.read(path, dropped=report.dropped_by_source)
        if inputs.dev_fraction:
            in_dev = split == "dev"
            examples = (e for e in examples if held_out(e, inputs.dev_fraction) == in_dev)
        return kept(examples, limits=inputs.config.limits, report=report, eval_hashes=eval_hashes)

    def _download_and_prepare(self, *args, **kwargs):
        # runs while data_path is the partial directory, which TFDS renames when all is written
        super()._download_and_prepare(*args, **kwargs)
        splits = [split for split in ("train", "dev") if split in self.reports]
        reports = {split: self.reports[split].to_json() for split in splits}
        (self.data_path / REPORT_FILE).write_text(json.dumps(reports, indent=2) + "\n")

    def _log_download_bytes(self):
        """Nothing: TFDS would announce a download of unknown size."""

    def _log_download_done(self):
        """Nothing: the main says where the dataset is."""

    def _example_writer(self):
        return _ExampleWriter(file_format=self.info.file_format)


class _ExampleWriter(tfds_writer.ExampleWriter):
    """Writes a shard through our TFRecord writer; TFDS's own needs TensorFlow."""

    def write(self, path: os.PathLike, examples: Iterable[tuple[Any, bytes]]) -> None:
        with tfrecord.Writer(path) as writer:
            for _, data in examples:
                # TFDS serialises a map in no fixed order; ours is the same proto, byte for byte
                writer.write(encode_example(decode_example(data)))


def _checksums(path: str) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of each source file; no directory: moved files are the same files."""
    return [
        {"file": file.name, "bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in input_files(path)
    ]


def _sha256(file: Path) -> str:
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
