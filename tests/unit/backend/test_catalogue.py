"""What of a model's configuration counts, from configurations as Triton sends them."""

from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tritonsched.backend.catalogue import ModelInfo, TensorInfo, devices_of, model_info

BASE = """
name: "m" max_batch_size: 8
input { name: "A" data_type: TYPE_FP32 dims: 3 dims: -1 }
output { name: "B" data_type: TYPE_STRING dims: 1 }
"""


def config(text: str = "") -> Any:
    """A ModelConfig from its text form; later scalar fields win."""
    message = model_config_pb2.ModelConfig()
    text_format.Parse(BASE, message)
    addition = model_config_pb2.ModelConfig()
    text_format.Parse(text, addition)
    message.MergeFrom(addition)
    return message


def info(text: str = "") -> ModelInfo:
    return model_info(config(text), "")


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def test_a_plain_model_may_be_merged() -> None:
    """Tensors, rows and version come through, and nothing speaks against merging."""
    found = model_info(config(), "7")
    assert found == ModelInfo(
        name="m",
        version="7",
        max_batch_size=8,
        inputs={"A": TensorInfo("A", "FP32", (3, -1))},
        outputs={"B": TensorInfo("B", "BYTES", (1,))},
        devices=("cpu:m:0",),
    )


def test_tritons_string_is_the_protocols_bytes_and_other_types_keep_their_name() -> None:
    """Each datatype of the protocol is recognised."""
    names = [name for name in model_config_pb2.DataType.keys() if name != "TYPE_INVALID"]  # noqa: SIM118  # a protobuf enum is no mapping
    text = " ".join(f'input {{ name: "{name}" data_type: {name} dims: 1 }}' for name in names)
    inputs = info(text).inputs
    for name in names:
        wire_name = name.removeprefix("TYPE_")
        expected = "BYTES" if wire_name == "STRING" else wire_name
        assert inputs[name].datatype == expected


def test_an_optional_input_is_marked() -> None:
    """Merging asks for it."""
    inputs = info('input { name: "O" data_type: TYPE_BOOL dims: 1 optional: true }').inputs
    assert [name for name, tensor in inputs.items() if tensor.optional] == ["O"]


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("decoupled", "model_transaction_policy { decoupled: true }"),
        ("sequence", "sequence_batching { }"),
        ("ensemble", "ensemble_scheduling { }"),
        ("response-cache", "response_cache { enable: true }"),
        ("batch-input", "batch_input { kind: BATCH_ELEMENT_COUNT }"),
        ("batch-output", "batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE }"),
        (
            "shape-tensor",
            'input { name: "S" data_type: TYPE_INT32 dims: 1 is_shape_tensor: true }',
        ),
        (
            "shape-tensor",
            'output { name: "S" data_type: TYPE_INT32 dims: 1 is_shape_tensor: true }',
        ),
        (
            "format",
            'input { name: "F" data_type: TYPE_FP16 dims: 1 is_non_linear_format_io: true }',
        ),
        (
            "format",
            'output { name: "F" data_type: TYPE_FP16 dims: 1 is_non_linear_format_io: true }',
        ),
        ("ragged", 'input { name: "R" data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true }'),
        ("no-batching", "max_batch_size: 1"),
    ],
)
def test_what_cannot_be_merged_has_a_reason(reason: str, text: str) -> None:
    """One configuration a reason; the plain one (above) has none."""
    assert info(text).lone_reason == reason


def test_a_model_without_batching_is_never_merged() -> None:
    """max_batch_size 0: the first dimension is data."""
    message = config()
    message.max_batch_size = 0
    assert model_info(message, "").lone_reason == "no-batching"


@pytest.mark.parametrize(
    ("devices", "text"),
    [
        (("cpu:m:0",), ""),
        (("cpu:m:0", "cpu:m:1"), "instance_group { kind: KIND_CPU count: 2 }"),
        (
            ("cpu:m:0", "cpu:m:1", "cpu:m:2"),
            "instance_group { kind: KIND_CPU count: 2 } instance_group { kind: KIND_CPU }",
        ),
        (("cpu:m:0", "cpu:m:1"), "instance_group { kind: KIND_AUTO count: 2 }"),
        (("gpu:1",), "instance_group { kind: KIND_AUTO count: 2 gpus: 1 }"),
        (("gpu:0", "gpu:3"), "instance_group { kind: KIND_GPU count: 4 gpus: 0 gpus: 3 }"),
        (
            ("gpu:0",),
            "instance_group { kind: KIND_GPU gpus: 0 } instance_group { kind: KIND_GPU gpus: 0 }",
        ),
        (
            ("gpu:0",),
            "instance_group { kind: KIND_GPU gpus: 0 }"
            "instance_group { kind: KIND_CPU count: 2 passive: true }",
        ),
        (
            ("left", "right"),
            "instance_group { kind: KIND_GPU gpus: 0 }"
            + parameter("tritonsched_device", " left ,right, left,"),
        ),
        (("cpu:m:0",), parameter("tritonsched_device", " , ")),
    ],
)
def test_devices_are_gpus_shared_cpu_instances_alone_and_names_above_all(
    devices: tuple[str, ...], text: str
) -> None:
    """KIND_GPU: one a GPU id, however many instances; KIND_CPU: one an instance."""
    assert devices_of(config(text)) == devices


@pytest.mark.parametrize(
    ("accuracy", "value"),
    [
        (0.75, "75"),
        (0.751, "0.751"),
        (1.0, "1"),
        (1.0, "100"),
        (1.0, "0"),
        (1.0, "-3"),
        (1.0, "101"),
        (1.0, "nan"),
        (1.0, "high"),
    ],
)
def test_accuracy_is_a_percentage_or_a_fraction_and_1_where_senseless(
    accuracy: float, value: str
) -> None:
    """Only the ratio between variants counts, so it is never above 1 and never 0."""
    found = info(parameter("tritonsched_accuracy", value)).accuracy
    assert found == pytest.approx(accuracy)


def test_the_delay_of_tritons_own_batcher_is_told() -> None:
    """None where it is off: then nothing waits behind our back."""
    assert info().queue_delay_ns is None
    assert info("dynamic_batching { }").queue_delay_ns == 0
    delayed = info("dynamic_batching { max_queue_delay_microseconds: 250 }")
    assert delayed.queue_delay_ns == 250_000


def test_how_long_a_sequence_may_be_idle_is_told() -> None:
    """Triton ends it then; a second where the configuration says nothing."""
    assert info().idle_ns == 0
    assert info("sequence_batching { }").idle_ns == 1_000_000_000
    told = info("sequence_batching { max_sequence_idle_microseconds: 5000000 }")
    assert told.idle_ns == 5_000_000_000


def test_a_configuration_has_a_hash_that_is_told_and_not_compared() -> None:
    """A profile asks for it; a model whose description alone changed is the same to merging."""
    one, same, other = info(), info(), info(parameter("anything", "1"))
    assert one.config_sha256 == same.config_sha256 != other.config_sha256
    assert one == other
    assert len(one.config_sha256) == 64
