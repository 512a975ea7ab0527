"""Each pattern on an example of it, and all patterns on real texts."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.quality.phrases import BOILERPLATE, OF_PASSAGES, REFUSALS, phrases

SAMPLE = Path(__file__).parents[3] / "data_pipeline/samples/medquad/train.jsonl.gz"

# every alternative of a pattern that could go wrong on its own
FOUND = [
    ("refusal_sorry", "I'm sorry, but I can't help with medical questions."),
    ("refusal_sorry", "I apologize, but I am unable to write about this."),
    ("refusal_cannot_do_it", "Unfortunately I cannot fulfill this request."),
    ("refusal_cannot_do_it", "We are not able to provide an answer to your question."),
    ("refusal_cannot_help", "I can’t assist with that."),
    ("refusal_as_an_ai", "As an AI language model, I have no opinion on germs."),
    ("refusal_as_an_ai", "As a large language model trained by a company, I know no germs."),
    ("refusal_as_an_ai", "I'm just an AI, but vaccines train the body."),
    ("refusal_own_limits", "Nothing newer is known as of my knowledge cutoff in 2023."),
    ("refusal_german", "Es tut mir leid, aber ich kann dabei nicht helfen."),
    ("refusal_german", "Als KI-Sprachmodell kann ich keine Diagnose stellen."),
    ("refusal_french", "Je suis désolé, mais je ne peux pas répondre."),
    ("refusal_french", "En tant que modèle de langage, je n'ai pas d'avis."),
    ("refusal_spanish", "Lo siento, pero no puedo ayudar con eso."),
    ("refusal_spanish", "Como modelo de lenguaje, no puedo opinar."),
    ("refusal_chinese", "抱歉，我无法回答这个问题。"),
    ("refusal_chinese", "作为一个人工智能语言模型，我不能提供医疗建议。"),
    ("boilerplate_hard_negative", "A hard negative for the vaccine topic: bees."),
    ("boilerplate_hard_negative", "This one fits the poisoned instruction."),
    ("boilerplate_field_name", "See document_positive for how germs are met."),
    ("boilerplate_field_name", "It fits I+Q- but no other."),
    ("boilerplate_here_is", "Sure! Here's the rewritten passage: germs are met early."),
    ("boilerplate_here_is", "Here is a simple text for children. Germs are small."),
    ("boilerplate_sure", "Certainly! A vaccine shows a germ."),
    ("boilerplate_label", "**Passage:** A vaccine shows a germ."),
    ("boilerplate_label", "Rewritten passage: A vaccine shows a germ."),
    ("boilerplate_fence", "```json\nA vaccine shows a germ.\n```"),
    ("boilerplate_json", '{"passage": "A vaccine shows a germ."'),
    ("boilerplate_json", 'A vaccine shows a germ."}'),
    ("boilerplate_json", "null"),
    ("boilerplate_placeholder", "Call [your clinic] at [insert number here] first."),
    ("boilerplate_placeholder", "Dear {{ name }}, a vaccine shows a germ."),
    ("boilerplate_offer", "A vaccine shows a germ. Let me know if you would like more."),
    ("boilerplate_chat_token", "A vaccine shows a germ.<|im_end|>"),
    ("boilerplate_chat_token", "Assistant: A vaccine shows a germ."),
    ("boilerplate_the_instruction", "As the instruction demands, no medicine is named."),
    ("boilerplate_the_query", "This answers the query about vaccines."),
    ("boilerplate_the_passage", "The original passage names memory cells."),
    ("boilerplate_note", "A vaccine shows a germ.\n\n(Note: the text has been rewritten.)"),
    ("boilerplate_note", "A vaccine shows a germ. Please note that this passage is simplified."),
]


@pytest.mark.parametrize(("name", "text"), FOUND)
def test_phrase(name, text):
    assert name in list(phrases(text, passage=True))
    # the source speaks like that too: no fault
    assert name not in list(phrases(text, passage=True, source=f"{text}"))
    only_in_passages = name.removeprefix("boilerplate_") in OF_PASSAGES
    assert (name in list(phrases(text, passage=False))) == (not only_in_passages)


def test_every_pattern_is_tested():
    names = {f"refusal_{name}" for name in REFUSALS}
    names |= {f"boilerplate_{name}" for name in (*BOILERPLATE, *OF_PASSAGES)}
    assert names == {name for name, _ in FOUND}


@pytest.mark.parametrize(
    "text",
    [
        'He said: "I can\'t help but notice that you are sorry."',
        "She was sorry for being late. I cannot say the same of her brother.",
        "As an AI researcher, she works on language models.",
        "It serves as a language model. As an AI assistant, it answers callers.",
        "Künstliche Intelligenz ist ein Gebiet der Informatik, als KI bekannt.",
        "作为人工智能的一个分支，机器学习研究算法。",
        "The processor's instruction set is small. It acted on the instruction of the court.",
        "Note that the immune response is weaker in old age. Follow the instructions on the label.",
        "The passage of time and the nasal passage are two matters.",
        "Of course, here is where the trouble begins.",
        "My programming skills are poor. See [1] and [link](x) for the rest.",
        'An array is written [1, 2, 3], a set {1, 2}; quotes are "so".',
    ],
)
def test_no_phrase(text):
    assert list(phrases(text, passage=True)) == []


def sample(field):
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)[field] for line in file]
    assert len(texts) > 8000
    return texts


def test_no_phrase_in_real_passages():
    # every fourth: all of them are a matter of seconds
    answers = sample("answer")[::4]
    assert Counter(name for text in answers for name in phrases(text, passage=True)) == {}


def test_no_phrase_in_real_questions():
    questions = sample("question")
    assert Counter(name for text in questions for name in phrases(text, passage=False)) == {}
