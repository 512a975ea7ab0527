"""The protobuf of a record in TFRecords, `tf.train.Example`, without TensorFlow.

TensorFlow Datasets ships the generated class; only this module imports it.
"""

import functools

from tensorflow_datasets.proto import tf_example_pb2

from inf_jax.core.errors import UserError

TfExample = tf_example_pb2.Example


def parse_tf_example(data: bytes) -> TfExample:
    """The proto of a record's bytes; UserError if they are none."""
    try:
        return TfExample.FromString(data)
    except Exception as error:  # protobuf has moved its DecodeError between modules
        raise UserError(f"a record is not a tf.train.Example: {error}") from error


def tf_example_bytes(proto: TfExample) -> bytes:
    """The bytes of a proto, the same in every process: maps are serialised in sorted order."""
    return proto.SerializeToString(deterministic=True)


def _varint(value: int) -> bytes:
    """The protocol buffer's encoding of an int."""
    groups = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def _delimited(tag: int, size: int) -> bytes:
    """What precedes a field of so many bytes: a string, bytes or a message."""
    return bytes([tag << 3 | 2]) + _varint(size)


@functools.lru_cache(maxsize=1 << 16)
def feature_headers(name: str, *sizes: int) -> list[bytes]:
    """What precedes each value of a feature of `bytes_list` of these sizes, in a map of features:
    entry {1: key, 2: feature {1: bytes_list {1: value, 1: value...}}}."""
    values = [_delimited(1, size) for size in sizes]
    body = sum(map(len, values)) + sum(sizes)
    feature = _delimited(1, body)
    value = _delimited(2, len(feature) + body)
    key = _delimited(1, len(name)) + name.encode()
    entry = _delimited(1, len(key) + len(value) + len(feature) + body)
    return [entry + key + value + feature + values[0], *values[1:]]
