"""The TFDS builder `inf_ir`: text TFRecords of validated examples.

TFDS stores this module's name in each dataset (`moduleName`).
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_pipeline.dataset.inputs import FACTORY, INF_IR, MEDQUAD, Inputs
from data_pipeline.dataset.pair_build import pair_splits
from data_pipeline.dataset.pair_sources import PAIR_CONFIGS
from data_pipeline.dataset.tfds_adapter import Builder
from data_pipeline.quality.near_duplicates import is_near
from data_pipeline.quality.rules import Report, evaluation_hashes, kept
from inf_jax.data.records import FIELDS, Example, encode_example

REPORT_FILE = "validation_report.json"


class InfIr(Builder):
    """Examples with InF-IR's field names; split "train" and, unless nothing is held out, "dev".

    Args:
      beam: prepare with Apache Beam, on the runner and options of the `DownloadConfig`; all workers
        must see the same source files and `data_dir`.
      **kwargs: the fields of `Inputs`; and TFDS's own: `config` (a source's name), `data_dir`.

    Raises:
      UserError: a source file is missing or damaged, or yields no example.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar = [MEDQUAD, INF_IR, FACTORY, *PAIR_CONFIGS]

    def __init__(self, *, beam: bool = False, **kwargs):
        own = [field.name for field in dataclasses.fields(Inputs)[1:]]
        self._own = {name: kwargs.pop(name) for name in own if name in kwargs}
        super().__init__(beam=beam, arguments=self._own | {"beam": beam}, **kwargs)
        self.reports: dict[str, Report] = {}

    def _info(self) -> tfds.core.DatasetInfo:
        config, text = self.builder_config, tfds.features.Text()
        described = (
            "Triplets (instruction, query, passage), each with a poisoned instruction and a "
            "poisoned query and the passages that fit these."
        )
        features = dict.fromkeys(("id", *FIELDS), text)
        if config.plain:
            described = "Examples of one (instruction, query, passage) pair or more, each with "
            described += "negatives and a teacher's scores of passage and negatives, if there are."
            scores = tfds.features.Sequence(tfds.features.Scalar(np.float32))
            pair = dict.fromkeys(("instruction", "query", "passage"), text)
            pair |= {"negatives": tfds.features.Sequence(text), "scores": scores}
            features = {"id": text, "pairs": tfds.features.Sequence(pair)}
        return self.dataset_info_from_configs(
            description=described,
            features=tfds.features.FeaturesDict(features),
            homepage=config.homepage,
            citation=config.citation,
            license=config.license,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        # not in __init__: reading an existing dataset needs no source files
        inputs = Inputs(self.builder_config, **self._own)
        self.info.metadata.clear()
        self.info.metadata.update(inputs.recipe())
        if self.builder_config.plain:
            return pair_splits(inputs, Path(self.data_path), self.reports)
        if self._beam:
            from data_pipeline.dataset import beam_steps  # Apache Beam is an extra

            return beam_steps.split_examples(inputs, Path(self.data_path))
        # dev is written first, and gives the texts that train may not have
        eval_hashes: set[int] = set()
        return {
            split: self._generate_examples(self._kept(inputs, split, eval_hashes), inputs, split)
            for split in inputs.splits
        }

    def _generate_examples(self, examples: Iterable[Example], inputs: Inputs, split: str):
        # disable=None: no bar unless stderr is a terminal; `build` switches TFDS's own off
        for example in tqdm(examples, desc=f"{split}: validating", unit=" examples", disable=None):
            yield example.id, encode_example(example)
        inputs.check_not_empty(self.reports[split], split)

    def _kept(self, inputs: Inputs, split: str, eval_hashes: set[int]) -> Iterator[Example]:
        """The examples of one split that pass the rules; counts all in `reports`, and those of dev
        add to `eval_hashes`."""
        self.reports[split] = report = Report()
        for example in kept(
            inputs.read_examples(split, dropped=report.dropped_by_source),
            limits=inputs.limits,
            report=report,
            eval_hashes=eval_hashes if split == "train" else frozenset(),
            is_near=is_near(inputs.near_duplicates) if inputs.near_duplicates else None,
        ):
            if split == "dev":
                eval_hashes |= evaluation_hashes(example)
            yield example

    @contextlib.contextmanager
    def writing(self, directory: Path) -> Iterator[None]:
        """Adds the validation report to the dataset's files."""
        if self._beam:
            from data_pipeline.dataset import beam_steps

            inputs = Inputs(self.builder_config, **self._own)
            with beam_steps.user_errors(inputs, directory):
                yield
            self.reports = beam_steps.take_reports(inputs, directory)
        else:
            yield
        splits = [split for split in ("train", "dev") if split in self.reports]
        reports = {split: self.reports[split].to_json() for split in splits}
        (directory / REPORT_FILE).write_text(json.dumps(reports, indent=2) + "\n")
