"""Patterns of unusable model output: refusals, prompt leftovers.

The patterns match no passage, question or instruction of MedQuAD, PubMedQA, NevIR and CondaQA
(tests/data_pipeline/quality/test_phrases.py checks MedQuAD).
"""

import re
from collections.abc import Iterator

_CANNOT = r"(?:can(?:no|['’])t|can not|won['’]t|will not|(?:am|are) (?:not able|unable) to)"
_HELP = r"(?:help|assist|comply|fulfil+|provide|generate|create|produce|write|answer|complete|do)"
_MODEL = (
    r"an? (?:AI|artificial intelligence|(?:large )?language model)"
    r"(?: (?:\w+ )?(?:model|assistant))?"
)
_RESULT = (
    r"(?:passage|text|document|rewrite|rewriting|version|answer|response|output|query|instruction)"
)

# name -> pattern, matched regardless of case; ^ is the beginning of the text.
REFUSALS = {
    "sorry": rf"^[^\n]{{0,60}}?\b(?:sorry|apologi[sz]e)\W+(?:but|however)?\W*(?:I|we) {_CANNOT}\b",
    "cannot_do_it": rf"\b(?:I|we) {_CANNOT} {_HELP} (?:\w+ ){{0,3}}(?:this|that|your|the)\b"
    r"(?: \w+){0,2} (?:request|task|content|instructions?|prompt|query|question)\b",
    "cannot_help": rf"\bI {_CANNOT} (?:help|assist)(?: you)? with (?:this|that)\b",
    "as_an_ai": rf"\bas {_MODEL}(?:,| (?:developed|created|trained)\b)[^.\n]{{0,60}}?\bI\b|"
    rf"\bI(?: am|['’]m) (?:just |only )?{_MODEL}[,.;]",
    "own_limits": r"\bmy (?:training data|knowledge cut-?off|safety guidelines|content policy)\b|"
    r"\bagainst my (?:programming|guidelines)\b|\bthe data I was trained on\b",
    "german": r"\bals (?:großes )?(?:KI|Sprachmodell|künstliche Intelligenz)(?:-\w+)?,? "
    r"(?:kann|habe|bin)\b|^[^\n]{0,30}\btut mir leid, (?:aber )?(?:ich|das|dabei) kann\b",
    "french": r"\ben tant qu(?:['’](?:IA|intelligence artificielle)|e modèle de langage)\b|"
    r"^[^\n]{0,30}\bdésolée?, (?:mais )?je ne (?:peux|suis) pas\b",
    "spanish": r"\bcomo (?:una? )?(?:IA|inteligencia artificial|modelo de lenguaje),? "
    r"no (?:puedo|tengo)\b|^[^\n]{0,30}\blo siento, (?:pero )?no puedo\b",
    "chinese": r"作为(?:一个|一名)?(?:AI|人工智能)?(?:大?(?:语言)?模型|助手)?[，,]?"
    r"我(?:无法|不能|没有)|"
    r"^.{0,10}(?:抱歉|对不起)[，,]?(?:但是?)?我(?:无法|不能)",
}

BOILERPLATE = {
    "hard_negative": rf"\bhard[- ]negatives?\b|\bpoisoned (?:{_RESULT}s?|queries)\b",
    "field_name": r"\b(?:document|query|instruction)_(?:positive|negative)\b|"
    r"\bhard_negative_document|\bI[+-]Q[+-]|\binstruction_type\b",
    "here_is": r"^\W*(?:(?:sure|certainly|absolutely|of course|okay|great)\b\W+)?"
    rf"(?:here(?:['’]s| is| are)|below is) (?:the|a|an|your|my|one) (?:[\w-]+ ){{0,4}}{_RESULT}\b",
    "sure": r"^\W*(?:sure|certainly|absolutely)[,!]",
    "label": r"^\W*(?:(?:rewritten|revised|positive|negative|final|generated|poisoned) )?"
    r"(?:passage|document|instruction|query|output|response|rewrite)\W{0,3}:",
    "fence": r"```|~~~",
    "json": r"^\s*[{\[]\s*\"\w+\"\s*[:,]|\"[a-z_]+\"\s*:\s*[\"{\[]|\"\s*[}\]]+\s*$|^null$",
    "placeholder": r"\[(?:insert|your|add|enter|fill|placeholder|name of|company|city|date|link)\b"
    r"[^\]\n]{0,60}\](?!\()|<(?:insert|your|placeholder|add)\b[^>\n]{0,60}>|"
    r"\{\{\s*\w+\s*\}\}|\blorem ipsum\b",
    "offer": r"\b(?:I hope (?:this|that|it) helps|let me know (?:if|whether) you"
    r"(?:['’]d| would| want| need| have)|feel free to ask|would you like me to)\b",
    "chat_token": r"<\|\w+\|>|\[/?INST\]|</?(?:s|think|answer|assistant|system|user)>|"
    r"^\W*(?:assistant|system|user)\s*:",
}

# In passages only: an instruction may refer to the passage that it asks for.
OF_PASSAGES = {
    "the_instruction": r"\b(?:this|the|your|given|poisoned|positive|negative) instruction\b"
    r"(?! (?:of|set|manual|sheet|book|cycle|pointer|cache|pipeline)\b)",
    "the_query": r"\b(?:this|the|given|positive|negative|user['’]s) query\b",
    "the_passage": r"\b(?:this|the (?:above|given|following|original|rewritten|source)) passage\b"
    r"(?! of\b)|\bthis (?:rewrite|rewritten|version of the (?:passage|text))\b",
    "note": r"(?:^|[\n.!?)\]*])[\s(\[*_]*(?:please )?note\b[^\n]*\b(?:rewritten|rewrite|fictional|"
    r"(?:this|the)(?: \w+)? (?:passage|text|document)(?! of\b))[^\n]*$",
}

_TABLES = (("refusal", REFUSALS, False), ("boilerplate", BOILERPLATE, False))
_TABLES += (("boilerplate", OF_PASSAGES, True),)
_PATTERNS = [
    (f"{kind}_{name}", re.compile(pattern, re.IGNORECASE), passages_only)
    for kind, table, passages_only in _TABLES
    for name, pattern in table.items()
]


def phrases(text: str, *, passage: bool, source: str = "") -> Iterator[str]:
    """Yields the patterns that match, as `refusal_<name>` or `boilerplate_<name>`.

    Args:
      text: a generated text.
      passage: whether it is a passage rather than a query or an instruction.
      source: the text it was generated from; patterns that match it too are ignored (a corpus about
        databases mentions queries, one about programming has code fences).
    """
    for name, pattern, passages_only in _PATTERNS:
        if (passage or not passages_only) and pattern.search(text) and not pattern.search(source):
            yield name
