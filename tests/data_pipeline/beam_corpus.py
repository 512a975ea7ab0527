"""A made corpus for the tests of Apache Beam, and the runner that they use."""

import gzip
import json
import random

from data_pipeline.dataset import beam_runner

ALIKE = "Tell me all that is known about it today, and who found it out: number {}."
THREADS = ["--direct_running_mode=multi_threading", "--direct_num_workers=3"]
WORDS = [f"{a}{b}" for a in "bdfgklmnprstvz" for b in ("ado", "ire", "opu", "ulen", "esta")]


def direct(*options):
    return beam_runner.make_config("DirectRunner", options)


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def row(n, **changes):
    """Row n of a made corpus; two rows share a query."""
    draw = random.Random(n)

    def text(count):
        return " ".join(draw.choices(WORDS, k=count))

    fields = {
        "query_positive": f"topic {n // 2}",
        "instruction_positive": f"Tell of {text(2)}.",
        "document_positive": text(30),
        "instruction_negative": f"Speak of {text(2)}.",
        "hard_negative_document_1": text(20),
        "query_negative": f"another topic {n}" if n % 3 else None,
        "hard_negative_document_2": text(20) if n % 3 else None,
    }
    return fields | changes


def corpus():
    """Rows that break every kind of rule, and duplicates before and after what they repeat."""
    rows = [row(n) for n in range(60)]
    rows += [{**row(n), "document_positive": row(100 + n)["document_positive"]} for n in range(5)]
    rows.insert(0, {**row(7), "document_positive": "short"})  # unsound: its repetition stays
    rows += [row(70, instruction_positive=""), row(71, query_negative="alone" * 3)]
    rows += [{**row(72), "document_positive": row(9)["document_positive"]}]  # a passage twice
    rows += [{**row(73), "query_positive": row(72)["query_positive"]}]
    near = (row(80)["document_positive"] + " " + row(81)["document_positive"]).split()
    for n, changed in enumerate((1, 2, 3)):  # a chain, each further from the first
        near[9 * n] = f"changed{changed}"
        rows += [row(80, document_positive=" ".join(near), instruction_positive=ALIKE.format(n))]
    return rows


def write_corpus(folder):
    """The corpus in three files of a directory, which is returned."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(r) + "\n" for r in corpus()]
    (folder / "a.jsonl").write_text("".join(lines[:40]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[40:50]).encode()))
    own = [json.dumps(r | {"id": f"own-{n}"}) + "\n" for n, r in enumerate(corpus()[50:])]
    (folder / "c.jsonl").write_text("".join([*own, *own[2:4]]))  # two repeated rows
    return folder
