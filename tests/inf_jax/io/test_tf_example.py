"""The class of tf.train.Example: the definition and the bytes are those of the generated one."""

from tensorflow_datasets.proto import tf_example_pb2

from inf_jax.io.tf_example import TfExample, parse_tf_example, tf_example_bytes


def definition(message):
    """Its fields: name, number, type, label, group of which one is set, message that it holds."""
    return [
        (
            field.name,
            field.number,
            field.type,
            field.label,
            field.containing_oneof and field.containing_oneof.name,
            field.message_type
            and (field.message_type.GetOptions().map_entry, definition(field.message_type)),
        )
        for field in message.fields
    ]


def test_the_definition_and_the_bytes_are_those_of_the_generated_class():
    theirs = tf_example_pb2.Example
    assert definition(TfExample.DESCRIPTOR) == definition(theirs.DESCRIPTOR)
    example = TfExample()
    put = example.features.feature
    put["texts"].bytes_list.value.extend([b"", "é".encode()])
    put["numbers"].int64_list.value.extend([-1, 2**62])
    put["scores"].float_list.value.extend([0.5, -1e30])
    put["nothing"].SetInParent()
    data = tf_example_bytes(example)
    assert theirs.FromString(data).SerializeToString(deterministic=True) == data
    assert parse_tf_example(data) == example
    put["texts"].float_list.value.append(1.0)
    assert put["texts"].WhichOneof("kind") == "float_list"
