"""The protobuf of a record in TFRecords, `tf.train.Example`, without TensorFlow.

Its class is made here, by the message's definition (`example.proto` and `feature.proto` in
tensorflow/core/example): to import TensorFlow Datasets, which ships one, takes 0.2 s.
"""

import functools

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from inf_jax.core.errors import UserError

_Field = descriptor_pb2.FieldDescriptorProto


def _example_class() -> type[Message]:
    """The class of `tf.train.Example`, in a pool of its own, apart from what others register."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tf_example.proto", package="tensorflow", syntax="proto3"
    )

    def message(name: str, *fields: tuple[str, int, bool]) -> descriptor_pb2.DescriptorProto:
        """Adds a message; a field is (name, type, or the message it holds; whether it repeats)."""
        made = file.message_type.add(name=name)
        for number, (field, kind, many) in enumerate(fields, 1):
            label = _Field.LABEL_REPEATED if many else _Field.LABEL_OPTIONAL
            added = made.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                added.type, added.type_name = _Field.TYPE_MESSAGE, f".tensorflow.{kind}"
            else:
                added.type = kind
        return made

    lists = {
        "BytesList": _Field.TYPE_BYTES,
        "FloatList": _Field.TYPE_FLOAT,
        "Int64List": _Field.TYPE_INT64,
    }
    for name, kind in lists.items():
        message(name, ("value", kind, True))
    feature = message(
        "Feature",
        ("bytes_list", "BytesList", False),
        ("float_list", "FloatList", False),
        ("int64_list", "Int64List", False),
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message("Features", ("feature", "Features.FeatureEntry", True))
    entry = features.nested_type.add(name="FeatureEntry", options={"map_entry": True})
    entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
    entry.field.add(
        name="value",
        number=2,
        type=_Field.TYPE_MESSAGE,
        type_name=".tensorflow.Feature",
        label=_Field.LABEL_OPTIONAL,
    )
    message("Example", ("features", "Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


TfExample = _example_class()


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
