"""The protobuf of a record in TFRecords, `tf.train.Example`, without TensorFlow.

TensorFlow Datasets ships the generated class; only this module imports it.
"""

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
