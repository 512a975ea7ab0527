"""The TFDS builder `inf_ir`: text TFRecords of validated examples, written without TensorFlow.

Apart from `build`, the main, because TFDS stores the name of the module that defines the builder.
"""

import dataclasses
import json
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer as tfds_writer
from tqdm import tqdm

from data_pipeline.dataset.inputs import DEV_FRACTION, FACTORY, INF_IR, MEDQUAD, Inputs
from data_pipeline.quality.near_duplicates import is_near
from data_pipeline.quality.rules import Report, evaluation_hashes, kept
from inf_jax.data.records import FIELDS, Example, decode_example, encode_example
from inf_jax.io import tfrecord

REPORT_FILE = "validation_report.json"


class InfIr(tfds.core.GeneratorBasedBuilder):
    """Examples with InF-IR's field names; splits "train" and, unless nothing is held out, "dev".

    Args:
      path_train, path_dev: source files; default: the shipped ones. Without a dev file,
        `dev_fraction` of the queries (by hash) is held out of the train file.
      dev_fraction: between 0 (no dev split) and 1.
      near_duplicates: between 0 (stay) and 1: examples so alike an earlier one are dropped
        (`data_pipeline.quality.near_duplicates`).
      beam: prepare with Apache Beam, on the runner and options of the `DownloadConfig`; source
        files and `data_dir` must be the same for all workers.
      **kwargs: TFDS's own: `config` (a source's name), `data_dir`.

    Raises:
      UserError: a source file that is missing or damaged, or gives no example.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar = [MEDQUAD, INF_IR, FACTORY]

    def __init__(
        self,
        *,
        path_train: str = "",
        path_dev: str = "",
        dev_fraction: float = DEV_FRACTION,
        near_duplicates: float = 0.0,
        beam: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        own = {
            "path_train": path_train,
            "path_dev": path_dev,
            "dev_fraction": dev_fraction,
            "near_duplicates": near_duplicates,
        }
        self._original_state.update(own, beam=beam)  # TFDS makes a pickled builder from these
        self._own, self._beam = own, beam
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
        if self._beam:
            from data_pipeline.dataset import beam_steps  # Apache Beam is an extra

            return beam_steps.split_examples(inputs, Path(self.data_path))
        # both splits keep the readers' order; TFDS shuffles by id
        splits = {}
        eval_hashes: set[int] = set()
        if "dev" in inputs.splits:
            dev = list(self._kept(inputs, "dev"))
            eval_hashes.update(*map(evaluation_hashes, dev))
            splits["dev"] = self._generate_examples(dev, inputs, "dev")
        train = self._kept(inputs, "train", eval_hashes)
        splits["train"] = self._generate_examples(train, inputs, "train")
        return splits

    def _generate_examples(self, examples: Iterable[Example], inputs: Inputs, split: str):
        # no bar where nobody watches; TFDS's own are switched off in `build`
        for example in tqdm(examples, desc=f"{split}: validating", unit=" examples", disable=None):
            yield example.id, dataclasses.asdict(example)
        inputs.check_not_empty(self.reports[split], split)

    def _kept(
        self, inputs: Inputs, split: str, eval_hashes: Collection[int] = frozenset()
    ) -> Iterator[Example]:
        """The examples of one split, as they pass the rules; counts them in `reports`."""
        self.reports[split] = report = Report()
        examples = inputs.config.read(inputs.path(split), dropped=report.dropped_by_source)
        return kept(
            (e for e in examples if inputs.belongs(e, split)),
            limits=inputs.config.limits,
            report=report,
            eval_hashes=eval_hashes,
            is_near=is_near(inputs.near_duplicates) if inputs.near_duplicates else None,
        )

    def _download_and_prepare(self, *args, **kwargs):
        # runs while data_path is the partial directory, which TFDS renames when all is written
        if self._beam:
            from data_pipeline.dataset import beam_steps

            inputs = Inputs.resolve(self.builder_config, **self._own)
            with beam_steps.user_errors(inputs, Path(self.data_path)):
                super()._download_and_prepare(*args, **kwargs)
            self.reports = beam_steps.take_reports(inputs, Path(self.data_path))
        else:
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
