"""The way into Triton, on a stand-in that reads and writes shared memory as Triton does."""

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.backend.conftest import POOL_BYTES, Setup
from tests.unit.backend.contract import (
    COLUMNS,
    ROW_BYTES,
    BackendContract,
    batch,
    executed,
    lone_call,
    outputs_of,
    row,
)
from tests.unit.backend.fake_triton import Edit, offset_of
from tritonsched.backend import packing
from tritonsched.backend.base import Backend
from tritonsched.backend.batch_call import BatchCall, BatchInput, BatchOutput
from tritonsched.backend.leases import ALIGN
from tritonsched.errors import MalformedAnswer, TritonUnavailable
from tritonsched.tensors import GrpcReply, HttpReply, Wire


class TestContractShared(BackendContract):
    """The promises of a backend, through shared memory."""

    @pytest.fixture
    def backend(self, there: Setup) -> Backend:
        return there.backend


class TestContractInline(BackendContract):
    """The promises of a backend, in messages."""

    @pytest.fixture
    def backend(self, inline: Setup) -> Backend:
        return inline.backend


def two_tensors() -> BatchCall:
    """Four rows of two inputs of different length, for two outputs, typed parameters."""
    return BatchCall(
        id=1,
        model="echo",
        version="3",
        rows=4,
        inputs=(
            BatchInput("A", "UINT8", (4, 3), (b"abc", b"defghi", b"jkl")),
            BatchInput("B", "UINT8", (4, 10), (b"0123456789" * 4,)),
        ),
        outputs=(BatchOutput("X", 3), BatchOutput("Y", 10)),
        parameters={"flag": True, "count": 2, "ratio": 0.5, "word": "w"},
    )


# -- how a batch travels -------------------------------------------------------------------------


async def test_inputs_and_outputs_lie_in_shared_memory(there: Setup) -> None:
    """The message carries neither; afterwards all pieces are free."""
    await outputs_of(there.backend, batch(row(0), row(1)))
    (request,) = there.grpc.requests
    assert list(request.raw_input_contents) == []
    for tensor in (*request.inputs, *request.outputs):
        assert tensor.parameters["shared_memory_region"].string_param == there.region
        assert tensor.parameters["shared_memory_byte_size"].int64_param == 2 * ROW_BYTES
        assert tensor.parameters["shared_memory_offset"].int64_param % ALIGN == 0
    assert request.id == ""
    assert (there.backend.batches_shm, there.backend.batches_inline) == (1, 0)
    assert there.backend.region.in_use_bytes == 0


async def test_an_answer_keeps_its_output_memory_until_it_is_released(there: Setup) -> None:
    """The inputs' piece is free with the answer, the outputs' with `release`."""
    reply = await executed(there.backend, batch(*[row(0)] * 8))
    assert there.backend.region.in_use_bytes == 8 * ROW_BYTES
    view = reply.outputs[0].data
    reply.release()
    assert there.backend.region.in_use_bytes == 0
    with pytest.raises(ValueError, match="released"):
        bytes(view)


async def test_inline_sends_bytes_and_takes_no_shared_memory(inline: Setup) -> None:
    """For a Triton on another host, or by wish."""
    await outputs_of(inline.backend, batch(row(0), row(1)))
    (request,) = inline.grpc.requests
    assert list(request.raw_input_contents) == [row(0) + row(1)]
    assert (inline.backend.batches_shm, inline.backend.batches_inline) == (0, 1)
    assert inline.backend.transport_info.split()[0] == "inline"
    assert inline.files() == []


async def test_several_inputs_and_outputs_keep_apart(there: Setup) -> None:
    """One piece for all inputs, one for all outputs; each tensor begins at a multiple of 64."""
    answer = await outputs_of(there.backend, two_tensors())
    assert answer == [
        ("X", (4, 3), b"abcdefghijkl"),
        ("Y", (4, 10), b"0123456789" * 4),
    ]
    (request,) = there.grpc.requests
    offsets = [offset_of(t) for t in (*request.inputs, *request.outputs)]
    assert len(set(offsets)) == 4
    assert all(offset % ALIGN == 0 for offset in offsets)
    assert there.backend.batches_shm == 1


async def test_version_and_typed_parameters_are_sent_on(there: Setup) -> None:
    """`True`, 1, 1.0 and "1" differ on the wire."""
    await outputs_of(there.backend, two_tensors())
    (request,) = there.grpc.requests
    assert request.model_version == "3"
    kinds = {
        name: value.WhichOneof("parameter_choice") for name, value in request.parameters.items()
    }
    assert kinds == {
        "flag": "bool_param",
        "count": "int64_param",
        "ratio": "double_param",
        "word": "string_param",
    }


async def test_an_output_of_unknown_size_travels_in_the_answer(there: Setup) -> None:
    """The inputs still lie in shared memory."""
    await outputs_of(there.backend, batch(row(0), row_bytes=None))
    (request,) = there.grpc.requests
    assert "shared_memory_region" in request.inputs[0].parameters
    assert dict(request.outputs[0].parameters) == {}
    assert (there.backend.batches_shm, there.backend.fallbacks) == (1, 0)


async def test_an_empty_tensor_goes_inline(there: Setup) -> None:
    """Triton refuses a shared-memory tensor of no bytes."""
    empty = BatchInput("INPUT", "FP32", (1, 0), (b"",))
    call = replace(batch(row(0)), inputs=(empty,), outputs=(BatchOutput("OUTPUT", 0),))
    assert await outputs_of(there.backend, call) == [("OUTPUT", (1, 0), b"")]
    assert (there.backend.batches_inline, there.backend.fallbacks) == (1, 0)


async def test_without_room_for_inputs_the_batch_goes_inline(there: Setup) -> None:
    """Right answers, counted; nothing waits for room."""
    rows = POOL_BYTES // ROW_BYTES + 1
    ((_, shape, data),) = await outputs_of(there.backend, batch(row(3) * rows))
    assert (shape, data) == ((rows, COLUMNS), row(3) * rows)
    counts = (there.backend.batches_shm, there.backend.batches_inline, there.backend.fallbacks)
    assert counts == (0, 1, 1)


async def test_without_room_for_outputs_they_travel_in_the_answer(there: Setup) -> None:
    """The inputs have taken it all."""
    rows = POOL_BYTES // ROW_BYTES
    ((_, _, data),) = await outputs_of(there.backend, batch(row(3) * rows))
    assert data == row(3) * rows
    counts = (there.backend.batches_shm, there.backend.batches_inline, there.backend.fallbacks)
    assert counts == (1, 0, 1)


# -- answers that are refused --------------------------------------------------------------------


async def refused(setup: Setup, call: BatchCall, words: str) -> None:
    """The batch is refused, counted, and its memory is free again."""
    with pytest.raises(MalformedAnswer, match=words):
        await executed(setup.backend, call)
    assert setup.backend.malformed == 1
    assert setup.backend.region.in_use_bytes == 0
    assert setup.backend.region.quarantined == 0


def set_shape(*shape: int) -> Edit:
    def edit(answer: Any) -> None:
        del answer.outputs[0].shape[:]
        answer.outputs[0].shape.extend(shape)

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda answer: answer.outputs.pop(), r"answered outputs \[\]"),
        (lambda answer: answer.outputs.append(answer.outputs[0]), "answered outputs"),
        (lambda answer: setattr(answer.outputs[0], "name", "ELSE"), "answered outputs"),
        (set_shape(3, COLUMNS), "for a batch of 2 rows"),
        (set_shape(), "for a batch of 2 rows"),
        (set_shape(2, COLUMNS + 1), "32 bytes where"),
        (lambda answer: setattr(answer.outputs[0], "datatype", "FP64"), "32 bytes where FP64"),
    ],
    ids=["none", "twice", "another", "rows", "scalar", "columns", "datatype"],
)
@pytest.mark.parametrize("row_bytes", [ROW_BYTES, None], ids=["shared", "inline"])
async def test_an_answer_that_does_not_fit_the_batch_is_refused(
    there: Setup, edit: Edit, words: str, row_bytes: int | None
) -> None:
    """Names, rows and bytes, wherever the output lies."""
    there.grpc.edit = edit
    await refused(there, batch(row(0), row(1), row_bytes=row_bytes), words)


async def test_missing_contents_are_refused(there: Setup) -> None:
    """As a python backend with the wrong numpy answers: right shape, no bytes."""
    there.grpc.edit = lambda answer: answer.ClearField("raw_output_contents")
    await refused(there, batch(row(0), row_bytes=None), "0 bytes where")


async def test_an_output_that_was_not_written_is_refused(there: Setup) -> None:
    """What an earlier batch left in the same place belongs to somebody else."""
    await outputs_of(there.backend, batch(row(40)))
    there.grpc.writes = False
    await refused(there, batch(row(0)), "did not write 'OUTPUT'")


async def test_an_answer_in_the_message_counts_though_memory_was_offered(there: Setup) -> None:
    """A server may decline; then the bytes are there."""

    def inline_after_all(answer: Any) -> None:
        answer.raw_output_contents[0] = row(9)

    there.grpc.edit = inline_after_all
    assert await outputs_of(there.backend, batch(row(0))) == [("OUTPUT", (1, COLUMNS), row(9))]


async def test_bytes_that_are_no_message_are_refused(
    there: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else listens on that port."""

    async def garbage(*_: Any) -> GrpcReply:
        return GrpcReply("OK", "", b"\xff\xff\xff")

    monkeypatch.setattr(there.grpc, "unary", garbage)
    await refused(there, batch(row(0)), "not a ModelInferResponse")
    assert not await there.backend.ready()


# -- the rest of the server ----------------------------------------------------------------------


async def test_closing_unregisters_and_removes_the_region(there: Setup) -> None:
    """Nothing is left, and closing again is harmless."""
    for _ in range(2):
        await there.backend.close()
        assert there.grpc.regions == {}
        assert there.files() == []


async def test_closing_after_triton_has_gone_removes_the_region(there: Setup) -> None:
    """Its end is no reason to leave memory behind."""
    there.grpc.is_up = False
    await there.backend.close()
    assert there.files() == []


@pytest.mark.parametrize("version", ["2.51.0", "2.70.1", ""])
async def test_its_version_is_asked_at_each_connect_and_unknown_if_it_does_not_tell(
    there: Setup, version: str
) -> None:
    there.grpc.version = version
    await there.backend.connect()
    assert there.backend.version == version


async def test_a_triton_that_is_away_is_not_ready_and_cannot_be_asked(there: Setup) -> None:
    """`ready` never raises; the others say so."""
    there.grpc.is_up = False
    assert not await there.backend.ready()
    with pytest.raises(TritonUnavailable):
        await there.backend.model_info("echo", "")
    with pytest.raises(TritonUnavailable):
        await there.backend.connect()
    with pytest.raises(TritonUnavailable):
        await executed(there.backend, batch(row(0)))


@pytest.mark.parametrize(
    ("steps", "devices"),
    [
        (("echo",), ("cpu:echo:0",)),
        (("net", "echo"), ("gpu:0",)),
        (("net", "big"), ("gpu:1",)),
        (("gone", "echo"), ("cpu:echo:0",)),
        (("gone",), ("cpu:all:0",)),
        (("echo", "inner"), ("gpu:1",)),
        (("all",), ("cpu:all:0",)),
    ],
)
async def test_an_ensemble_occupies_what_its_dearest_step_does(
    there: Setup, steps: tuple[str, ...], devices: tuple[str, ...]
) -> None:
    """One that contains itself is looked into within a bound."""
    there.grpc.ensembles = {"all": steps, "inner": ("echo", "big")}
    there.grpc.on_gpu = {"net": 0, "big": 1}
    info = await there.backend.model_info("all", "")
    assert info is not None
    assert (info.devices, info.lone_reason) == (devices, "ensemble")


async def test_the_repositorys_models_and_states_are_told_while_it_answers(there: Setup) -> None:
    assert await there.backend.repository_index() == frozenset({("echo", "1", "READY")})
    there.grpc.is_up = False
    assert await there.backend.repository_index() is None


async def test_the_round_trip_is_the_median_of_empty_calls(there: Setup) -> None:
    """One slow call in five does not count."""
    ticks = iter([0, 3, 10, 12, 20, 21, 30, 99, 100, 104])
    there.grpc.calls.clear()
    assert await there.backend.rtt_ns(lambda: next(ticks), samples=5) == 3
    assert there.grpc.calls == ["ServerLive"] * 5


async def test_a_lone_call_is_sent_as_it_came(there: Setup) -> None:
    """Path, headers and bytes; over its own protocol."""
    headers = (("x-a", "1"), ("x-b", b"2"))
    http = replace(lone_call(Wire.HTTP), headers=headers)
    reply = await there.backend.forward(http)
    assert isinstance(reply, HttpReply)
    assert there.http.requests == [("POST", "/v2/models/echo/infer", headers, bytes(http.raw))]
    grpc = lone_call(Wire.GRPC)
    assert isinstance(await there.backend.forward(grpc), GrpcReply)
    assert there.grpc.requests[-1].SerializeToString() == bytes(grpc.raw)


async def test_a_message_is_made_once_for_batches_of_one_form_in_the_same_places(
    there: Setup,
) -> None:
    """What differs in form or in place has a message of its own."""
    packer = there.backend._packer
    for call in (batch(row(0)), batch(row(1)), batch(row(2), row(3))):
        await outputs_of(there.backend, call)
    first, second, third = there.grpc.requests
    assert first == second
    assert third.inputs[0].shape != first.inputs[0].shape
    assert len(packer._messages) == 2
    held = await executed(there.backend, batch(row(0)))  # its outputs' place is taken meanwhile
    answer = await outputs_of(there.backend, batch(row(4)))
    assert answer[0][2] == row(4)
    assert len(packer._messages) == 3
    held.release()


async def test_the_messages_remembered_are_bounded(
    there: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MESSAGES_MAX", 2)
    for rows in range(1, 6):
        await outputs_of(there.backend, batch(*[row(0)] * rows))
        assert 1 <= len(there.backend._packer._messages) <= 2
