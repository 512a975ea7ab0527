"""What a benchmark asks of a model: documents, queries with instructions, judgements."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence

from inf_jax.core.errors import UserError
from inf_jax.metrics.ranking import CUTS
from inf_jax.metrics.runs import Qrels

Query = tuple[str, str]  # (query, instruction)


@dataclasses.dataclass(frozen=True)
class BenchmarkTask:
    """A retrieval task in which the instruction may change what is relevant.

    Attributes:
      name: for tables and files.
      suite: the benchmark; the key of `benchmarks.placement.INSTRUCTION_ORDERS`.
      corpus: document id -> text.
      queries: query id -> (query, instruction), "" where there is none; those with judgements.
      qrels: query id -> {document id: relevance}; above 0 is relevant.
      main: the metric that the benchmark reports, a key of what `scoring.score_run` gives.
      candidates: query id -> the documents that are ranked for it; None: the whole corpus.
      ignore_identical_ids: a document with its query's own id is not a result.
      changed: base id -> documents that the changed instruction excludes; the queries are
        `<base>-og` and `<base>-changed`. Gives p-MRR.
      groups: query id -> group; a group is a query with all its instructions. Gives Robustness@10.
      pairs: queries are NevIR's, `<pair>_q1` and `<pair>_q2`. Gives the paired accuracy.
      positives, negatives: InfoSearch's base id -> documents that fit query and instruction, and
        those that fit the query alone; the queries are `<base>-ori`, `-ins` and `-rev`. Gives WISE,
        SICR and p-MRR, ties in the order of the run.
      subsets: label -> query ids; the ranking metrics are also averaged over each.
      prompt: an instruction for all queries of the task, for models whose template has a place
        for one.
      top_k: documents of a ranking.
      family: tasks of one family count as one in the mean of a suite; "" is a family of its own.
      cuts: cut-offs of the ranking metrics.
      place: where its files are, for messages; "" is its name.
    """

    name: str
    suite: str
    corpus: Mapping[str, str]
    queries: Mapping[str, Query]
    qrels: Qrels
    main: str = "ndcg@10"
    candidates: Mapping[str, Sequence[str]] | None = None
    ignore_identical_ids: bool = False
    changed: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pairs: bool = False
    positives: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    negatives: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    subsets: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    prompt: str = ""
    top_k: int = 1000
    family: str = ""
    cuts: Sequence[int] = CUTS
    place: str = ""

    def __post_init__(self):
        if not self.queries or not self.corpus:
            what = "documents" if self.queries else "queries with judgements"
            raise UserError(f"{self.place or self.name}: no {what}; get its files again")
        relevant = {d for judged in self.qrels.values() for d, score in judged.items() if score > 0}
        if missing := sorted(relevant - self.corpus.keys()):
            if len(missing) == len(relevant):
                raise UserError(
                    f"{self.place or self.name}: the corpus has none of the {len(missing):,} "
                    f"relevant documents: their ids are like {missing[0]!r}, its own like "
                    f"{next(iter(self.corpus))!r}; get corpus and judgements of one version"
                )
            logging.getLogger(__name__).warning(
                "%s: the corpus lacks %d of the %d relevant documents (%s ...), which count as "
                "never found; get corpus and judgements of one version",
                self.place or self.name,
                len(missing),
                len(relevant),
                missing[0],
            )
        for qid, documents in (self.candidates or {}).items():
            for document in documents:
                if document not in self.corpus:
                    raise UserError(
                        f"{self.name}: candidate {document!r} of query {qid!r} is not in the corpus"
                    )

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of texts and judgements."""
        digest = hashlib.sha256()
        for part in (self.corpus, self.queries, self.qrels, self.changed, self.groups):
            for item in part.items():
                digest.update(repr(item).encode(errors="surrogatepass"))
            digest.update(b"\n")
        return digest.hexdigest()[:16]

    @property
    def instructed(self) -> bool:
        """Whether queries have instructions of their own."""
        return any(instruction for _, instruction in self.queries.values())

    @property
    def relevant(self) -> dict[str, set[str]]:
        """Query id -> what is relevant to it."""
        return {
            qid: {document for document, score in self.qrels[qid].items() if score > 0}
            for qid in self.queries
        }

    @property
    def instruction_groups(self) -> dict[str, list[str]]:
        """Group -> ids of one query under several instructions, where there are several."""
        found: dict[str, list[str]] = {}
        for qid in self.queries:
            if self.changed or self.positives:
                found.setdefault(qid.rpartition("-")[0], []).append(qid)
            elif qid in self.groups:
                found.setdefault(self.groups[qid], []).append(qid)
        return {group: members for group, members in found.items() if len(members) > 1}


@dataclasses.dataclass(frozen=True)
class TaskSource:
    """A task that is read when it is scored, so that one at a time is in memory."""

    name: str
    suite: str
    load: Callable[[], BenchmarkTask]


def by_suffix(ids: Sequence[str], suffixes: Sequence[str]) -> dict[str, list[str]]:
    """suffix -> the ids that end in "-<suffix>", for suffixes that occur."""
    found = {s: [qid for qid in ids if qid.endswith(f"-{s}")] for s in suffixes}
    return {suffix: members for suffix, members in found.items() if members}
