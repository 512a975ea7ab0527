"""The private parts of TensorFlow Datasets that the builder relies on, as of TFDS 4.9.10.

TFDS writes TFRecords through TensorFlow, sorts splits of more than 1 GB through it too, and has no
public hook for another writer, for more files of a dataset, or for constructor arguments of a
builder that Beam pickles. Private names used here: `GeneratorBasedBuilder._example_writer`,
`._generate_splits`, `._get_filename_template`, `._download_and_prepare`, `._log_download_bytes`,
`._log_download_done` and `._original_state`, `core.writer.ExampleWriter`, `core.hashing.Hasher`,
`core.utils.shard_utils`, the prefix of partial directories, and the message about a split without
examples. setup.py pins the version.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import hashing
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.core.utils import shard_utils

from data_pipeline.dataset.spill import KEY_BYTES, Spill
from inf_jax.io import tfrecord
from inf_jax.io.tf_example import parse_tf_example, tf_example_bytes

PARTIAL_PREFIX = "incomplete."  # of a dataset's directory while it is being written


class Builder(tfds.core.GeneratorBasedBuilder):
    """A TFDS builder that writes without TensorFlow, prints nothing, and can be pickled.

    Args:
      beam: whether `_split_generators` gives Beam's transforms to (key, record as a dict), else
        iterables of (key, record's bytes).
      arguments: constructor arguments of the subclass; a pickled builder is rebuilt from them.
      **kwargs: TFDS's own.
    """

    def __init__(self, *, beam: bool, arguments: dict[str, Any], **kwargs):
        super().__init__(**kwargs)
        self._beam = beam
        self._original_state.update(arguments)

    @contextlib.contextmanager
    def writing(self, directory: Path) -> Iterator[None]:
        """Surrounds the writing of the splits; `directory` becomes the dataset at the end."""
        yield

    def _download_and_prepare(self, *args, **kwargs):
        # data_path is the partial directory here; TFDS renames it afterwards
        with self.writing(Path(self.data_path)):
            super()._download_and_prepare(*args, **kwargs)

    def _generate_splits(self, dl_manager, download_config):
        if self._beam:
            return super()._generate_splits(dl_manager, download_config)
        shards = download_config.get_shard_config() or shard_utils.ShardConfig()
        return [
            _write_split(self._get_filename_template(split_name=split), records, shards)
            for split, records in self._split_generators(dl_manager).items()
        ]

    def _log_download_bytes(self):
        """Prints nothing; TFDS would announce a download of unknown size."""

    def _log_download_done(self):
        """Prints nothing; the command says where the dataset is."""

    def _example_writer(self):
        return _ExampleWriter(file_format=self.info.file_format)


class _ExampleWriter(tfds_writer.ExampleWriter):
    def write(self, path: os.PathLike, examples: Iterable[tuple[Any, bytes]]) -> None:
        with tfrecord.Writer(path) as writer:
            for _, data in examples:
                # TFDS serialises maps in random order; the bytes must be the same in every build
                writer.write(tf_example_bytes(parse_tf_example(data)))


def _write_split(
    template: Any, records: Iterable[tuple[str, bytes]], config: shard_utils.ShardConfig
) -> tfds.core.SplitInfo:
    """Writes the files of a split as TFDS does, shuffled by the hash of the keys."""
    spill, hasher = Spill(Path(template.data_dir)), hashing.Hasher(template.split)
    for key, data in records:
        spill.add(hasher.hash_key(key).to_bytes(KEY_BYTES, "big"), data)
    shards = config.get_number_shards(spill.size, spill.count)
    ends = shard_utils.get_shard_boundaries(spill.count, shards)
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    shuffled = iter(spill)
    for number, length in enumerate(lengths):
        path = template.sharded_filepath(shard_index=number, num_shards=shards)
        with tfrecord.Writer(path) as writer:
            for _, data in itertools.islice(shuffled, length):
                writer.write(data)
    next(shuffled, None)  # deletes what was held
    return tfds.core.SplitInfo(
        name=template.split, shard_lengths=lengths, num_bytes=spill.size, filename_template=template
    )


def empty_split(error: Exception) -> str | None:
    """The split without examples that TFDS's Beam writer complains about; None for other errors."""
    match = re.search(r"generated examples is 0 for split (\w+)", str(error))
    return match and match[1]
