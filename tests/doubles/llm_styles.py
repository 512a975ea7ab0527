"""Texts that the local server's model writes and recognises: styles per instruction type, topics.

A style is an instruction in several wordings, a function that turns sentences into a passage that
meets it, and the form by which a judge recognises such a passage from its text alone.
"""

import dataclasses
import re
from collections.abc import Callable

Sentences = list[str]


@dataclasses.dataclass(frozen=True)
class Style:
    """One style of passage that an instruction can ask for.

    Attributes:
      instructions: its wordings.
      label: the beginning of each of its passages, {} is the topic; "" for unlabelled passages.
      write: sentences -> text after the label.
      form: pattern that the whole passage must match as well.
    """

    instructions: tuple[str, ...]
    label: str
    write: Callable[[Sentences], str]
    form: str = ""

    def passage(self, topic: str, sentences: Sentences) -> str:
        """The passage about a topic."""
        label = self.label.format(topic)
        return f"{label} {self.write(sentences)}".strip()

    def fits(self, passage: str) -> bool:
        """Whether a passage has this form."""
        if not self.label:
            return not LABELLED.match(passage)
        start = self.label.split("{}")[0]
        return passage.startswith(start) and re.search(self.form, passage, re.DOTALL) is not None


def _words(text: str, most: int) -> str:
    words = text.rstrip(".!? ").split()
    return " ".join(words[:most]) + "."


def _plain(sentences: Sentences) -> str:
    return " ".join(sentences)


def _short(sentences: Sentences) -> str:
    return " ".join(_words(s, 10) for s in sentences[:3])


def _steps(sentences: Sentences) -> str:
    return " ".join(f"Step {n}. {s}" for n, s in enumerate(sentences[:5], 1))


def _bullets(sentences: Sentences) -> str:
    return "\n".join(["", *(f"- {s.rstrip('.')}" for s in sentences[:5])])


def _dialogue(sentences: Sentences) -> str:
    parts = [f"A: {s} B: And then?" for s in sentences[:3]]
    return " ".join(parts) + " A: That is all."


def _table(sentences: Sentences) -> str:
    rows = [f"| {n} | {_words(s, 14)} |" for n, s in enumerate(sentences[:5], 1)]
    return "\n".join(["", "| no | fact |", *rows])


def _without(pattern: str) -> Callable[[Sentences], str]:
    def write(sentences: Sentences) -> str:
        return re.sub(r"\s+", " ", re.sub(pattern, "", " ".join(sentences))).strip()

    return write


def _ending(end: str) -> Callable[[Sentences], str]:
    return lambda sentences: f"{' '.join(sentences[:6])} {end}"


def _before(start: str) -> Callable[[Sentences], str]:
    return lambda sentences: " ".join(f"{start} {_words(s, 16)}" for s in sentences[:3])


# fmt: off
STYLES: dict[str, tuple[Style, ...]] = {
    "audience": (
        Style(("Explain it so that a child in primary school understands.",
               "Keep it simple enough for a ten-year-old."),
              "For children, about {}:", _short),
        Style(("Write for specialists in the field.", "The reader is an expert and wants detail."),
              "For specialists, concerning {}:", _ending("See the literature for methods.")),
        Style(("Address a nurse on the ward.", "It should help nursing staff at work."),
              "For nursing staff, on {}:", _ending("Note it in the chart.")),
        Style(("Write it for an investor.", "I read this as somebody who puts money into it."),
              "For investors, regarding {}:", _ending("Weigh the costs.")),
    ),
    "format": (
        Style(("Give the answer as numbered steps.", "Number the steps one by one."),
              "Steps for {}:", _steps, r"Step 1\."),
        Style(("Use a list of bullet points.", "I would like bullet points, no prose."),
              "Points on {}:", _bullets, r"\n- "),
        Style(("Write it as a dialogue of two people.", "Let two speakers talk it over."),
              "Conversation about {}:", _dialogue, r"B: And then\?"),
        Style(("Put it into a table.", "A table with one fact a row, please."),
              "Table of {}:", _table, r"\n\| 1 \|"),
        Style(("Plain running text without lists or headings.",
               "Continuous prose as in an encyclopedia."), "", _plain),
    ),
    "length": (
        Style(("Answer in a single sentence.", "One sentence has to be enough."),
              "In short, {}:", lambda s: _words(s[0], 24)),
        Style(("Sum it up in two sentences.", "Two sentences at the most."),
              "Briefly on {}:", lambda s: " ".join(_words(x, 18) for x in s[:2])),
        Style(("Treat it at length, in several paragraphs.", "I want the long version."),
              "At length on {}:", _ending("\n\nMore on the same follows from these facts.")),
        Style(("A paragraph of the usual length will do.", "Neither very short nor very long."),
              "", _plain),
    ),
    "exclusion": (
        Style(("Leave out all numbers.", "There must be no figures in it."),
              "Without numbers, on {}:", _without(r"\d[\d.,%]*"), r"^\D*$"),
        Style(("Do not use anything in brackets.", "No remarks in parentheses."),
              "Without brackets, on {}:", _without(r"[()\[\]]"), r"^[^()\[\]]*$"),
        Style(("Say nothing of causes.", "Exclude what brings it about."),
              "Leaving out causes, on {}:", _without(r"(?i)\b(because|causes?|caused)\b")),
        Style(("Do not name any persons or institutions.", "No names of organisations in it."),
              "Without names, on {}:", _without(r"\b[A-Z]{2,}\b")),
    ),
    "negation": (
        Style(("Only what has been shown not to work.", "Tell what does not help."),
              "What fails with {}:", _before("It does not help that")),
        Style(("What is commonly believed but wrong?", "Only misconceptions."),
              "Myths about {}:", _before("It is not true that")),
        Style(("Say what it is not to be confused with.", "Only what it is not."),
              "What is not {}:", _before("It differs from this:")),
        Style(("Cases in which it did not happen.", "Only where it never occurred."),
              "Absent cases of {}:", _before("It never occurred that")),
    ),
    "perspective": (
        Style(("From the point of view of a parent.", "As a mother or father sees it."),
              "As parents of someone with {} say:", _before("We saw it ourselves:")),
        Style(("As a critic would put it.", "From a sceptic's point of view."),
              "Critics of {} object:", _before("It is doubtful whether")),
        Style(("As people saw it a hundred years ago.", "From a historical point of view."),
              "A century ago, of {}, one wrote:", _before("In those days it was held that")),
        Style(("In the first person, by someone concerned.", "As one who lives with it tells it."),
              "My own story of {}:", _before("I learned that")),
    ),
    "domain": (
        Style(("Only the legal side of it.", "What the law says about it."),
              "Legally, {}:", _ending("The courts decide the rest.")),
        Style(("From the field of economics.", "What it means for an economy."),
              "Economically, {}:", _ending("Markets price it in.")),
        Style(("Restrict it to chemistry.", "The chemist's knowledge of it only."),
              "Chemically, {}:", _ending("The reaction is well known.")),
        Style(("Statistics only.", "What the statistician knows of it."),
              "Statistically, {}:", _ending("The sample was large.")),
    ),
}
# fmt: on

BY_INSTRUCTION = {
    text: style for styles in STYLES.values() for style in styles for text in style.instructions
}
LABELLED = re.compile(
    "|".join(
        re.escape(s.label.split("{}")[0]) for styles in STYLES.values() for s in styles if s.label
    )
)

# Topics for poisoned queries: a word and facts about it.
TOPICS: dict[str, Sentences] = {
    "asthma": ["Attacks narrow the airways.", "Wheezing and a tight chest are typical of them."],
    "gout": ["Crystals of uric acid settle in a joint.", "The big toe swells and hurts at night."],
    "scurvy": ["The body lacks vitamin C for months.", "Gums bleed and old wounds open again."],
    "migraine": ["One side of the head throbs for hours.", "Light and noise make it worse."],
    "eczema": ["The skin is dry, red and itches.", "Creams with fat bring relief."],
    "malaria": ["A mosquito carries the parasite.", "Fever returns every second or third day."],
    "measles": ["The virus spreads through the air.", "A rash follows after a few days of fever."],
    "rickets": ["Bones stay soft in growing children.", "Sunlight and fish oil prevent it."],
    "glaucoma": ["Pressure damages the optic nerve.", "Sight is lost from the edges inwards."],
    "anaemia": ["The blood carries too little iron.", "People feel tired and look pale."],
    "shingles": ["An old virus wakes up in a nerve.", "Blisters form on one side of the body."],
    "cholera": ["Dirty water carries the germ.", "Salt and sugar in clean water save lives."],
    "lighthouse": ["A lamp warns ships off the rocks.", "Each one has a rhythm of its own."],
    "copper": ["The metal conducts heat very well.", "Roofs made from it turn green."],
    "glacier": ["Snow is pressed into ice over decades.", "It creeps down the valley."],
    "compost": ["Leaves and peelings rot in a heap.", "Worms turn them into dark soil."],
    "violin": ["Four strings are tuned in fifths.", "Spruce makes the front of the body."],
    "harbour": ["Walls keep the waves out.", "Cranes lift the cargo onto the quay."],
    "sourdough": ["Wild yeast raises the loaf.", "The starter is fed with flour each day."],
    "tunnel": ["A shield holds the ground while digging.", "Concrete rings line the walls."],
    "beetle": ["Hard covers protect the wings.", "The larvae feed on dead wood."],
    "mortgage": ["The house secures the loan.", "The rate is fixed for some years."],
    "tariff": ["A duty makes imports dearer.", "The state collects it at the border."],
    "comet": ["Ice turns to gas near the sun.", "The tail points away from it."],
}
