"""Benchmarks from downloaded files of the Hugging Face hub: MAIR and InfoSearch, read as published.

`<data_dir>/<repository>` is what `hf download` makes; nothing is fetched here. Files are read by
the library datasets (extra mteb), which knows their layouts from the repository's README.md.
"""

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
        found = datasets_library().load_dataset(str(directory), config)
        if split is None and len(found) != 1:
            raise ValueError(f"splits {', '.join(found)} where one is expected")
        return found[split if split is not None else next(iter(found))]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{directory}: {config} is not readable ({first_line(error)}); download it again"
        ) from None


def mair_sources(data_dir: Path) -> list[TaskSource]:
    """The tasks of MAIR (arXiv 2410.10127) that are there, split by split."""
    queries, documents = repository(data_dir, dict.fromkeys(_MAIR, ""), "mair").values()
    library, sources = datasets_library(), []
    try:
        names = library.get_dataset_config_names(str(queries))
        for name in names:
            for split in library.get_dataset_split_names(str(queries), name):
                label = split.removesuffix("queries").rstrip("_")
                sources.append(
                    TaskSource(
                        f"mair/{name}" + (f"/{label}" if label else ""),
                        "mair",
                        lambda name=name, split=split: _mair(queries, documents, name, split),
                    )
                )
    except (OSError, ValueError) as error:
        raise UserError(f"{queries}: {first_line(error)}; download it again") from None
    return sources


def _mair(queries: Path, documents: Path, name: str, split: str) -> BenchmarkTask:
    """As MAIR's own code: 100 documents a query, every label counts, ids as strings."""
    label = split.removesuffix("queries").rstrip("_")
    task = f"mair/{name}" + (f"/{label}" if label else "")
    rows = list(hub_rows(queries, name, split))
    qrels = {
        str(row["qid"]): {str(x["id"]): int(x["score"]) for x in row["labels"]} for row in rows
    }
    if len(qrels) < len(rows):
        raise UserError(f"{task}: a query id occurs twice")
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
        queries={str(r["qid"]): (r["query"], r["instruction"] or "") for r in rows if r["labels"]},
        qrels={qid: judged for qid, judged in qrels.items() if judged},
        top_k=100,
        cuts=(1, 5, 10, 100),
    )


def unique(items: Iterable[tuple[str, str]], task: str) -> dict[str, str]:
    """{id: text} of a corpus; UserError for an id that occurs twice."""
    corpus: dict[str, str] = {}
    for name, text in items:
        if name in corpus:
            raise UserError(f"{task}: document id {name!r} occurs twice; its ranks would be wrong")
        corpus[name] = text
    return corpus


def infosearch_sources(data_dir: Path) -> list[TaskSource]:
    """The six dimensions of InfoSearch."""
    found = repository(data_dir, _INFOSEARCH, "infosearch")
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
