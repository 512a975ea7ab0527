"""Benchmarks from downloaded files of the Hugging Face hub: MAIR and InfoSearch, read as published.

`<data_dir>/<repository>` is what `hf download` makes; nothing is fetched here. Files are read by
the library datasets (extra mteb), which knows their layouts from the repository's README.md.
"""

import difflib
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inf_jax.benchmarks.task import BenchmarkTask, TaskSource, by_suffix
from inf_jax.core.errors import UserError, first_line
from inf_jax.text.templates import document_text

_MAIR = ("MAIR-Bench/MAIR-Queries", "MAIR-Bench/MAIR-Docs")
# Repository of a dimension of InfoSearch (arXiv 2410.23841) -> revision that its code names.
_INFOSEARCH = {
    "jianqunZ/Language-v1": "d4915806662132e118e8df242aee059ef5669578",
    "jianqunZ/Clarity-v1": "4c1892c874d09877c00243fac16452f3353039aa",
    "jianqunZ/Audience-v1": "9bc73db6f3ca419c3fdb4d98e1f0864411756fc8",
    "jianqunZ/Length-v1": "",  # its code has Language's
    "jianqunZ/Source-v1": "67dad8949d168785706d82f93e6794e88c8fcd2e",
    "jianqunZ/Format-v1": "63b53c9e117fa16a469026650861db77f25ab823",
}
# InfoSearch's names of its three modes -> ours and those of its files.
_MODES = {"ori": "og", "ins": "changed", "rev": "reversed"}


def repository(data_dir: Path, wanted: Mapping[str, str], what: str) -> dict[str, Path]:
    """Repository -> its local directory.

    Args:
      wanted: repository -> revision, "" for the newest.
      what: for the message.

    Raises:
      UserError: some are missing, with the commands that fetch them.
    """
    found = {name: data_dir / name for name in wanted}
    missing = [name for name, path in found.items() if not path.is_dir()]
    if missing:
        commands = " && ".join(
            f"hf download {name} --repo-type=dataset "
            + (f"--revision={wanted[name]} " if wanted[name] else "")
            + f"--local-dir={found[name]}"
            for name in missing
        )
        raise UserError(f"{what}: no {found[missing[0]]}; where the hub can be reached: {commands}")
    return found


def datasets_library() -> Any:
    """The module datasets; UserError where it is not installed."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            "public benchmarks need the extra mteb: pip install 'inf_jax[mteb]'"
        ) from None
    return datasets


def hub_rows(directory: Path, config: str, split: str | None = None) -> Iterable[Mapping]:
    """The rows of a config's split; None is its only one. UserError where it cannot be read."""
    try:
        found = _loaded(directory, config)
        if split is None and len(found) != 1:
            raise ValueError(f"splits {', '.join(found)} where one is expected")
        return found[split if split is not None else next(iter(found))]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{directory}: {config} is not readable ({first_line(error)}); download it again"
        ) from None


@functools.lru_cache(maxsize=4)  # IFEval of MAIR has hundreds of splits, and each is a task
def _loaded(directory: Path, config: str) -> Mapping[str, Iterable[Mapping]]:
    """The splits of a config, whose rows stay on the disk."""
    return datasets_library().load_dataset(str(directory), config)


def mair_sources(data_dir: Path, only: str = "") -> list[TaskSource]:
    """The tasks of MAIR (arXiv 2410.10127), split by split: all, or the one called `only`.

    Raises:
      UserError: no such task, or files that are missing or unreadable.
    """
    if only and not all((data_dir / each).is_dir() for each in _MAIR):
        raise UserError(f"mair/{only}: no {data_dir / _MAIR[0]}; {_fetch_of_mair(data_dir, only)}")
    queries, documents = repository(data_dir, dict.fromkeys(_MAIR, ""), "mair").values()
    library = datasets_library()
    try:
        names = library.get_dataset_config_names(str(queries))
    except (OSError, ValueError) as error:
        raise UserError(f"{queries}: {first_line(error)}; download it again") from None
    if names == ["default"]:
        raise UserError(f"{queries}: no README.md that names each task's files; download it again")
    if only:
        if only not in names:
            close = difflib.get_close_matches(only, names, n=1)
            meant = f"do you mean mair/{close[0]}" if close else f"there are {', '.join(names)}"
            raise UserError(f"--suite: no task of MAIR is called {only!r}; {meant}")
        names = [only]
    sources = []
    for name in names:
        try:
            splits = library.get_dataset_split_names(str(queries), name)
            library.get_dataset_split_names(str(documents), name)
        except (OSError, ValueError) as error:
            why = first_line(error).partition(" with any supported extension")[0]
            other = "" if only else ", or name the tasks that are there, as --suite=mair/TASK"
            raise UserError(
                f"mair/{name}: {why}; {_fetch_of_mair(data_dir, name)}{other}"
            ) from None
        for split in splits:
            label = split.removesuffix("queries").rstrip("_")
            sources.append(
                TaskSource(
                    f"mair/{name}" + (f"/{label}" if label else ""),
                    "mair",
                    lambda name=name, split=split: _mair(queries, documents, name, split),
                )
            )
    return sources


def _fetch_of_mair(data_dir: Path, name: str) -> str:
    """The commands that fetch one task: all documents are tens of gigabytes."""
    return "where the hub can be reached: " + " && ".join(
        f"hf download {each} {what} --repo-type=dataset --local-dir={data_dir / each}"
        for each in _MAIR
        for what in ("README.md", f"--include='{name}/*'")
    )


def _mair(queries: Path, documents: Path, name: str, split: str) -> BenchmarkTask:
    """As MAIR's own code: 100 documents a query, every label counts, ids as strings; of rows with
    one query id the last counts."""
    label = split.removesuffix("queries").rstrip("_")
    task = f"mair/{name}" + (f"/{label}" if label else "")
    rows = {str(row["qid"]): row for row in hub_rows(queries, name, split)}
    qrels = {
        qid: {str(x["id"]): int(x["score"]) for x in row["labels"]} for qid, row in rows.items()
    }
    return BenchmarkTask(
        name=task,
        suite="mair",
        corpus=unique(
            (
                (str(r["id"]), r["doc"])
                for r in hub_rows(documents, name, split.replace("queries", "docs"))
            ),
            task,
        ),
        queries={
            qid: (row["query"], row["instruction"] or "")
            for qid, row in rows.items()
            if row["labels"]
        },
        qrels={qid: judged for qid, judged in qrels.items() if judged},
        top_k=100,
        cuts=(1, 5, 10, 100),
        family=f"mair/{name}",
    )


def unique(items: Iterable[tuple[str, str]], task: str) -> dict[str, str]:
    """{id: text} of a corpus; UserError for an id that occurs twice."""
    corpus: dict[str, str] = {}
    for name, text in items:
        if name in corpus:
            raise UserError(f"{task}: document id {name!r} occurs twice; its ranks would be wrong")
        corpus[name] = text
    return corpus


def infosearch_sources(data_dir: Path, only: str = "") -> list[TaskSource]:
    """The six dimensions of InfoSearch, or the one called `only`, as Audience-v1.

    Raises:
      UserError: no such dimension, or files that are missing.
    """
    wanted = {
        name: _INFOSEARCH[name] for name in _INFOSEARCH if name.split("/")[1] == only or not only
    }
    if not wanted:
        known = ", ".join(name.split("/")[1] for name in _INFOSEARCH)
        raise UserError(f"--suite: InfoSearch has no {only!r}; choose among {known}")
    found = repository(data_dir, wanted, "infosearch")
    return [
        TaskSource(f"infosearch/{path.name}", "infosearch", lambda path=path: read_infosearch(path))
        for path in found.values()
    ]


def read_infosearch(directory: Path) -> BenchmarkTask:
    """A dimension: queries without, with and with the reversed instruction, as its own code has it.

    Positives fit the query and the instruction, negatives the query alone. A document with its
    query's id is no result, and queries without positives count for no WISE or SICR.
    """
    name = f"infosearch/{directory.name}"
    rows = {str(row["_id"]): row for row in hub_rows(directory, "queries")}
    judged: dict[str, dict[str, dict[str, int]]] = {}
    for mode, file in _MODES.items():
        judged[mode] = {}
        for row in hub_rows(directory, f"qrels_{file}", "test"):
            of_query = judged[mode].setdefault(str(row["query-id"]), {})
            of_query[str(row["corpus-id"])] = int(row["score"])
    ids = [qid for qid in rows if qid in judged["ori"]]
    positives, negatives = {}, {}
    for qid in ids:
        for mode in ("ins", "rev"):
            if qid not in judged[mode]:
                raise UserError(f"{name}: query {qid!r} has no judgements in qrels_{_MODES[mode]}")
        fits = {"positive": [], "negative": []}
        for document, before in judged["ori"][qid].items():
            if document not in judged["ins"][qid]:
                raise UserError(
                    f"{name}: query {qid!r}, document {document!r} is not in qrels_changed"
                )
            now = judged["ins"][qid][document]
            if now == before == 1:
                fits["positive"].append(document)
            elif now != before and now == 0:
                fits["negative"].append(document)
        if fits["positive"]:
            positives[qid] = fits["positive"]
        negatives[qid] = fits["negative"]
    queries = {
        f"{qid}-{mode}": (rows[qid]["text"], rows[qid][f"instruction_{file}"] or "")
        for mode, file in _MODES.items()
        for qid in ids
    }
    return BenchmarkTask(
        name=name,
        suite="infosearch",
        corpus=unique(
            (
                (str(row["_id"]), document_text(row.get("title"), row["text"]))
                for row in hub_rows(directory, "corpus")
            ),
            name,
        ),
        queries=queries,
        qrels={f"{qid}-{mode}": judged[mode][qid] for mode in _MODES for qid in ids},
        main="wise",
        positives=positives,
        negatives=negatives,
        subsets=by_suffix(list(queries), list(_MODES)),
    )
