"""The retrieval task that a split of examples defines: corpus, queries, relevance judgements."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from inf_jax.core.errors import UserError
from inf_jax.data.records import AnyExample, PairExample, pairs, text_hash


class Task(NamedTuple):
    """A corpus, the queries to search it with, and which passages are relevant.

    Attributes:
      corpus: document id -> passage.
      queries: query id -> (query, instruction); ids are `<group>_<number>`, as in InstructIR.
      qrels: query id -> {document id: 1}, the passages that fit the query under its instruction.
      changed: query id -> the passages that fit the query under other instructions but not under
        this one; only queries that have such passages.
      groups: query id -> group id; a group is one query with all its instructions.
      alone: group id -> (query, ""), the query without instruction.
    """

    corpus: dict[str, str]
    queries: dict[str, tuple[str, str]]
    qrels: dict[str, dict[str, int]]
    changed: dict[str, list[str]]
    groups: dict[str, str]
    alone: dict[str, tuple[str, str]]

    @property
    def searches(self) -> dict[str, tuple[str, str]]:
        """`queries`, then `alone`: id -> (query, instruction) of everything that is searched."""
        return self.queries | self.alone


def capped(task: Task, most: int) -> Task:
    """A task with at most so many passages.

    Its queries, with all their instructions, are kept in order as long as the passages that they
    are judged by fit in; then the first of the other passages fill the corpus.

    Raises:
      UserError: not even the first query's fit.
    """
    if len(task.corpus) <= most:
        return task
    members: dict[str, list[str]] = defaultdict(list)
    for query, group in task.groups.items():
        members[group].append(query)
    kept: set[str] = set()
    groups: set[str] = set()
    for group in task.alone:
        judged = {d for q in members[group] for d in (*task.qrels[q], *task.changed.get(q, ()))}
        if len(kept | judged) > most:
            break
        kept |= judged
        groups.add(group)
    if not groups:
        raise UserError(f"{most} passages do not hold those of one query; raise eval.max_passages")
    for document in task.corpus:
        if len(kept) == most:
            break
        kept.add(document)
    mine = {query for query, group in task.groups.items() if group in groups}
    return Task(
        corpus={d: text for d, text in task.corpus.items() if d in kept},
        queries={q: x for q, x in task.queries.items() if q in mine},
        qrels={q: x for q, x in task.qrels.items() if q in mine},
        changed={q: x for q, x in task.changed.items() if q in mine},
        groups={q: x for q, x in task.groups.items() if q in mine},
        alone={group: x for group, x in task.alone.items() if group in groups},
    )


def task_from_examples(examples: Iterable[AnyExample]) -> Task:
    """The task of a split: its positive pairs are the queries, all its passages and negatives the
    corpus.

    Texts are identified by `text_hash`. A poisoned pair states that its passage fits its query
    under its instruction: the passage is relevant if that instructed query is part of the task,
    and the passage of a poisoned instruction is one of the passages of its query.

    Raises:
      UserError: no examples.
    """
    corpus: dict[int, tuple[str, str]] = {}  # hash -> id, text
    alone: dict[int, tuple[str, str]] = {}
    queries: dict[tuple[int, int], tuple[str, str, str]] = {}  # hashes -> id, query, instruction
    relevant: dict[tuple[int, int], dict[str, int]] = defaultdict(dict)
    passages_of: dict[int, dict[str, None]] = defaultdict(dict)  # per query, in order
    for example in examples:
        for number, pair in enumerate(pairs(example)):
            if pair is None:
                continue
            document, _ = corpus.setdefault(
                text_hash(pair.passage), (f"p{len(corpus)}", pair.passage)
            )
            query = text_hash(pair.query)
            key = query, text_hash(pair.instruction)
            relevant[key][document] = 1
            passages_of[query][document] = None
            for text in pair.negatives:
                corpus.setdefault(text_hash(text), (f"p{len(corpus)}", text))
            if number == 0 or isinstance(example, PairExample):
                group, _ = alone.setdefault(query, (f"q{len(alone)}", pair.query))
                queries.setdefault(key, (f"{group}_{len(queries)}", pair.query, pair.instruction))
    if not queries:
        raise UserError("the split has no examples to evaluate; build it again")
    ids = {key: queries[key][0] for key in queries}
    changed = {
        qid: [d for d in passages_of[key[0]] if d not in relevant[key]] for key, qid in ids.items()
    }
    return Task(
        corpus=dict(corpus.values()),
        queries={qid: (query, instruction) for qid, query, instruction in queries.values()},
        qrels={qid: relevant[key] for key, qid in ids.items()},
        changed={qid: documents for qid, documents in changed.items() if documents},
        groups={qid: alone[key[0]][0] for key, qid in ids.items()},
        alone={group: (query, "") for group, query in alone.values()},
    )
