"""Examples by keywords: what an instruction names, what it is poisoned with, and that order is
without effect."""

import random
import re
from pathlib import Path

import pytest

from data_pipeline.quality.rules import Limits, validate
from data_pipeline.sources import medquad
from data_pipeline.sources.training.keywords import INSTRUCTIONS, keyword_examples
from inf_jax.core.errors import UserError
from inf_jax.data.records import FIELDS, Example

TOPICS = ["newborns", "surgery", "chromosome", "prognosis"]


def corpus(queries=20):
    """Each query has a passage on every topic, some after the question that they answer."""
    examples = []
    for number in range(queries):
        name = f"Disease {'abcdefghijklmnopqrst'[number]}{number % 5}"
        for place, topic in enumerate(TOPICS):
            lead = f"What about the {topic} of {name}? " if place == 1 else ""
            text = f"{lead}Here is what is known of the {topic} in those with {name} by now."
            other = TOPICS[place - 1]
            examples.append(
                Example(f"{number}-{place}", name, f"{topic}?", text, f"{other}?", other, "", "")
            )
    return examples


def named(text):
    return [topic for topic in TOPICS if re.search(rf"\b{topic}\b", text)]


@pytest.fixture(scope="module")
def made():
    # words of 20 of 80 passages are too frequent; 40 queries without them make the corpus larger
    others = [
        Example(
            f"o{n}", f"Other {n}", "a?", f"Nothing at all of interest here {n}", "b?", "", "", ""
        )
        for n in range(120)
    ]
    examples = corpus() + others
    similar = {
        e.query_positive: [f"Disease {'tsrqponmlkjihgfedcba'[n % 20]}"]
        for n, e in enumerate(examples)
    }
    similar |= {"Disease a0": ["Other 1", "Disease c2", "Disease b1"]}
    return examples, list(keyword_examples(examples, similar=similar.__getitem__)), similar


def test_instructions_name_words_of_their_passage_alone(made):
    examples, found, _ = made
    assert len(found) == 80
    queries = {e.query_positive: [] for e in examples}
    for e in examples:
        queries[e.query_positive].append(e.document_positive)
    for e in found:
        (topic,) = named(e.document_positive)
        assert named(e.instruction_positive) == [topic]
        (wrong,) = named(e.hard_negative_document_1)
        assert named(e.instruction_negative) == [wrong] != [topic]
        assert "?" not in e.document_positive  # without the question that gives it away
        assert any(e.document_positive in text for text in queries[e.query_positive])
        assert any(e.hard_negative_document_1 in text for text in queries[e.query_positive])
        assert e.query_negative != e.query_positive
        assert named(e.hard_negative_document_2) == [topic]
        assert e.query_negative in e.hard_negative_document_2
    assert len({e.instruction_positive for e in found}) > 20
    assert {e.query_negative for e in found if e.query_positive == "Disease a0"} == {"Disease c2"}


def test_order_is_without_effect(made):
    examples, found, similar = made
    mixed = random.Random(0).sample(examples, len(examples))
    assert list(keyword_examples(mixed, similar=similar.__getitem__)) == found


def test_medquad_with_keywords_passes_the_rules():
    path = Path(medquad.__file__).parents[1] / "samples" / "medquad" / "dev.jsonl.gz"
    plain = list(medquad.read(path))
    both = list(medquad.read(path, keyword_instructions=True))
    assert both[: len(plain)] == plain
    more = both[len(plain) :]
    assert 0.4 * len(plain) < len(more) < 0.6 * len(plain)
    assert {e.id for e in more} <= {f"{e.id}/keywords" for e in plain}
    assert {e.query_positive for e in more} <= {e.query_positive for e in plain}
    limits = Limits(document_words=(8, 10_000))
    assert sum(validate(e, limits=limits).keep for e in more) > 0.99 * len(more)
    assert len({e.instruction_positive for e in more}) > 250
    starts = [template.partition("{}")[0] for template in INSTRUCTIONS]
    assert all(any(e.instruction_positive.startswith(s) for s in starts) for e in more)
    assert all(getattr(e, name) for e in more for name in FIELDS[:5])


def test_build_with_keywords(tmp_path):
    from data_pipeline.dataset.build import build
    from tests.data_pipeline.dataset.test_build import SAMPLES, examples_of

    inputs = {"path_train": SAMPLES / "dev.jsonl.gz", "dev_fraction": 0.1}
    final, _ = build("medquad", tmp_path, **inputs, options={"keyword_instructions": True})
    train, dev = (examples_of(final, split) for split in ("train", "dev"))
    keywords = [e for e in train if e.id.endswith("/keywords")]
    assert 0.25 * len(train) < len(keywords) < 0.4 * len(train)
    assert not [e for e in dev if e.id.endswith("/keywords")]
    assert not {e.query_positive for e in train} & {e.query_positive for e in dev}
    with pytest.raises(UserError, match="built with other"):
        build("medquad", tmp_path, **inputs)
