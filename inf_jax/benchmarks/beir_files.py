"""Reads a directory in the layout of BEIR, with instructions and changed judgements where given.

    corpus.jsonl                 {"_id", "title", "text"}
    queries.jsonl                {"_id", "text"} and, if wanted, "instruction", "group", "type"
    qrels/test.tsv               query-id, corpus-id, score; a header line
    queries_changed.jsonl        the same ids with changed instructions
    qrels_changed/test.tsv       what is relevant under those

With the last two, each query is searched with both instructions, as `<id>-og` and `<id>-changed`,
as in FollowIR: documents that are relevant at first and not then give p-MRR. Queries of one
`group`, by default those of equal text, are one query under several instructions, whose worst
nDCG@10 is Robustness@10; the group of a query in one of the two files is its group in both. `type`
is the kind of instruction, for scores by kind; a changed query without one has the first's. White
space around ids is left out in all files. Files may end in .gz.
"""

import gzip
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from inf_jax.benchmarks.task import BenchmarkTask, by_suffix
from inf_jax.core.errors import UserError
from inf_jax.core.json_text import parse_json
from inf_jax.text.checks import check_text
from inf_jax.text.templates import document_text

_Judged = dict[str, dict[str, int]]


class _Row(NamedTuple):
    text: str
    instruction: str
    group: str
    type: str


def read_beir(
    directory: Path,
    *,
    split: str = "test",
    identical_ids: str | None = None,
    most: int = 0,
    flag: str = "--identical-ids",
) -> BenchmarkTask:
    """The task of a directory.

    Queries without judgements in the split are left out, as in BEIR and mteb; a judgement of a
    document that the corpus lacks counts as relevant and never found, as there.

    Args:
      split: name of the file in `qrels`.
      identical_ids: "ignore": a document with its query's id is no result, "keep": it is one.
      most: above 0: at most so many documents. Queries, each with all of its text or group, are
        kept in order as long as the documents that they are judged by fit in; then the first of
        the others fill the corpus. The others are never held.
      flag: what sets `identical_ids`, for messages.

    Raises:
      UserError: a file is missing or damaged, an id occurs twice, a query or an id is empty, a
        query of the judgements does not exist, judgements contradict each other, or query ids are
        document ids and `identical_ids` is None; or not one query fits in `most`.
    """
    documents = _file(directory, "corpus.jsonl")
    original = _queries(_file(directory, "queries.jsonl"))
    qrels = _qrels(_file(directory, f"qrels/{split}.tsv"), original)
    rows = {qid: original[qid] for qid in original if qid in qrels}
    if not any(score > 0 for judged in qrels.values() for score in judged.values()):
        what = "no judgement is above 0, hence nothing is relevant" if rows else "no judgements"
        raise UserError(
            f"{_file(directory, f'qrels/{split}.tsv')}: {what}; write query-id, corpus-id and score"
        )
    asked = set(rows)  # ids without the suffixes of the two instructions
    second = [_found(directory, n) for n in ("queries_changed.jsonl", f"qrels_changed/{split}.tsv")]
    if (second[0] is None) != (second[1] is None):
        there, missing = ("queries_changed.jsonl", f"qrels_changed/{split}.tsv")[
            :: 1 if second[0] else -1
        ]
        raise UserError(f"{directory}: has {there} but no {missing}; add it, or remove the first")
    changed: dict[str, list[str]] = {}
    if second[0]:
        rows, qrels, changed = _with_changed(rows, qrels, *second)
    groups = {qid: row.group or row.text for qid, row in rows.items()}
    if most:
        kept, needed, same = _fitting(documents, groups, qrels, asked, most)
        rows = {qid: row for qid, row in rows.items() if qid in kept}
        changed = {base: x for base, x in changed.items() if f"{base}-og" in kept}
        groups = {qid: groups[qid] for qid in rows}
        corpus = _corpus(documents, needed, most)
    else:
        corpus = _corpus(documents)
        if not corpus:
            raise UserError(f"{documents}: no documents; copy it again")
        same = asked & corpus.keys()
    _check_identical(directory, same, identical_ids, flag)
    if identical_ids == "ignore" and changed:
        raise UserError(
            f"{directory}: {flag}=ignore with queries_changed.jsonl is not covered: leave "
            "the queries' own documents out of the corpus"
        )
    repeated = len(set(groups.values())) < len(groups)
    subsets = by_suffix(list(rows), ("og", "changed")) if changed else {}
    for qid, row in rows.items():
        if row.type:
            subsets.setdefault(f"type={row.type}", []).append(qid)
    return BenchmarkTask(
        name=directory.resolve().name,
        suite="local",
        corpus=corpus,
        queries={qid: (row.text, row.instruction) for qid, row in rows.items()},
        qrels={qid: qrels[qid] for qid in rows},
        main="p_mrr" if changed else "ndcg@10",
        ignore_identical_ids=identical_ids == "ignore",
        place=str(directory),
        changed=changed,
        groups=groups if repeated else {},
        subsets=subsets,
    )


def _with_changed(
    rows: dict[str, _Row], qrels: _Judged, queries: Path, judgements: Path
) -> tuple[dict[str, _Row], _Judged, dict[str, list[str]]]:
    """(queries of both instructions, their judgements, base id -> newly irrelevant documents)."""
    after = _queries(queries)
    judged = _qrels(judgements, after)
    rows, changed = dict(rows), {}
    for qid, row in rows.items():
        if qid not in after or qid not in judged:
            place = judgements if qid in after else queries
            raise UserError(f"{place}: query {qid!r} of the first set is missing; add it")
        if row.text != after[qid].text:
            raise UserError(f"{queries}: query {qid!r} has another text; only instructions change")
        rows[qid], after[qid] = _of_one_query(row, after[qid], f"{queries}: query {qid!r}")
        for document, relevance in qrels[qid].items():
            if document not in judged[qid]:
                raise UserError(
                    f"{judgements}: query {qid!r}, document {document!r} is judged under the first "
                    "instruction and not under the changed one; add its score, 0 if not relevant"
                )
            if relevance > 0 and judged[qid][document] <= 0:
                changed.setdefault(qid, []).append(document)
    if not changed:
        raise UserError(
            f"{judgements}: no document becomes irrelevant under a changed instruction, so that "
            "there is no p-MRR; compare it with the first judgements"
        )
    both = {f"{qid}-og": row for qid, row in rows.items()}
    both |= {f"{qid}-changed": after[qid] for qid in rows}
    labels = {f"{qid}-og": qrels[qid] for qid in rows}
    labels |= {f"{qid}-changed": judged[qid] for qid in rows}
    return both, labels, changed


def _of_one_query(first: _Row, changed: _Row, where: str) -> tuple[_Row, _Row]:
    """Both with the group that one of them has; the changed one's type is its own or the first's:
    another instruction may be of another kind."""
    if first.group and changed.group and first.group != changed.group:
        raise UserError(
            f"{where} is of group {changed.group!r}, and of {first.group!r} in the first set; both "
            "are one query under two instructions: write the same, or leave one out"
        )
    group = first.group or changed.group
    kind = changed.type or first.type
    return first._replace(group=group), changed._replace(group=group, type=kind)


def _corpus(path: Path, needed: set[str] | None = None, most: int = 0) -> dict[str, str]:
    """id -> text; of at most `most` documents where that is given, those that are needed and the
    first of the others."""
    corpus: dict[str, str] = {}
    others = most - len(needed or ())
    for where, row in _rows(path):
        name = _id(row, where)
        if needed is not None and name not in needed:
            if not others:
                continue
            others -= 1
        title = _text(row, "title", where, default="")
        _add(corpus, name, document_text(title, _text(row, "text", where)), where)
    return corpus


def _fitting(
    path: Path, groups: dict[str, str], qrels: _Judged, asked: set[str], most: int
) -> tuple[set[str], set[str], set[str]]:
    """(queries whose judged documents fit in `most`, those documents, ids of `asked` that are
    documents)."""
    wanted = {document for qid in groups for document in qrels[qid]}
    found, same, count = set(), set(), 0
    for where, row in _rows(path):
        name, count = _id(row, where), count + 1
        if name in wanted:
            found.add(name)
        if name in asked:
            same.add(name)
    if count <= most:
        return set(groups), found, same
    members: dict[str, list[str]] = defaultdict(list)
    for qid, group in groups.items():
        members[group].append(qid)
    kept: set[str] = set()
    needed: set[str] = set()
    for each in members.values():
        more = needed.union(*(qrels[qid].keys() & found for qid in each))
        if len(more) > most:
            break
        needed = more
        kept.update(each)
    if not kept:
        raise UserError(
            f"{path}: {most} documents do not hold those of one query; raise their number"
        )
    return kept, needed, same


def _check_identical(directory: Path, same: set[str], choice: str | None, flag: str) -> None:
    if same and choice is None:
        raise UserError(
            f"{directory}: {len(same):,} query ids are document ids as well ({min(same)!r}), and "
            f"whether a query may find its own document changes the scores: {flag}=ignore if the "
            f"queries are part of the corpus, {flag}=keep if the ids are equal by chance"
        )


def _queries(path: Path) -> dict[str, _Row]:
    found: dict[str, _Row] = {}
    for where, row in _rows(path):
        qid, text = _id(row, where), _text(row, "text", where)
        if not text.strip():
            raise UserError(f"{where}: query {qid!r} is empty; remove it, and its judgements")
        rest = (_text(row, name, where, default="") for name in ("instruction", "group", "type"))
        _add(found, qid, _Row(text, *rest), where)
    return found


def _qrels(path: Path, queries: dict[str, _Row]) -> _Judged:
    judged: _Judged = defaultdict(dict)
    first = True
    for number, line in enumerate(_lines(path), 1):
        where, fields = f"{path}, line {number}", line.rstrip("\r\n").split("\t")
        if not line.strip():
            continue
        if len(fields) != 3:
            raise UserError(
                f"{where}: {len(fields)} columns where query-id, corpus-id and score are expected, "
                "separated by tabs; a TREC file has a second column more, take it out"
            )
        qid, document, score = (field.strip() for field in fields)
        header, first = first and qid not in queries and not _is_number(score), False
        if header:
            continue
        try:
            relevance = int(score)
        except ValueError:
            raise UserError(f"{where}: score {score!r} is not a whole number; correct it") from None
        if qid not in queries:
            raise UserError(f"{where}: query {qid!r} does not exist; the file is of other queries")
        if judged[qid].setdefault(document, relevance) != relevance:
            raise UserError(
                f"{where}: query {qid!r}, document {document!r} has two scores; keep one"
            )
    return dict(judged)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _add(found: dict[str, Any], name: str, value: Any, where: str) -> None:
    if name in found:
        raise UserError(f"{where}: _id {name!r} occurs twice; ids must differ")
    found[name] = value


def _id(row: dict, where: str) -> str:
    value = row.get("_id")
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"{where}: _id is {value!r}; it must be a string that is not empty")
    check_text(name := str(value).strip(), f"{where}: _id")
    return name


def _text(row: dict, name: str, where: str, *, default: str | None = None) -> str:
    value = row.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is {value!r}; it must be a string")
    check_text(value, f"{where}: {name} of _id {row['_id']!r}")
    return value


def _found(directory: Path, name: str) -> Path | None:
    return next((p for p in (directory / name, directory / f"{name}.gz") if p.is_file()), None)


def _file(directory: Path, name: str) -> Path:
    path = _found(directory, name)
    if path is None:
        raise UserError(
            f"{directory}: no {name}; a benchmark's directory holds corpus.jsonl, queries.jsonl "
            "and qrels/test.tsv, as in BEIR"
        )
    return path


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_json(line, where, kind=dict, remedy="correct the line")


def _lines(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            yield from file
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path}: not readable ({error}); copy it again") from None
