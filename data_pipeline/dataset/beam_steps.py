"""The builder's work as Apache Beam steps: reads, validates, deduplicates and counts examples.

    slices of the source -> examples -> rules -> groups by hash -> verdicts -> kept, counted

The result is that of one process, however the work is split. Examples are keyed by id and carry
their position, (file, row), so that the first of duplicates is kept. TFDS's Beam writer writes what
is kept. All workers must see the same file system.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam

from data_pipeline.dataset.beam_runner import worker_errors
from data_pipeline.dataset.inputs import InfIrConfig, Inputs
from data_pipeline.dataset.slices import Slice, read_slice, slices
from data_pipeline.dataset.tfds_adapter import empty_split
from data_pipeline.quality.near_duplicates import repeats, sketch
from data_pipeline.quality.rules import Limits, Report, Verdict, evaluation_hashes, validate
from data_pipeline.sources import inf_ir
from data_pipeline.sources.files import input_files
from inf_jax.data.records import Example
from inf_jax.io.atomic import atomic_write
from inf_jax.io.json_files import read_json

Position = tuple[int, int]  # of a row: number of its file, number of the row in it
Judged = tuple[str, tuple[Position, Example, Verdict]]  # keyed by the example's id
_DROPPED = "dropped"  # tag of the readers' second output


def split_examples(inputs: Inputs, directory: Path) -> dict[str, "SplitExamples"]:
    """The PTransforms from a pipeline's begin to (id, record as a dict), by split, dev first.

    The pipeline writes its reports to `directory`, for `take_reports`.

    Raises:
      UserError: a source file is missing or cannot be split into slices.
    """
    splits: dict[str, SplitExamples] = {}
    for split in inputs.splits:
        splits[split] = SplitExamples(inputs, split, directory, dev=splits.get("dev"))
    return splits


def take_reports(inputs: Inputs, directory: Path) -> dict[str, Report]:
    """Reads the reports that a finished pipeline wrote, by split, and deletes the files."""
    reports = {}
    for split in inputs.splits:
        path = _report_path(directory, split)
        reports[split] = Report.from_json(read_json(path, kind=dict))
        path.unlink()
    return reports


@contextlib.contextmanager
def user_errors(inputs: Inputs, directory: Path) -> Iterator[None]:
    """As `worker_errors`; also explains the error that TFDS raises for a split without examples."""
    try:
        with worker_errors():
            yield
    except Exception as error:
        split = empty_split(error)
        if not split:
            raise
        path = _report_path(directory, split)
        report = Report.from_json(read_json(path, kind=dict)) if path.exists() else Report()
        inputs.check_not_empty(report, split)
        raise


class SplitExamples(beam.PTransform):
    """One split: from source files to (id, record as a dict) of each kept example.

    Args:
      inputs: of the build.
      split: name of the split.
      directory: where the report is written.
      dev: the transform of the evaluation split, which must be applied earlier in the same
        pipeline; examples that share texts with it are dropped.
    """

    def __init__(
        self, inputs: Inputs, split: str, directory: Path, *, dev: "SplitExamples | None" = None
    ):
        super().__init__()
        self._inputs, self._split, self._dev = inputs, split, dev
        self._report = _report_path(directory, split)
        self._path = inputs.path(split)
        self._slices = slices(self._path) if inputs.config.example else []
        # set by expand, for the next split: outputs of `_read`, and the kept (id, Example)
        self.read: tuple[beam.PCollection, beam.PCollection] | None = None
        self.kept: beam.PCollection | None = None

    def expand(self, begin):
        limits, files = self._inputs.limits, [str(f) for f in input_files(self._path)]
        # both splits come from one file, which the source reads alike for both
        shared = self._dev and self._inputs.dev_fraction and not self._inputs.options
        self.read = self._dev.read if shared else self._read(begin.pipeline, files)
        rows, dropped = self.read
        examples = rows | "Belongs" >> beam.Filter(_belongs, self._inputs, self._split)
        hashes = []
        if self._dev:
            hashes = beam.pvalue.AsSingleton(
                self._dev.kept
                | "TextsOfEval" >> beam.Values()
                | "HashesOfEval" >> beam.FlatMap(evaluation_hashes)
                | "SetOfEval" >> beam.combiners.ToSet()
            )
        judged = examples | "Judge" >> beam.Map(_judge, hashes, limits=limits)
        flags = [
            judged
            | "Identities" >> beam.FlatMap(_identities, limits=limits)
            | "ByIdentity" >> beam.GroupByKey()
            | "Later" >> beam.FlatMap(_later)
        ]
        if threshold := self._inputs.near_duplicates:
            sketches = judged | "Sketch" >> beam.FlatMap(_sketch, threshold=threshold)
            # most keys are of one example; only shared ones are worth moving signatures for
            shared = (
                sketches
                | "BandKeys" >> beam.FlatMap(_band_keys)
                | "CountOfKey" >> beam.combiners.Count.PerElement()
                | "Shared" >> beam.Filter(_is_shared)
                | "SharedKeys" >> beam.Keys()
                | "SetOfKeys" >> beam.combiners.ToSet()
            )
            flags.append(
                sketches
                | "Bands" >> beam.FlatMap(_bands, beam.pvalue.AsSingleton(shared))
                | "ByBand" >> beam.GroupByKey()
                | "Near" >> beam.FlatMap(_near, threshold=threshold)
            )
        verdicts = (
            {"judged": judged, "flags": flags | "Flags" >> beam.Flatten()}
            | "ById" >> beam.CoGroupByKey()
            | "Verdict" >> beam.Map(_verdict)
        )
        _ = (
            verdicts
            | "Count" >> beam.MapTuple(_count)
            | "Sum" >> beam.CombineGlobally(_sum)
            | "Report"
            >> beam.Map(_write_report, beam.pvalue.AsIter(dropped), path=str(self._report))
        )
        self.kept = verdicts | "Kept" >> beam.FlatMap(_kept)
        return self.kept | "Fields" >> beam.MapTuple(_fields)

    def _read(self, pipeline, files: list[str]):
        """PCollections of (Position, Example), and of Counters of rows that the reader dropped."""
        config, options = self._inputs.config, self._inputs.reader_options(self._split)
        if config.example:
            parts = pipeline | "Slices" >> beam.Create(self._slices, reshuffle=True)
            rows = parts | "Read" >> beam.FlatMap(_read, config=config, files=files)
            repeated = (
                rows
                | "Identity" >> beam.Map(_identity)
                | "RowsById" >> beam.GroupByKey()
                | "Repeated" >> beam.FlatMap(_repeated, files=files)
            )
            return rows, repeated
        both = (
            pipeline
            | "Source" >> beam.Create([self._path])
            | "ReadAll" >> beam.FlatMap(_read_all, config=config, **options).with_outputs(_DROPPED)
        )
        return both[None] | "Spread" >> beam.Reshuffle(), both[_DROPPED]


# The functions of elements that run on workers.


def _read(part: Slice, config: InfIrConfig, files: list[str]) -> Iterator[tuple[Position, Example]]:
    file = files.index(part.file)
    for number, row in read_slice(part):
        yield (file, number), config.example(row)


def _read_all(path: str, config: InfIrConfig, **options: Any) -> Iterator:
    dropped: Counter[str] = Counter()
    for number, example in enumerate(config.read(path, dropped=dropped, **options)):
        yield (0, number), example
    yield beam.pvalue.TaggedOutput(_DROPPED, dropped)


def _identity(element: tuple[Position, Example]) -> tuple[str, tuple[Position, bytes]]:
    position, example = element
    texts = repr(dataclasses.astuple(example)).encode()
    return example.id, (position, hashlib.blake2b(texts, digest_size=8).digest())


def _repeated(
    group: tuple[str, Iterable[tuple[Position, bytes]]], files: list[str]
) -> Iterator[Counter]:
    """How many rows repeat the first with their id, which they must equal."""
    id, members = group
    (_, first), *others = sorted(members)
    for (file, number), digest in others:
        if digest != first:
            raise inf_ir.repeated_id(f"{files[file]}:{number}", id)
    if others:
        yield Counter({inf_ir.REPEATED: len(others)})


def _belongs(element: tuple[Position, Example], inputs: Inputs, split: str) -> bool:
    return inputs.belongs(element[1], split)


def _judge(element: tuple[Position, Example], hashes: Iterable[int], *, limits: Limits) -> Judged:
    position, example = element
    return example.id, (position, example, validate(example, limits=limits, eval_hashes=hashes))


def _identities(judged: Judged, limits: Limits) -> Iterator[tuple[tuple[str, int], tuple]]:
    id, (position, _, verdict) = judged
    member = (position, id, verdict.sound)
    yield ("duplicate_query", verdict.identity[0]), member
    if not limits.repeated_documents:
        yield ("duplicate_document", verdict.identity[1]), member


def _later(group: tuple[tuple[str, int], Iterable[tuple]]) -> Iterator[tuple[str, str]]:
    """(id, reason) of all members after the first sound one, but for its own repeated rows."""
    (reason, _), members = group
    members = list(members)
    first = min(((position, id) for position, id, sound in members if sound), default=None)
    if first is not None:
        later = (each for each in members if each[0] > first[0] and each[1] != first[1])
        yield from ((id, reason) for _, id, _ in later)


def _sketch(judged: Judged, threshold: float) -> Iterator[tuple[set[int], tuple]]:
    """The band keys of a sound example, and what tells its near duplicates."""
    id, (position, example, verdict) = judged
    if verdict.sound:
        bands, signatures = sketch(example, threshold)
        yield set(bands), (position, id, signatures.tobytes())


def _band_keys(sketched: tuple[set[int], tuple]) -> Iterator[int]:
    yield from sketched[0]


def _is_shared(element: tuple[int, int]) -> bool:
    return element[1] > 1


def _bands(
    sketched: tuple[set[int], tuple], shared: Collection[int]
) -> Iterator[tuple[int, tuple[Position, str, bytes]]]:
    bands, member = sketched
    yield from ((band, member) for band in bands if band in shared)


def _near(group: tuple[int, Iterable[tuple]], threshold: float) -> Iterator[tuple[str, str]]:
    first: dict[str, tuple] = {}
    for member in sorted(group[1]):
        first.setdefault(member[1], member)  # repeated rows have the id of the first
    members = list(first.values())
    for n in repeats([signatures for _, _, signatures in members], threshold):
        yield members[n][1], "near_duplicate"


def _verdict(group: tuple[str, dict]) -> tuple[Example, Verdict]:
    _, values = group
    # the first of repeated rows
    _, example, verdict = min(values["judged"], key=lambda each: each[0])
    return example, verdict.also(*sorted(set(values["flags"])))


def _count(example: Example, verdict: Verdict) -> Report:
    report = Report()
    report.add(example, verdict)
    return report


def _sum(reports: Iterable[Report]) -> Report:
    return sum(reports, Report())


def _kept(element: tuple[Example, Verdict]) -> Iterator[tuple[str, Example]]:
    example, verdict = element
    if verdict.keep:
        yield example.id, example


def _fields(id: str, example: Example) -> tuple[str, dict[str, str]]:
    return id, dataclasses.asdict(example)


def _write_report(report: Report, dropped: Iterable[Counter], path: str) -> None:
    for counter in dropped:
        report.dropped_by_source += counter
    atomic_write(path, json.dumps(report.to_json()))


def _report_path(directory: Path, split: str) -> Path:
    return directory / f"report-{split}.json"
