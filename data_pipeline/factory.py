"""The triplet factory: its stages in order, each from the file of the one before.

    pairs     the source's pairs: checked, sampled, each with a type of instruction    pairs.jsonl
    generate  a model makes triplets of them                                       generated.jsonl
    filter    rules, near duplicates, texts of the evaluation                       filtered.jsonl
    judge     a model checks each relevance table                                     judged.jsonl
    score     cosines by a model of our own, where one is named                       scored.jsonl
    corpus    the human review, where there is one; one outcome a pair              outcomes.jsonl
              and what is kept, with InF-IR's field names                       corpus/train.jsonl
    report    report.json, audit.html, DATA_CARD.md
    build     the TFDS dataset inf_ir/<corpus.name>, which training reads

All but journal.sqlite is made from what is before it: any stage can be run again, at any time.
"""

STAGES = ("pairs", "generate", "filter", "judge", "score", "corpus", "report", "build")
_ASKING = ("generate", "filter", "judge")
_FILES = {
    "pairs": "pairs",
    "generate": "generated",
    "filter": "filtered",
    "judge": "judged",
    "score": "scored",
    "corpus": "outcomes",
}
