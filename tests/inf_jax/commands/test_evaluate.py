"""`inf_jax.evaluate`: base and newest checkpoint side by side, eval.json and eval.png."""

import dataclasses
import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.core.packing import pack_chunk, stack_chunks
from inf_jax.data.from_config import dataset_dir, text_config
from inf_jax.data.tokenise import read_examples
from inf_jax.evaluate import main
from inf_jax.evaluation.scores import METRICS, score_task
from inf_jax.evaluation.task import task_from_examples
from inf_jax.models.encoder import tower
from inf_jax.models.hf.backbone import load_model
from inf_jax.retriever.encode import Grid, encode_texts
from tests.inf_jax.commands.saved_runs import changed, save
from tests.inf_jax.training.steps import init_params


def figures(config, params):
    """The scores of these weights, encoded with one text per row."""
    config = run_config(config)
    model = load_model(config)
    text = dataclasses.replace(
        text_config(config), max_passage_tokens=config.eval.max_passage_tokens
    )

    def embed(role, texts):
        encode = model.encoder.encode
        return encode_texts(encode, tower(params, role), texts, grid=Grid(8, 32, 1))

    def embed_queries(queries):
        if config.model.query_encoder == "joint":
            return embed("query", model.tokenizer.queries(queries, text))
        ids = model.tokenizer.separate_texts(queries, text)
        grid = {"rows": 2, "row_tokens": 16, "texts_per_row": 1}
        packed = [
            pack_chunk(pair, np.zeros(2, np.uint32), **grid) for pair in zip(*ids, strict=True)
        ]
        found = model.encoder.encode_instructed(
            tower(params, "query"),
            stack_chunks(packed),
            max_tokens=16,
            all_pairs=False,
            passages=0,
        )
        return np.asarray(found.queries[:, 0])

    task = task_from_examples(read_examples(dataset_dir(config), config.eval.split))
    passages = model.tokenizer.passages(list(task.corpus.values()), text)
    queries = embed_queries(list(task.searches.values()))
    return score_task(task, queries, embed("passage", passages), top_k=1000)


def test_base_and_newest_checkpoint(tiny_config, capsys):
    weights = load_model(run_config(tiny_config)).load().params
    save(tiny_config, {"shared": changed(weights, 0)}, 2)
    newest = {"shared": changed(weights, 1)}
    save(tiny_config, newest, 10)
    main(tiny_config)
    out = capsys.readouterr().out

    found = json.loads(Path(tiny_config.out_dir, "eval.json").read_text())
    base, trained = figures(tiny_config, {"shared": weights}), figures(tiny_config, newest)
    assert base != pytest.approx(trained)
    assert found["base"] == pytest.approx(base)
    assert found["trained"] == pytest.approx(trained)
    assert found["gain"] == pytest.approx({key: trained[key] - base[key] for key in METRICS})
    assert found["step"] == 10
    config = json.loads(json.dumps(tiny_config.to_dict()))  # tuples are lists
    assert found["config"] == config | {"batch_size_counts": "pairs"}
    counts = [found[key] for key in ("queries", "instructed_queries", "passages")]
    assert counts == [5, 20, 20]

    assert "inf_ir dev, step 10" in out
    for key, label in METRICS.items():
        row = next(line.split("│") for line in out.splitlines() if f"│ {label} " in line)
        shown = [cell.strip() for cell in row[2:5]]
        gain = trained[key] - base[key]
        assert shown == [f"{base[key]:.1f}", f"{trained[key]:.1f}", f"{gain:+.1f}"]
    image = matplotlib.image.imread(f"{tiny_config.out_dir}/eval.png")
    assert image.shape[:2] == (660, 1650)


def test_base_from_another_run(tiny_config, tmp_path):
    weights = load_model(run_config(tiny_config)).load().params
    save(tiny_config, {"shared": changed(weights, 0)}, 1)
    tiny_config.eval.dims = (8, 32)
    main(tiny_config)
    first = Path(tiny_config.out_dir, "eval.json")
    found = json.loads(first.read_text())
    known = {key: value + 1 for key, value in found["base"].items()}  # not what would be measured
    dims = found["dims"]
    assert dims["32"]["base"] == pytest.approx(found["base"])  # all entries
    assert dims["8"]["base"] != found["base"]
    dims["8"]["base"] = {key: value + 2 for key, value in dims["8"]["base"].items()}
    del found["config"]["eval"]["max_passages"]  # as an older version wrote it
    first.write_text(json.dumps(found | {"base": known}))

    tiny_config.out_dir = str(tmp_path / "second")
    tiny_config.eval.base_from = str(first)
    save(tiny_config, {"shared": changed(weights, 1)}, 3)
    main(tiny_config)
    second = json.loads(Path(tiny_config.out_dir, "eval.json").read_text())
    assert second["base"] == known and second["dims"]["8"]["base"] == dims["8"]["base"]
    expected = {key: second["trained"][key] - known[key] for key in known}
    assert second["gain"] == pytest.approx(expected)

    tiny_config.eval.dims = (8, 33)
    with pytest.raises(UserError, match=r"eval\.dims=\(8, 33\): the vectors have 32 entries"):
        main(tiny_config)
    tiny_config.eval.dims = (8, 32)

    tiny_config.eval.top_k = 12
    tiny_config.data.max_query_tokens = 12
    save(tiny_config, {"shared": changed(weights, 1)}, 4)
    message = r"measured with other settings \(data.max_query_tokens, eval.top_k differ\)"
    with pytest.raises(UserError, match=message):
        main(tiny_config)
    tiny_config.eval.base_from = str(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"none\.json: not a readable eval\.json"):
        main(tiny_config)


def test_separate_towers(tiny_config):
    tiny_config.model.towers = "separate"
    weights = load_model(run_config(tiny_config)).load().params
    params = {"query": changed(weights, 0), "passage": changed(weights, 1)}
    save(tiny_config, params, 1)
    main(tiny_config)
    found = json.loads(Path(tiny_config.out_dir, "eval.json").read_text())
    swapped = {"query": params["passage"], "passage": params["query"]}
    assert found["trained"] == pytest.approx(figures(tiny_config, params))
    assert found["trained"] != pytest.approx(figures(tiny_config, swapped))


@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_attention_query_encoder(tiny_config, towers):
    weights = load_model(run_config(tiny_config)).load().params
    params = init_params(changed(weights, 0), towers)
    tiny_config.model.towers = towers
    joint = figures(tiny_config, params)
    tiny_config.model.query_encoder = "attention"
    save(tiny_config, params, 1)
    main(tiny_config)
    found = json.loads(Path(tiny_config.out_dir, "eval.json").read_text())
    assert found["trained"] == pytest.approx(figures(tiny_config, params))
    assert found["trained"] != pytest.approx(joint)


def test_dataset_is_named(tiny_config, tiny_dataset_dir):
    weights = {"shared": load_model(run_config(tiny_config)).load().params}
    save(tiny_config, weights, 1)
    named = []
    for split in ("dev", "train", "dev"):
        tiny_config.eval.split = split
        main(tiny_config)
        named.append(json.loads(Path(tiny_config.out_dir, "eval.json").read_text())["dataset"])
    assert named[0] == named[2]
    assert named[0]["fingerprint"] != named[1]["fingerprint"]
    assert [named[1][key] for key in ("source", "version", "split")] == [
        "inf_ir",
        tiny_dataset_dir.name,
        "train",
    ]


def test_no_checkpoint(tiny_config, tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint.*`python -m inf_jax\.train --config"):
        main(tiny_config)
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_checkpoint_of_other_towers_or_shape(tiny_config):
    weights = load_model(run_config(tiny_config)).load().params
    tiny_config.model.towers = "separate"
    save(tiny_config, {"shared": weights}, 1)
    with pytest.raises(UserError) as caught:
        main(tiny_config)
    message = str(caught.value)
    assert "checkpoints/1 cannot be restored: params/passage/blocks/attention_norm/bias" in message
    assert "and 60 more; it was written by another config" in message  # 3 x 21 arrays differ
    tiny_config.model.towers = "shared"
    save(tiny_config, {"shared": {**weights, "word": weights["word"][:100]}}, 2)
    expected = r"checkpoints/2 .*: params/shared/word \(100, 32\), expected \(500, 32\); it was"
    with pytest.raises(UserError, match=expected):
        main(tiny_config)


def test_damaged_checkpoint(tiny_config):
    save(tiny_config, {"shared": load_model(run_config(tiny_config)).load().params}, 1)
    state = Path(tiny_config.out_dir, "checkpoints", "1", "state")
    (state / "_METADATA").unlink()
    with pytest.raises(UserError, match=r"checkpoints/1 cannot be restored: .*damaged"):
        main(tiny_config)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("max_passage_tokens", 65, "eval.max_passage_tokens=65, but .* has 64 positions"),
        ("split", "test", "no split 'test'"),
        ("top_k", 5, "top_k=5: nDCG@10 needs 10"),
    ],
)
def test_impossible_values(tiny_config, key, value, message):
    save(tiny_config, {"shared": load_model(run_config(tiny_config)).load().params}, 1)
    tiny_config.eval[key] = value
    with pytest.raises(UserError, match=message):
        main(tiny_config)
