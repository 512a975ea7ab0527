"""Negatives and teacher scores of public formats are read, and wrong ones refused."""

import json
from collections import Counter

import pytest

from data_pipeline.sources import fields, msmarco
from data_pipeline.sources.pair_readers import read_pairs
from data_pipeline.sources.training import synthetic
from inf_jax.core.errors import UserError

TEVATRON = {
    "query_id": "1",
    "query": "q",
    "positive_passages": [{"docid": "7", "title": "T", "text": "p"}, {"docid": "8", "text": "p2"}],
    "negative_passages": [{"docid": "9", "title": "", "text": "n"}],
}
DPR = {
    "question": "q",
    "answers": ["a"],
    "positive_ctxs": [{"title": "T", "text": "p", "score": 1000, "passage_id": "1"}],
    "negative_ctxs": [{"title": "", "text": "random"}],
    "hard_negative_ctxs": [{"title": "N", "text": "n", "score": 9.5}],
}
FLAG = {
    "query": "q",
    "pos": ["p", "p2"],
    "neg": ["n", "n2"],
    "pos_scores": [3.5, 2],
    "neg_scores": [-1, 0.5],
    "prompt": "find it",
}
PROMPTRIEVER = TEVATRON | {
    "query": "q i",
    "only_query": "q",
    "only_instruction": "i",
    "has_instruction": True,
    "new_negatives": [
        {"docid": "7_1", "explanation": "why it is one", "followir_score": 0.01, "text": "new"}
    ],
}
UNSCORED = {"pos_scores": None, "neg_scores": None}
N = {"negative_1": "n", "negative_2": "n2"}
CASES = {
    "tevatron": (TEVATRON, None, [("q", "T\np", ("n",), ()), ("q", "p2", ("n",), ())]),
    "promptriever": (
        PROMPTRIEVER,
        None,
        [("q", "T\np", ("new", "n"), ()), ("q", "p2", ("new", "n"), ())],
    ),
    "promptriever's row without instruction": (
        PROMPTRIEVER | {"query": "q", "only_instruction": "", "new_negatives": []},
        None,
        [("q", "T\np", ("n",), ()), ("q", "p2", ("n",), ())],
    ),
    "dpr": (DPR, None, [("q", "T\np", ("N\nn",), ())]),
    "dpr all negatives": (
        DPR,
        {"query": "question", "passage": "positive_ctxs", "negatives": "negative_ctxs"},
        [("q", "T\np", ("random",), ())],
    ),
    "flag_embedding": (
        FLAG,
        None,
        [("q", "p", ("n", "n2"), (3.5, -1, 0.5)), ("q", "p2", ("n", "n2"), (2, -1, 0.5))],
    ),
    "flag_embedding without scores": (
        FLAG | {"pos_scores": None, "neg_scores": None, "pos": ["p"]},
        None,
        [("q", "p", ("n", "n2"), ())],
    ),
    "pair": ({"anchor": "q", "positive": "p"}, None, [("q", "p", (), ())]),
    "triplet": (
        {"anchor": "q", "positive": "p", "negative": "n"},
        None,
        [("q", "p", ("n",), ())],
    ),
    "n-tuple": (
        {"query": "q", "positive": "p", **{f"negative_{n}": f"n{n}" for n in (10, 2, 1)}},
        None,
        [("q", "p", ("n1", "n2", "n10"), ())],
    ),
    "margin": (
        {"query": "q", "positive": "p", "negative": "n", "score": 2.5},
        None,
        [("q", "p", ("n",), (0, -2.5))],
    ),
    "gpl": (
        {"query": "q", "pos": "p", "neg": "n", "qp": 3.0, "qn": 1.0, "margin": 2.0},
        None,
        [("q", "p", ("n",), (0, -2))],
    ),
    "margins": (
        {"query": "q", "positive": "p", "negative_1": "n", "negative_2": "n2", "label": [2, 3]},
        {"query": "query", "passage": "positive", "negatives": "negative_*", "margins": "label"},
        [("q", "p", ("n", "n2"), (0, -2, -3))],
    ),
    "scores": (
        {"query": "q", "passage": "p", "negatives": ["n"], "scores": [1, 0.25]},
        None,
        [("q", "p", ("n",), (1, 0.25))],
    ),
    "score": ({"query": "q", "answer": "p", "score": 4}, None, [("q", "p", (), (4,))]),
    "texts of numbers": (
        {"query": "q", "document": "p", "negatives": ["n"]}
        | {"document_score": "0.87", "negative_scores": ["-1e-1"]},
        None,
        [("q", "p", ("n",), (0.87, -0.1))],
    ),
    "our own names": (
        {"query": "q", "passage": "p", "negatives": ["n"]}
        | {"passage_scores": 2, "negative_scores": [1]},
        None,
        [("q", "p", ("n",), (2, 1))],
    ),
    "our own margins": (
        {"query": "q", "passage": "p", "negatives": ["n", "n2"], "margins": [2, 3]},
        None,
        [("q", "p", ("n", "n2"), (0, -2, -3))],
    ),
    "a list of scores": (
        {"anchor": "q", "positive": "p", **N, "score": [9, 0.5, 0.25]},
        None,
        [("q", "p", ("n", "n2"), (9, 0.5, 0.25))],
    ),
    "a list of margins": (
        {"anchor": "q", "positive": "p", **N, "label": [0.5, 0.25]},
        None,
        [("q", "p", ("n", "n2"), (0, -0.5, -0.25))],
    ),
    "a list of labels": (
        {"query": "q", "answer": ["a", "p", "b"], "labels": [0, 1, 0]},
        None,
        [("q", "p", ("a", "b"), ())],
    ),
    "labels by name": (
        {"query": "q", "texts": ["a", "p"], "relevant": [False, True], "neg": ["n"]},
        {"query": "query", "passage": "texts", "labels": "relevant", "negatives": "neg"},
        [("q", "p", ("a", "n"), ())],
    ),
    "one negative and numbered ones": (
        {"anchor": "q", "positive": "p", "negative": "n0", **N},
        None,
        [("q", "p", ("n0", "n", "n2"), ())],
    ),
    "hard negatives": (
        {"anchor": "q", "positive": "p", "hard_negative_1": "n", "hard_negative_2": "n2"},
        None,
        [("q", "p", ("n", "n2"), ())],
    ),
    "hard negatives by other names": (
        {"anchor": "q", "positive": "p", "hard_neg_1": "n", "hard_neg_2": "n2"},
        None,
        [("q", "p", ("n", "n2"), ())],
    ),
    "a null negative beside numbered ones": (
        {"anchor": "q", "positive": "p", "negative": None, "negative1": "n", "negative2": "n2"},
        None,
        [("q", "p", ("n", "n2"), ())],
    ),
    "a title": (
        {"query": "q", "title": "T", "passage": "p", "negatives": [{"title": "N", "text": "n"}]},
        None,
        [("q", "T\np", ("N\nn",), ())],
    ),
    "a title that negatives lack": (
        {"query": "q", "title": "T", "passage": "p", "negatives": ["n"]},
        None,
        [("q", "p", ("n",), ())],
    ),
    "a question's title": (
        {"question": "q", "title": "T", "answer": "p"},
        None,
        [("q", "p", (), ())],
    ),
    "mmarco": (
        {"query": "q", "pos_text": "p", "negs_text": ["n"], "pos_score": 0.9, "negs_score": [0.1]},
        None,
        [("q", "p", ("n",), (0.9, 0.1))],
    ),
}


def read(path, row, names):
    path.write_text(json.dumps(row) + "\n")
    return list(fields.read(path, fields=names))


@pytest.mark.parametrize("name", CASES)
def test_public_rows(tmp_path, name):
    row, names, expected = CASES[name]
    found = read(tmp_path / "rows.jsonl", row, names)
    assert [(p.query, p.passage, p.negatives, p.scores) for p in found] == expected


def test_an_instruction(tmp_path):
    names = {"query": "query", "passage": "pos", "instruction": "prompt", "negatives": "neg"}
    assert {p.instruction for p in read(tmp_path / "rows.jsonl", FLAG, names)} == {"find it"}
    assert {p.instruction for p in read(tmp_path / "rows.jsonl", FLAG, None)} == {"find it"}
    assert {p.instruction for p in read(tmp_path / "rows.jsonl", PROMPTRIEVER, None)} == {"i"}
    row = {"query": "q", "instruction": "i", "passage": "p", "prompt": "another one"}
    assert [p.instruction for p in read(tmp_path / "rows.jsonl", row, None)] == ["i"]


@pytest.mark.parametrize(
    "change, names, message",
    [
        ({"neg_scores": [1]}, None, "'neg_scores' has 1 scores, expected 2"),
        ({"pos_scores": [1]}, None, "'pos_scores' has 1 scores, expected 2"),
        ({"neg_scores": None}, None, "has passage_scores but no negative_scores"),
        ({"neg_scores": [1, float("nan")]}, None, "'neg_scores' holds nan, expected a finite"),
        ({"neg_scores": [1, "two"]}, None, "'neg_scores' holds 'two', expected a finite number"),
        ({"neg_scores": [1, -1e39]}, None, "'neg_scores' holds -1e.39, expected a finite number"),
        ({"neg_scores": [1, 10**400]}, None, "'neg_scores' holds 10000.*, expected a finite"),
        ({"scores": [1, 2]}, None, "has scores and passage_scores and negative_scores"),
        ({"scores": [1, 2], **UNSCORED}, None, "'scores' has scores for one passage, but .* has 2"),
        ({"margins": [1, 2], **UNSCORED}, None, "'margins' has margins for one passage"),
        ({"pos": ["p"], "scores": [1, 2], **UNSCORED}, None, "'scores' has 2 scores, expected 3"),
        ({"score": [1, 2], **UNSCORED}, None, "what field 'score', .1, 2., says is not clear"),
        ({"labels": [1, 0], **UNSCORED}, None, "what field 'labels', .1, 0., says is not clear"),
        ({"teacher_score": 3}, None, "what field 'teacher_score', 3, says is not clear"),
        ({"negatives": ["n"]}, None, "has negatives in neg and in negatives; name the field"),
        ({"neg": '["n", "n2"]'}, None, "field 'neg' holds the text '.*, which looks like a list"),
        ({"neg": ["['n', 'n2']"]}, None, "field 'neg' holds the text .*, which looks like a list"),
        (
            {"pos": '[{"text": "p"}]'},
            None,
            "field 'pos' holds the text .*, which looks like a list",
        ),
        ({"scores": True}, None, "'scores' holds True"),
        ({"neg": [3]}, None, "holds int 3, expected text"),
        ({"pos": None, "x": 1}, {"query": "query", "passage": "x"}, "holds int 1"),
        ({}, {"query": "query", "passage": "pos", "negatives": "negs"}, "no row has the field"),
        ({}, {"query": "query", "passage": "pos", "margin": "x"}, "no part 'margin'"),
    ],
)
def test_refused_rows(tmp_path, change, names, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path / "rows.jsonl", FLAG | change, names)


@pytest.mark.parametrize("name, value", [("label", 1), ("labels", [True]), ("label", 0.0)])
def test_a_label_of_one_passage(tmp_path, name, value):
    row = {"query": "q", "answer": "p", name: value}
    [pair] = read(tmp_path / "rows.jsonl", row, None)
    assert (pair.passage, pair.negatives, pair.relevant) == ("p", (), bool(value not in (0, [0])))


@pytest.mark.parametrize(
    "change",
    [
        *({"score": value} for value in (0, 1, [1], "1")),
        *({"label": 0.5}, {"label": "entailment"}, {**N, "label": [1, 0]}),
        *({"negative": "n", "label": 1}, {"neg": ["n"], "score": 0.5}),
        *({"margin": 2, "negative": "n", "score": 1.5}, {"negative_text": "n"}),
        *({name: 0} for name in ("relevance", "is_relevant", "grade", "is_duplicate", "Rating")),
        *({name: False} for name in ("is_correct", "accepted", "gold", "class")),
        *({name: ["not it"]} for name in ("neg_passages", "rejected", "distractors", "positives")),
        *({"bm25_negatives": ["没有"], "neg": ["n"]}, {"query_instruction": "find it"}),
    ],
)
def test_labels_and_scores_whose_meaning_is_not_clear(tmp_path, change):
    row = {"query": "q", "passage": "p", **change}
    with pytest.raises(UserError, match=r"rows.jsonl:1: what field .* name all fields that count"):
        read(tmp_path / "rows.jsonl", row, None)
    path, noted = tmp_path / "rows.jsonl", Counter()
    [pair] = fields.read(path, fields={"query": "query", "passage": "passage"}, noted=noted)
    assert (pair.passage, pair.negatives, pair.scores) == ("p", (), ())
    assert noted == {f"field {name} is not read": 1 for name in change}


def test_a_context_beside_an_answer(tmp_path):
    row = {"question": "q", "answer": "yes", "context": "the text that says so"}
    with pytest.raises(UserError, match="what field 'context', 'the text that says so', says"):
        read(tmp_path / "rows.jsonl", row, None)


def test_fields_that_say_nothing(tmp_path):
    """Of the rows of public sets: what they have beside a pair and its negatives."""
    more = {"negs_count": 1, "neg_id": ["7 8"], "document_rank": "1", "target": "a b", "type": "x"}
    row = {"query": "q", "document": "p", "negatives": ["n"], **more, "positive_title": "A title"}
    [pair] = read(tmp_path / "rows.jsonl", row, None)
    assert (pair.passage, pair.negatives) == ("p", ("n",))


def test_labels_that_are_none(tmp_path):
    row = {"query": "q", "passage": ["p", "n"], "grade": [2, 0]}
    names = {"query": "query", "passage": "passage", "labels": "grade"}
    with pytest.raises(UserError, match="'grade' holds 2, expected 0 or 1"):
        read(tmp_path / "rows.jsonl", row, names)
    with pytest.raises(UserError, match="'grade' has 1 labels for 2 passages"):
        read(tmp_path / "rows.jsonl", row | {"grade": [1]}, names)
    row |= {"grade": [1, 0], "of": [2, 1]}
    with pytest.raises(UserError, match="has both labels and passage_scores"):
        read(tmp_path / "rows.jsonl", row, names | {"passage_scores": "of"})


def test_rows_of_no_known_format(tmp_path):
    with pytest.raises(
        UserError, match=r"rows.jsonl:1: no field is known to be a passage .*, text;"
    ):
        read(tmp_path / "rows.jsonl", {"query": "q", "text": "p"}, None)


def pairs_of(source, path):
    dropped = Counter()
    return list(read_pairs(source, path, dropped=dropped)), dropped


def test_nevir(tmp_path):
    row = {"id": "5-1", "q1": "a?", "q2": "b?", "doc1": "A", "doc2": "B"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"q2": ""}) + "\n")
    found, dropped = pairs_of("nevir", tmp_path / "x.jsonl")
    assert [(p.id, p.query, p.passage, p.negatives) for p in found[:2]] == [
        ("5-1:1", "a?", "A", ("B",)),
        ("5-1:2", "b?", "B", ("A",)),
    ]
    assert (len(found), dropped) == (3, {"empty query": 1})


@pytest.mark.parametrize("kind", ["authors", "hub"])
def test_pubmedqa(tmp_path, kind):
    texts = ["One.", "Two."]
    if kind == "authors":
        path, data = tmp_path / "ori_pqal.json", {"12": {"QUESTION": "why?", "CONTEXTS": texts}}
    else:
        path = tmp_path / "hub.jsonl"
        data = {"pubid": 12, "question": "why?", "context": {"contexts": texts, "labels": []}}
    path.write_text(json.dumps(data))
    [pair] = pairs_of("pubmedqa", path)[0]
    assert (pair.id, pair.query, pair.passage, pair.negatives) == ("12", "why?", "One. Two.", ())
    path.write_text(json.dumps(data).replace("ontexts", "x").replace("CONTEXTS", "x"))
    with pytest.raises(UserError, match="no list CONTEXTS"):
        pairs_of("pubmedqa", path)


def test_synthetic_pairs_are_a_function_of_seed_and_number(tmp_path):
    with open(tmp_path / "text.jsonl", "w") as file:
        for n in range(1100):
            text = f"Word{n} is one of the many words. " * 2 + f"What of {n} is known by now?"
            file.write(json.dumps({"answer": text}) + "\n")
    made = list(synthetic.read(tmp_path / "text.jsonl", count=5000))
    assert made[:4100] == list(synthetic.read(tmp_path / "text.jsonl", count=4100))
    other = list(synthetic.read(tmp_path / "text.jsonl", count=100, seed=1))
    assert not {p.passage for p in other} & {p.passage for p in made}
    assert len({p.passage for p in made}) > 4990
    for pair in made[:20]:
        assert set(pair.query.split()) <= set(pair.passage.split())
    with pytest.raises(UserError, match="--count=0"):
        next(synthetic.read(count=0))


MINED = {
    "triples.tsv": "7\t0\t2\n7\t0\t1\n7\t0\t2\n8\t1\t0\n7\t5\t2\n",
    "run.trec": "7 Q0 2 1 9.5 bm25\n7 Q0 0 2 9.1 bm25\n7 Q0 1 3 8 bm25\n8 Q0 0 1 3 bm25\n",
    "margins.jsonl": [
        {"query_id": "7", "positive_id": "0", "negative_id": n, "score": s}
        for n, s in (("2", 1.5), ("1", 2.5), ("9", 1))
    ],
    "gpl-training-data.tsv": "7\t0\t2\t1.5\n7\t0\t1\t2.5\n7\t0\t9\t1\n",
    "hard.jsonl": [{"qid": 7, "pos": [0], "neg": {"bm25": [2], "other": [{"pid": 1}, 2]}}],
    "ids.jsonl": [
        {"query": 7, "positive": 0, "negative_1": 2, "negative_2": 1, "negative_3": 9}
        | {"score": [1.5, 2.5, 1]},
        {"query": 8, "positive": 1, "negative_1": 0, "negative_2": None, "score": None},
    ],
    "scores.jsonl": [
        {
            "query_id": 7,
            "positive_id": 0,
            "negative_id_1": 2,
            "negative_id_2": 1,
            "scores": [3, 2, 1],
        }
    ],
    "ce.jsonl": [
        {
            "qid": 7,
            "pos": [{"pid": 0, "ce-score": 9.5}],
            "neg": {
                "bm25": [{"pid": n, "ce-score": s} for n, s in ((2, 8), (9, 8.5))],
                "dense": [{"pid": 1, "ce-score": 7}],
            },
        }
    ],
    "run.tsv": "7\t2\t1\n7\t0\t2\n7\t1\t3\n9\t0\t1\n8\t0\t1\n8\t1\t2\n",
    "run.scored.tsv": "8\t0\t0\t9.5\n7\t2\t0\t9.5\n7\t0\t1\t9\n7\t1\t2\t9\n",
    "list.jsonl": [{"qid": 7, "pos": [0], "neg": [2, 1]}, {"qid": 8, "pos": [1], "neg": [0]}],
}


WITH_8 = ("triples.tsv", "run.trec", "run.tsv", "run.scored.tsv", "list.jsonl", "ids.jsonl")


@pytest.fixture
def marco(tmp_path):
    texts = {n: f"this is passage {n}" for n in range(3)}
    files = {
        "collection.tsv": texts,
        "queries.train.tsv": {7: "query seven", 8: "query eight"},
    }
    for name, rows in files.items():
        (tmp_path / name).write_text("".join(f"{id}\t{text}\n" for id, text in rows.items()))
    (tmp_path / "qrels.train.tsv").write_text("7\t0\t0\t1\n8\t0\t1\t1\n")
    return tmp_path


@pytest.mark.parametrize("name", MINED)
def test_negatives_by_id(marco, name):
    content = MINED[name]
    if not isinstance(content, str):
        content = "".join(json.dumps(row) + "\n" for row in content)
    (marco / name).write_text(content)
    options = {"dropped": Counter(), "negatives": marco / name}
    found = {p.id: p for p in read_pairs("msmarco", marco, **options)}
    texts = ["this is passage 2", "this is passage 1"]
    expected, scores = texts, ()
    if name == "triples.tsv":
        expected = [*texts, texts[0]]
    elif name in ("margins.jsonl", "gpl-training-data.tsv", "ids.jsonl"):
        expected, scores = [*texts, ""], (0, -1.5, -2.5, -1)
    elif name == "scores.jsonl":
        scores = (0, -1, -2)
    elif name == "ce.jsonl":
        expected, scores = [texts[0], texts[1], ""], (0, -1.5, -2.5, -1)
    assert found["7:0"].negatives == tuple(expected)
    assert found["7:0"].scores == scores
    others = ("this is passage 0",) if name in WITH_8 else ()
    assert found["8:1"].negatives[:1] == others
    [first, _] = read_pairs("msmarco", marco, **options, max_negatives=1)
    assert first.negatives == tuple(expected[:2])  # a reserve, for what rules of texts drop


def negatives_of(marco, rows, **options):
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    path = marco / f"n.{'tsv' if isinstance(rows, str) else 'jsonl'}"
    path.write_text(text)
    options = {"dropped": Counter(), "noted": Counter(), "negatives": path} | options
    return {p.id: p for p in msmarco.read(marco, **options)}, options["noted"]


@pytest.mark.parametrize("scores", [(None, 2.0, 5.0), (1.0, None, 5.0), (1.0, 2.0, None)])
def test_negatives_of_a_pair_with_and_without_scores(marco, scores):
    rows = [
        {"query_id": 7, "positive_id": 0, "negative_id": n, "score": score}
        for n, score in zip((1, 2, 9), scores, strict=True)
    ]
    line = 3 if scores[2] is None else 2
    with pytest.raises(UserError, match=rf"n.jsonl:{line}: has (a|no) score, unlike earlier rows"):
        negatives_of(marco, rows)


def test_what_a_file_of_negatives_has_beyond_the_judgements_is_noted(marco):
    rows = "7\t0\t2\n7\t0\t0\n5\t0\t1\n7\t1\t2\n"
    found, noted = negatives_of(marco, rows)
    assert found["7:0"].negatives == ("this is passage 2",)
    assert noted == {
        "rows of --negatives whose query is not judged": 1,
        "rows of --negatives whose passage is not judged relevant": 1,
        "negatives that are judged relevant": 1,
    }
    found, noted = negatives_of(marco, [{"qid": 7, "neg": {}}, {"qid": 8, "neg": [0]}])
    assert noted == {"rows of --negatives without a negative": 1}
    found, noted = negatives_of(marco, "5\t0\t1\n")  # as for a dev split
    assert not found["7:0"].negatives
    assert noted == {"rows of --negatives whose query is not judged": 1}


@pytest.mark.parametrize(
    "rows, message",
    [
        ("7\t2\t5\n7\t1\t6\n8\t1\t0\n", "2 of 3 rows on judged queries name a relevant passage"),
        ("7\t2\t1\n8\t0\t1\n", "2 of 2 rows on judged queries"),  # a run of one passage each
        ([{"qid": 7, "pos": [0]}], "no negative_id, and no list of ids in 'neg'"),
        ([{"qid": 7, "neg": {"bm25": 3}}], "field 'neg' holds 3, expected a list of ids"),
        (
            [{"query_id": 7, "positive_id": 0, "negative_id": 2, "score": 1, "margin": 2}],
            "has score and margin",
        ),
        (
            [{"query_id": 7, "positive_id": 0, "negative_id": 2, "score": 1e39}],
            "field 'score' holds 1e.39, expected a finite number",
        ),
        ("7\t0\t2\tx\n", "field 'margin' holds 'x', expected a finite number"),
    ],
)
def test_refused_files_of_negatives(marco, rows, message):
    with pytest.raises(UserError, match=message):
        negatives_of(marco, rows)


def test_systems_take_turns(marco):
    texts = [("collection.tsv", range(9))]
    for name, numbers in texts:
        (marco / name).write_text("".join(f"{n}\tthis is passage {n}\n" for n in numbers))
    rows = [{"qid": 7, "neg": {"bm25": [1, 2, 3, 4, 5], "a": None, "dense": [6, 0, 1, 7]}}]
    found, _ = negatives_of(marco, rows, max_negatives=2)
    assert [text[-1] for text in found["7:0"].negatives] == ["1", "6", "2", "3"]


@pytest.mark.parametrize("options", [{"split": "dev"}, {"min_score": 2}, {"negatives": "x.tsv"}])
def test_options_that_a_table_of_texts_cannot_have(marco, options):
    (marco / "triples.tsv").write_text("q\tp\tn\n")
    with pytest.raises(UserError, match="is a table of texts, without judgements"):
        list(read_pairs("msmarco", marco / "triples.tsv", dropped=Counter(), **options))


def test_triples_of_texts_and_negatives_of_another_collection(marco):
    (marco / "triples.tsv").write_text("q\tp\tn\nq\tp\tn2\n")
    found = pairs_of("msmarco", marco / "triples.tsv")[0]
    assert [(p.query, p.passage, p.negatives) for p in found] == [
        ("q", "p", ("n",)),
        ("q", "p", ("n2",)),
    ]
    (marco / "other.tsv").write_text("7\t0\t11\n")
    with pytest.raises(UserError, match="none of its negatives is among the passages"):
        list(read_pairs("msmarco", marco, dropped=Counter(), negatives=marco / "other.tsv"))
