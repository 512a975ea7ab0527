"""Plans the shards of a tokenised split: what is read, what is written, and what exists already."""

import dataclasses
import hashlib
import json
import os

from inf_jax.core.errors import UserError, first_line
from inf_jax.data.tokenised.columns import column_path
from inf_jax.data.tokenised.dataset import MANIFEST
from inf_jax.data.tokenised.records import TOKENISED_SCHEMA
from inf_jax.data.tokenised.rewriting import AS_WRITTEN, Rewriting
from inf_jax.data.tokenised.shuffle import SHUFFLE
from inf_jax.data.tokenised.sidecars import index_path, load_sidecar
from inf_jax.io import gcs
from inf_jax.io.json_files import path_inside, read_json, sha256_of_file, write_json
from inf_jax.io.storage import AnyPath, as_path, exists, file_size, is_bucket
from inf_jax.io.tfrecord import FRAME_BYTES
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import TextTokenizer

EXAMPLES_PER_SHARD = 8192  # a killed run repeats at most this many
CHECKSUMS = "checksums.json"  # of a dataset in a bucket, so that it is read once for them


@dataclasses.dataclass(frozen=True)
class TokenisingPlan:
    """What tokenising a split reads and writes.

    Attributes:
      sources: the split's text TFRecords, each with its number of records.
      directory: `<out_dir>/<split>-<hash16>`.
      shards: the files to write there, each with its number of examples.
      recipe: everything that the result depends on.
      fingerprint: hash of the recipe.
    """

    sources: list[tuple[AnyPath, int]]
    directory: AnyPath
    shards: list[tuple[AnyPath, int]]
    recipe: dict
    fingerprint: str

    @property
    def num_examples(self) -> int:
        return sum(count for _, count in self.sources)

    @property
    def manifest(self) -> AnyPath:
        return self.directory / MANIFEST

    @property
    def shuffled(self) -> bool:
        """Whether the records are shuffled, to be read in windows."""
        return "shuffle" in self.recipe

    @property
    def rewriting(self) -> Rewriting:
        """What is changed in the pairs before."""
        return Rewriting(**self.recipe.get("pairs", {}))

    def as_shuffled(self, shuffled: bool, *, version: int = SHUFFLE) -> "TokenisingPlan":
        """The plan for shuffled records, or for records in the order of the sources."""
        recipe = {name: value for name, value in self.recipe.items() if name != "shuffle"}
        recipe |= {"shuffle": version} if shuffled else {}
        return _plan(self.sources, self.directory.parent, recipe)

    def todo(self) -> set[int] | None:
        """Shards still to write, None where the split is finished; prints what is reused."""
        split, total = self.recipe["split"], len(self.shards)
        written = exists(self.manifest)  # the last file
        slow = self.shuffled or is_bucket(self.directory)  # many files, or far away
        if written and self._lost() and slow:  # of other files each is looked at
            written = False
        every = () if slow and written else enumerate(self.shards)
        missing = {n for n, shard in every if not _is_finished(*shard)}
        if (missing or not written) and self.recipe.get("shuffle", SHUFFLE) != SHUFFLE:
            raise UserError(
                f"{self.directory}, which the resumed run reads, is not complete, and this version "
                "shuffles in another order: restore it, or give a new out_dir"
            )
        if not missing and written:
            count = self.num_examples
            print(f"{split}: {count} examples are tokenised already, reusing {self.directory}")
            return None
        if len(missing) < total:
            print(f"{split}: reusing {total - len(missing)} of {total} shards in {self.directory}")
        return missing

    def _lost(self) -> set[str]:
        """Files that training reads and that the directory lacks, though it has a manifest."""
        remedy = "delete it and tokenise the split again"
        columns = read_json(self.manifest, kind=dict, remedy=remedy).get("columns")
        needed = {shard.name for shard, _ in self.shards}
        if not self.shuffled:
            needed |= {index_path(shard).name for shard, _ in self.shards}
        elif isinstance(columns, dict) and isinstance(columns.get("files"), dict):
            needed |= {column_path(self.directory, name).name for name in columns["files"]}
        if is_bucket(self.directory):
            return needed - {*gcs.files_below(self.directory)}
        return needed - {*os.listdir(self.directory)}


def plan_shards(
    dataset_dir: AnyPath,
    split: str,
    *,
    tokenizer: TextTokenizer,
    text: TextConfig,
    out_dir: AnyPath,
    examples_per_shard: int = EXAMPLES_PER_SHARD,
    rewriting: Rewriting = AS_WRITTEN,
) -> TokenisingPlan:
    """The plan of `tokenise` for these arguments; reads the source files once for their checksums.
    Those of files in a bucket are kept there, in CHECKSUMS.

    Raises:
      UserError: the split is missing or empty, or a file of it cannot be read.
    """
    sources = source_files(as_path(dataset_dir), split)
    checksums = _checksums(as_path(dataset_dir), [path for path, _ in sources])
    recipe = {
        "schema": TOKENISED_SCHEMA,
        "split": split,
        "sources": [[path.name, n, sum] for (path, n), sum in zip(sources, checksums, strict=True)],
        "tokenizer": tokenizer.fingerprint,
        "text": dataclasses.asdict(text),
        "examples_per_shard": examples_per_shard,
    }
    recipe |= {"pairs": rewriting.recipe} if rewriting.recipe else {}
    return _plan(sources, as_path(out_dir), recipe)


def _plan(sources: list[tuple[AnyPath, int]], out_dir: AnyPath, recipe: dict) -> TokenisingPlan:
    fingerprint = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    directory = out_dir / f"{recipe['split']}-{fingerprint[:16]}"
    total = sum(count for _, count in sources)
    shards = _shards(directory, total, recipe["examples_per_shard"], even="shuffle" in recipe)
    return TokenisingPlan(sources, directory, shards, recipe, fingerprint)


def split_names(directory: AnyPath) -> list[str]:
    """The splits of a TFDS directory that have examples; UserError as of `source_files`."""
    info_path = directory / "dataset_info.json"
    info = read_json(info_path, remedy="build the dataset with `python -m data_pipeline.build`")
    try:
        return [s["name"] for s in info["splits"] if sum(map(int, s["shardLengths"]))]
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{info_path}: not a dataset_info.json of TFDS ({first_line(error)}); build it again"
        ) from error


def source_files(directory: AnyPath, split: str) -> list[tuple[AnyPath, int]]:
    """The text TFRecords of a split in a TFDS directory, each with its number of records."""
    info_path = directory / "dataset_info.json"
    info = read_json(info_path, remedy="build the dataset with `python -m data_pipeline.build`")
    try:
        splits = {s["name"]: s for s in info["splits"]}
        if split not in splits:
            raise UserError(f"{info_path}: no split {split!r}; it has {', '.join(sorted(splits))}")
        counts = [int(n) for n in splits[split]["shardLengths"]]
        if min(counts, default=0) < 0:
            raise ValueError(f"shardLengths {min(counts)}")
        file_format = info.get("fileFormat", "tfrecord")
        if file_format != "tfrecord":
            raise UserError(f"{info_path}: file format {file_format!r}, only tfrecord can be read")
        default = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        template, total = splits[split].get("filepathTemplate", default), f"{len(counts):05d}"
        whole = {"DATASET": info["name"], "SPLIT": split, "FILEFORMAT": file_format}
        names = [
            template.format(
                **whole, SHARD_INDEX=n, NUM_SHARDS=total, SHARD_X_OF_Y=f"{n}-of-{total}"
            )
            for n in (f"{number:05d}" for number in range(len(counts)))
        ]
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{info_path}: not a dataset_info.json of TFDS ({first_line(error)}); build it again"
        ) from error
    if not sum(counts):
        raise UserError(f"{info_path}: split {split!r} has no examples")
    files = [path_inside(directory, name, info_path) for name in names]
    return list(zip(files, counts, strict=True))


def _checksums(directory: AnyPath, paths: list[AnyPath]) -> list[str]:
    """SHA-256 of each file."""
    if not is_bucket(directory):
        return [_checksum(path) for path in paths]
    kept_in = directory / CHECKSUMS
    kept = read_json(kept_in, {}, kind=dict, remedy="delete it")
    objects, found = gcs.objects_below(directory), {}
    for path in paths:
        if (info := objects.get(path.name)) is None:
            raise UserError(f"{path}: no such object; upload the dataset again")
        now, before = [info.size, info.generation], kept.get(path.name)
        same = isinstance(before, list) and before[:2] == now and len(before) == 3
        found[path.name] = before if same else [*now, _checksum(path)]
    if not found.items() <= kept.items():
        try:
            write_json(kept_in, kept | found, sort_keys=True)
        except UserError as error:
            print(f"checksums are not kept, so each start reads all of the split: {error}")
    return [found[path.name][2] for path in paths]


def _checksum(path: AnyPath) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; build the dataset again") from error


def _shards(
    directory: AnyPath, num_examples: int, per_shard: int, *, even: bool
) -> list[tuple[AnyPath, int]]:
    """Each with its examples: `per_shard` and the last one the rest, or all as many to one."""
    if per_shard < 1:
        raise UserError(f"examples_per_shard={per_shard} must be 1 or more")
    count = -(-num_examples // per_shard)
    sizes = [min(per_shard, num_examples - n * per_shard) for n in range(count)]
    if even:
        sizes = [num_examples // count + (n < num_examples % count) for n in range(count)]
    names = (f"tokens-{n:05d}-of-{count:05d}.tfrecord" for n in range(count))
    return [(directory / name, size) for name, size in zip(names, sizes, strict=True)]


def _is_finished(path: AnyPath, count: int) -> bool:
    """Whether a shard and its index are complete; the index is written last."""
    try:
        if is_bucket(path) and not exists(path):  # two shorter errors fewer
            return False
        index = load_sidecar(path).index
        size = int((index.lengths + FRAME_BYTES).sum())
        return len(index) == count and file_size(path) == size
    except (UserError, OSError):
        return False
