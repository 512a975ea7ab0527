"""The DATA_CARD.md of a corpus: a Hugging Face dataset card, from what the report knows."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipeline.items import INSTRUCTED_QUERIES, PASSAGES
from inf_jax.io.atomic import atomic_file

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
_FIELDS = (
    ("query_positive", "Q+, the query"),
    ("instruction_positive", "I+, the instruction"),
    ("document_positive", "P+, relevant to Q+ under I+"),
    ("instruction_negative", "I-, a poisoned instruction: P+ does not meet it"),
    ("hard_negative_document_1", "P-1, relevant to Q+ under I-, not under I+"),
    ("query_negative", "Q-, a poisoned query: P+ does not answer it"),
    ("hard_negative_document_2", "P-2, relevant to Q- under I+, not to Q+"),
)


@dataclasses.dataclass(frozen=True)
class CardInfo:
    """What the report does not know.

    Attributes:
      name: the corpus'.
      source: where the pairs are from, Markdown.
      licence: an identifier of the Hugging Face hub, e.g. cc-by-4.0; that of the source at most.
      languages: ISO 639 codes; () where nobody has said.
      config: the resolved config, as nested dicts; no secrets.
      command: the command line that made the corpus.
      files: split -> path of its file, from where the card lies; with "train", perhaps "dev".
    """

    name: str
    source: str
    licence: str = "unknown"
    languages: tuple[str, ...] = ()
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    command: str = ""
    files: dict[str, str] = dataclasses.field(
        default_factory=lambda: {"train": "corpus/train.jsonl"}
    )


def write_data_card(path: Path, report: dict[str, Any], info: CardInfo) -> None:
    """Writes the card, whole or not at all; raises UserError where it cannot be written."""
    with atomic_file(path) as file:
        file.write(data_card(report, info).encode())


def data_card(report: dict[str, Any], info: CardInfo) -> str:
    """Markdown with YAML front matter, from `summary.summarise`'s report."""
    sections = [
        _front_matter(report, info),
        _what_it_is(report, info),
        _loading(info),
        f"## Source\n\n{info.source}{_source_counts(report)}",
        _making(report, info),
        _validation(report),
        _counts(report),
        _lengths(report),
        _cost(report),
        _limits(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(report: dict[str, Any], info: CardInfo) -> str:
    size = next((name for most, name in _SIZES if report["kept"] < most), "n>1M")
    lines = [
        f"pretty_name: {json.dumps(info.name)}",
        f"license: {json.dumps(info.licence)}",
        "task_categories:",
        "- text-retrieval",
        "size_categories:",
        f"- {size}",
    ]
    if info.languages:
        lines += ["language:", *(f"- {json.dumps(code)}" for code in info.languages)]
    lines += ["tags:", "- instruction-following", "- synthetic", "- inf_jax"]
    lines += ["configs:", "- config_name: default", "  data_files:"]
    for split, path in info.files.items():
        lines += [f"  - split: {json.dumps(split)}", f"    path: {json.dumps(path)}"]
    return "\n".join(["---", *lines, "---"])


def _what_it_is(report: dict[str, Any], info: CardInfo) -> str:
    fields = "\n".join(f"- `{name}`: {what}" for name, what in _FIELDS)
    return f"""# {info.name}

{report["kept"]:,} examples for training retrievers that follow instructions: a query comes with an
instruction, and the instruction decides which passages about the query are right. Instructions,
poisoned instructions and queries, their passages and the judgements were written by language
models; made with inf_jax by the method of
[Towards Better Instruction Following Retrieval Models](https://arxiv.org/abs/2505.21439).

Each example is a positive triplet and two poisoned ones, under the field names of that paper's
InF-IR corpus:

{fields}"""


def _loading(info: CardInfo) -> str:
    paths = " ".join(f"--path-{split}={path}" for split, path in info.files.items())
    return f"""## Loading

```python
from datasets import load_dataset

corpus = load_dataset("json", data_files={json.dumps(info.files)})
```

For training with inf_jax, as TFRecords:

```bash
python -m data_pipeline.build --source=inf_ir {paths} --data-dir=out/data
```"""


def _source_counts(report: dict[str, Any]) -> str:
    if not report["source"]:
        return ""
    counts = json.dumps(report["source"], indent=2, ensure_ascii=False)
    return f"\n\nWhat was read:\n\n```json\n{counts}\n```"


def _making(report: dict[str, Any], info: CardInfo) -> str:
    rows = [
        (
            stage,
            made["model"],
            f"{made['prompt']} ({made['prompt_hash']})" if made.get("prompt") else "",
            f"{made['items']:,}",
        )
        for stage, all_made in report["provenance"].items()
        for made in all_made
    ]
    rewritten = _share(report["rewritten"]["kept"], report["kept"])
    parts = [
        "## How it was made\n\nFor each pair one model wrote an instruction of a type drawn by "
        "hash, and the two poisoned triplets. Where the passage of the source did not meet the "
        f"instruction, the model rewrote it: {rewritten} of the kept examples. Prompts are named "
        "with the first digits of their SHA-256.",
        _table(("stage", "model", "prompt", "pairs"), rows, texts=3),
    ]
    if info.command:
        parts.append(f"The command:\n\n```bash\n{info.command}\n```")
    if info.config:
        resolved = json.dumps(info.config, indent=2, sort_keys=True, ensure_ascii=False)
        parts.append(
            "<details><summary>The resolved config</summary>\n\n"
            f"```json\n{resolved}\n```\n\n</details>"
        )
    return "\n\n".join(parts)


def _validation(report: dict[str, Any]) -> str:
    if not report["relevance"]:
        return "## Validation\n\nNo judge has seen these examples."
    shares = {
        (judge, row["query"], row["passage"]): f"{row['share']:.1%} of {row['judged']:,}"
        for judge, rows in report["relevance"].items()
        for row in rows
    }
    rows = [
        (
            f"({query}, {passage})",
            *(shares.get((judge, query, passage), "") for judge in report["relevance"]),
            "relevant" if n == m else "not relevant",
        )
        for n, query in enumerate(INSTRUCTED_QUERIES)
        for m, passage in enumerate(PASSAGES)
    ]
    text = (
        "## Validation\n\nA judge model decided for the combinations of instructed queries and "
        "passages whether the passage is relevant; an example is kept only where all its answers "
        "are as they must be. Judged relevant, kept or not:"
    )
    parts = [text, _table(("combination", *report["relevance"], "must be"), rows)]
    if report["agreement"]:
        both = report["agreement"]
        kappa = "undefined" if both["kappa"] is None else f"{both['kappa']:.3f}"
        parts.append(
            f"Two judges agree in {both['agreement']:.1%} of {both['judged']:,} combinations, "
            f"Cohen's kappa {kappa}."
        )
    reviewed = report["review"]
    if reviewed:
        accept, reject, over = (
            reviewed.get(v, 0) for v in ("accept", "reject", "accept_over_drop")
        )
        brought = f", {over:,} of them against a judge or the score" if over else ""
        parts.append(
            f"A human has looked at {accept + over + reject:,} examples: {accept + over:,} accepted"
            f"{brought}, {reject:,} rejected and dropped."
        )
    return "\n\n".join(parts)


def _counts(report: dict[str, Any]) -> str:
    rows = [("pairs", f"{report['pairs']:,}", "")]
    for stage in report["stages"]:
        name = stage["stage"]
        rows.append((f"dropped: {name}", f"{stage['dropped']:,}", ""))
        rows += [("", f"{n:,}", f"`{why}`") for why, n in report["reasons"][name].items()]
    rows.append(("**kept**", f"**{report['kept']:,}**", ""))
    types = [
        (name, f"{counts['made']:,}", f"{counts['kept']:,}")
        for name, counts in report["types"].items()
    ]
    return (
        "## Counts\n\nA pair is counted at the stage that dropped it first; the reasons below "
        "count every pair that they speak against.\n\n"
        f"{_table(('', 'pairs', 'reason'), rows)}\n\n"
        f"{_table(('instruction type', 'made', 'kept'), types)}"
    )


def _lengths(report: dict[str, Any]) -> str:
    rows = [
        (kind, f"{n['count']:,}", f"{n['mean']:.1f}", f"{n['least']:,}", f"{n['most']:,}")
        for kind, n in report["lengths"].items()
        if n["count"]
    ]
    if not rows:
        return ""
    header = ("words of a kept", "texts", "mean", "least", "most")
    return f"## Lengths\n\n{_table(header, rows)}"


def _cost(report: dict[str, Any]) -> str:
    usage = report["usage"]
    rows = [
        (
            stage,
            f"{one['requests']:,}",
            f"{one['prompt_tokens']:,}",
            f"{one['completion_tokens']:,}",
            f"{one['usd']:.4f}",
        )
        for stage, one in usage["stages"].items()
    ]
    rows.append(("**in all**", "", "", "", f"**{usage['usd']:.4f}**"))
    each = report["usd_per_kept"]
    text = "" if each is None else f"\n\nA kept example cost {each:.6f} USD."
    header = ("stage", "requests", "tokens in", "tokens out", "USD")
    return f"## Cost\n\n{_table(header, rows)}{text}"


def _limits(report: dict[str, Any]) -> str:
    notes = [
        "The texts are the models': facts in rewritten and poisoned passages are not checked "
        "against any source, and poisoned passages may be wrong on purpose. Do not read them as "
        "information.",
        "The judge is a model too, and decides alone what is relevant; see the agreement and the "
        "human review above, if there are any.",
        "Negatives are written by the same model as the positives that are rewritten, while the "
        "other positives are the source's own: style may give a passage away.",
        "The licence is that of the source; the terms of the models' providers hold beside it.",
    ]
    positive, negative = (report["lengths"][f"{name} passage"] for name in ("positive", "negative"))
    if positive["count"] and negative["count"]:
        ratio = negative["mean"] / positive["mean"]
        notes.insert(3, f"Negative passages have {ratio:.2f} times the words of positive ones.")
    return "## Known limits\n\n" + "\n".join(f"- {note}" for note in notes)


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, texts: int = 1) -> str:
    """A Markdown table; the first `texts` columns are texts, the others numbers."""
    rules = ("---",) * texts + ("---:",) * (len(header) - texts)
    lines = [header, rules, *(tuple(c.replace("|", "\\|") for c in row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
