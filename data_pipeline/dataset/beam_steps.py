"""The builder's records made by Apache Beam: read, judged, deduplicated and counted as `validate`
does in one process, with the same result, however the work is cut up.

    slices of the source -> examples -> rules -> groups by hash -> verdicts -> kept, counted

An example travels under its id with its order, (file, row): the earlier of two duplicates stays.
TFDS's own Beam writer takes what is kept. Workers must see the same file system.
"""

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import apache_beam as beam

from data_pipeline.dataset.beam_errors import worker_errors
from data_pipeline.dataset.inputs import InfIrConfig, Inputs
from data_pipeline.dataset.slices import Slice, read_slice, slices
from data_pipeline.dataset.tfds_adapter import empty_split
from data_pipeline.quality.near_duplicates import repeats, sketch
from data_pipeline.quality.rules import Limits, Report, Verdict, evaluation_hashes, validate
from data_pipeline.sources import inf_ir
from data_pipeline.sources.files import input_files
from inf_jax.data.records import Example
from inf_jax.io.atomic import atomic_file

Order = tuple[int, int]  # of a row: number of its file, number of the row in it
Judged = tuple[str, tuple[Order, Example, Verdict]]  # by the example's id
_DROPPED = "dropped"  # tag of a reader's second output


def split_examples(inputs: Inputs, directory: Path) -> dict[str, "SplitExamples"]:
    """For each split, dev first, the PTransform from a pipeline's begin to (id, record as a dict).

    Args:
      directory: gets the reports, for `take_reports`.

    Raises:
      UserError: a source file is missing or cannot be cut into slices.
    """
    splits: dict[str, SplitExamples] = {}
    for split in inputs.splits:
        splits[split] = SplitExamples(inputs, split, directory, dev=splits.get("dev"))
    return splits


def take_reports(inputs: Inputs, directory: Path) -> dict[str, Report]:
    """The reports by split that a finished pipeline left in the directory; they are deleted."""
    reports = {}
    for split in inputs.splits:
        path = _report_path(directory, split)
        reports[split] = Report.from_json(json.loads(path.read_text()))
        path.unlink()
    return reports


@contextlib.contextmanager
def user_errors(inputs: Inputs, directory: Path) -> Iterator[None]:
    """`worker_errors`, and the error that a split without examples is."""
    try:
        with worker_errors():
            yield
    except Exception as error:
        split = empty_split(error)
        if not split:
            raise
        path = _report_path(directory, split)
        report = Report.from_json(json.loads(path.read_text())) if path.exists() else Report()
        inputs.check_not_empty(report, split)
        raise


class SplitExamples(beam.PTransform):
    """One split: source files to (id, record as a dict) of each example that is kept.

    Args:
      dev: the evaluation split's transform, applied before this one in the same pipeline: no text
        of it stays in this split.
    """

    def __init__(
        self, inputs: Inputs, split: str, directory: Path, *, dev: "SplitExamples | None" = None
    ):
        super().__init__()
        self._inputs, self._split, self._dev = inputs, split, dev
        self._report = _report_path(directory, split)
        self._path = inputs.path(split)
        self._slices = slices(self._path) if inputs.config.example else []
        # once expanded: what the next split needs, of (Order, Example) and of (id, Example)
        self.read: tuple[beam.PCollection, beam.PCollection] | None = None
        self.kept: beam.PCollection | None = None

    def expand(self, begin):
        limits, files = self._inputs.config.limits, [str(f) for f in input_files(self._path)]
        shared = self._dev and self._inputs.dev_fraction  # one file gives both
        self.read = self._dev.read if shared else self._read(begin.pipeline, files)
        rows, dropped = self.read
        examples = rows | "Belongs" >> beam.Filter(_Belongs(self._inputs, self._split))
        hashes = []
        if self._dev:
            hashes = beam.pvalue.AsSingleton(
                self._dev.kept
                | "HashesOfEval" >> beam.FlatMap(_hashes_of)
                | "SetOfEval" >> beam.CombineGlobally(_SetFn())
            )
        judged = examples | "Judge" >> beam.Map(_judge, hashes, limits=limits)
        flags = [
            judged
            | "Identities" >> beam.FlatMap(_identities, limits=limits)
            | "ByIdentity" >> beam.GroupByKey()
            | "Later" >> beam.FlatMap(_later)
        ]
        if threshold := self._inputs.near_duplicates:
            flags.append(
                judged
                | "Bands" >> beam.FlatMap(_bands, threshold=threshold)
                | "ByBand" >> beam.GroupByKey()
                | "Near" >> beam.FlatMap(_near, threshold=threshold)
            )
        verdicts = (
            {"judged": judged, "flags": flags | "Flags" >> beam.Flatten()}
            | "ById" >> beam.CoGroupByKey()
            | "Verdict" >> beam.Map(_verdict, files=files)
        )
        _ = (
            verdicts
            | "Count" >> beam.CombineGlobally(_ReportFn())
            | "Report"
            >> beam.Map(_write_report, beam.pvalue.AsIter(dropped), path=str(self._report))
        )
        self.kept = verdicts | "Kept" >> beam.FlatMap(_kept)
        return self.kept | "Fields" >> beam.MapTuple(_fields)

    def _read(self, pipeline, files: list[str]):
        """PCollections of (Order, Example), and of Counters of the rows that the reader dropped."""
        config = self._inputs.config
        if config.example:
            rows = (
                pipeline
                | "Slices" >> beam.Create(self._slices, reshuffle=True)
                | "Read" >> beam.FlatMap(_read, config=config, files=files)
            )
            dropped = pipeline | "NoneDropped" >> beam.Create([])
        else:
            both = (
                pipeline
                | "Source" >> beam.Create([self._path])
                | "ReadAll" >> beam.FlatMap(_read_all, config=config).with_outputs(_DROPPED)
            )
            rows, dropped = both[None] | "Spread" >> beam.Reshuffle(), both[_DROPPED]
        return rows, dropped


# What runs on the workers: plain functions of elements.


def _read(part: Slice, config: InfIrConfig, files: list[str]) -> Iterator[tuple[Order, Example]]:
    file = files.index(part.file)
    for number, row in read_slice(part):
        yield (file, number), config.example(row)


def _read_all(path: str, config: InfIrConfig) -> Iterator:
    dropped: Counter[str] = Counter()
    for number, example in enumerate(config.read(path, dropped=dropped)):
        yield (0, number), example
    yield beam.pvalue.TaggedOutput(_DROPPED, dropped)


@dataclasses.dataclass(frozen=True)
class _Belongs:
    inputs: Inputs
    split: str

    def __call__(self, element: tuple[Order, Example]) -> bool:
        return self.inputs.belongs(element[1], self.split)


def _hashes_of(element: tuple[str, Example]) -> set[int]:
    return evaluation_hashes(element[1])


def _judge(element: tuple[Order, Example], hashes: Iterable[int], *, limits: Limits) -> Judged:
    order, example = element
    return example.id, (order, example, validate(example, limits=limits, eval_hashes=hashes))


def _identities(judged: Judged, limits: Limits) -> Iterator[tuple[tuple[str, int], tuple]]:
    name, (order, _, verdict) = judged
    member = (order, name, verdict.sound)
    yield ("duplicate_query", verdict.identity[0]), member
    if not limits.repeated_documents:
        yield ("duplicate_document", verdict.identity[1]), member


def _later(group: tuple[tuple[str, int], Iterable[tuple]]) -> Iterator[tuple[str, str]]:
    """(id, reason) of the members after the first sound one."""
    (reason, _), members = group
    members = list(members)
    first = min((order for order, _, sound in members if sound), default=None)
    if first is not None:
        yield from ((name, reason) for order, name, _ in members if order > first)


def _bands(judged: Judged, threshold: float) -> Iterator[tuple[int, tuple[Order, str, bytes]]]:
    name, (order, example, verdict) = judged
    if verdict.sound:
        bands, signature = sketch(example, threshold)
        yield from ((band, (order, name, signature)) for band in set(bands))


def _near(group: tuple[int, Iterable[tuple]], threshold: float) -> Iterator[tuple[str, str]]:
    members = sorted(group[1])
    for n in repeats([signature for _, _, signature in members], threshold):
        yield members[n][1], "near_duplicate"


def _verdict(group: tuple[str, dict], files: list[str]) -> tuple[Example, Verdict]:
    name, found = group
    judged = sorted(found["judged"], key=lambda each: each[0])
    if len(judged) > 1:
        file, number = judged[1][0]
        raise inf_ir.repeated_id(f"{files[file]}:{number}", name)
    _, example, verdict = judged[0]
    return example, verdict.also(*sorted(set(found["flags"])))


def _kept(element: tuple[Example, Verdict]) -> Iterator[tuple[str, Example]]:
    example, verdict = element
    if verdict.keep:
        yield example.id, example


def _fields(name: str, example: Example) -> tuple[str, dict[str, str]]:
    return name, dataclasses.asdict(example)


def _write_report(report: Report, dropped: Iterable[Counter], path: str) -> None:
    for counter in dropped:
        report.dropped_by_source += counter
    with atomic_file(path) as file:
        file.write(json.dumps(report.to_json()).encode())


def _report_path(directory: Path, split: str) -> Path:
    return directory / f"report-{split}.json"


class _SetFn(beam.CombineFn):
    def create_accumulator(self):
        return set()

    def add_input(self, accumulator, element):
        accumulator.add(element)
        return accumulator

    def merge_accumulators(self, accumulators):
        return set().union(*accumulators)

    def extract_output(self, accumulator):
        return accumulator


class _ReportFn(beam.CombineFn):
    def create_accumulator(self):
        return Report()

    def add_input(self, accumulator, element):
        accumulator.add(*element)
        return accumulator

    def merge_accumulators(self, accumulators):
        return sum(accumulators, Report())

    def extract_output(self, accumulator):
        return accumulator
