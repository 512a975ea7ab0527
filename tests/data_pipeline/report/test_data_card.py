"""The data card, parsed by huggingface_hub."""

import re

from huggingface_hub import DatasetCard

from data_pipeline.report.data_card import CardInfo, data_card, write_data_card
from data_pipeline.report.summary import summarise
from tests.data_pipeline.factory_items import USAGE, corpus, made

INFO = CardInfo(
    name='My "corpus": no. 1',
    source="[MedQuAD](https://github.com/abachaa/MedQuAD).",
    licence="cc-by-4.0",
    languages=("en", "no"),
    config={"seed": 7, "llm": {"mode": "batch"}},
    command="python -m data_pipeline.run --config=configs/x.py",
    files={"train": "corpus/train.jsonl", "dev": "corpus/dev.jsonl"},
)


def test_front_matter(tmp_path):
    report = summarise(corpus(), USAGE, pairs_report={})
    write_data_card(tmp_path / "DATA_CARD.md", report, INFO)
    data = DatasetCard.load(tmp_path / "DATA_CARD.md").data.to_dict()
    assert data["pretty_name"] == INFO.name
    assert data["license"] == "cc-by-4.0"
    assert data["task_categories"] == ["text-retrieval"]
    assert data["size_categories"] == ["n<1K"]
    assert data["language"] == ["en", "no"]  # and not the YAML of "no"
    [config] = data["configs"]
    assert config["data_files"] == [
        {"split": "train", "path": "corpus/train.jsonl"},
        {"split": "dev", "path": "corpus/dev.jsonl"},
    ]


def test_size_categories():
    report = summarise([made("a")], USAGE, pairs_report={})
    sizes = {999: "n<1K", 1000: "1K<n<10K", 38_000: "10K<n<100K", 500_000: "100K<n<1M"}
    for kept, size in (sizes | {10**6: "n>1M"}).items():
        card = DatasetCard(data_card(report | {"kept": kept}, INFO))
        assert card.data.size_categories == [size]


def test_contents():
    report = summarise(corpus(), USAGE, pairs_report={"read": 1234})
    text = data_card(report, INFO)
    for line in (
        "| generate | gpt-4o-mini | generate_v1 | 0123456789ab | 7 |",
        "| I+Q+ \\| P-1 | 16.7% of 6 | 33.3% of 3 | 0% |",
        "| dropped: filter | 1 | 12.5% |",
        "| `I+Q+\\|P-1` | 1 | 12.5% |",
        "| **kept** | **2** | **25.0%** |",
        "| audience | 5 | 1 |",
        "| judge: o3-mini, batch | 90 | 90 | 50,000 | 8,000 | 0.5000 |",
        "| per kept example |  |  |  |  | 0.375000 |",
        '  "read": 1234',
        '    "mode": "batch"',
        "--path-train=corpus/train.jsonl --path-dev=corpus/dev.jsonl --data-dir=out/data",
        "- Negative passages have 0.72 times the words of positive ones.",
    ):
        assert line in text.splitlines() or line in text, line
    assert re.search(
        r"Two judges agree in 96\.3% of 27 combinations, Cohen's kappa 0\.9\d\d\.", text
    )
    for match in re.finditer(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in match[0].splitlines()}
        assert len(columns) == 1  # every row of a table has its columns


def test_human_review():
    items = corpus()
    items[0].provenance["review"] = {"verdict": "accept", "note": "secret note"}
    items[1].provenance["review"] = {"verdict": "accept", "note": "", "overrides": "judge:x"}
    items[7].provenance["review"] = {"verdict": "reject", "note": ""}
    report = summarise(items, USAGE, pairs_report={})
    assert report["review"] == {"accept": 1, "accept_over_drop": 1, "reject": 1}
    text = data_card(report, INFO)
    assert (
        "A human has reviewed 3 examples: 2 accepted, 1 of them against a judge or the score, "
        "1 rejected and dropped."
    ) in text
    assert "secret note" not in text


def test_nothing_known():
    report = summarise([], USAGE, pairs_report={})
    text = data_card(report, CardInfo(name="empty", source="Nowhere."))
    data = DatasetCard(text).data.to_dict()
    assert data["license"] == "unknown"
    assert "language" not in data
    assert "No judge has seen these examples." in text
