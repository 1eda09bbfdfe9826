"""What every backend promises the driver. One class of tests; each implementation runs it.

A subclass gives a fixture `backend` that serves `echo`: INPUT, FP32 [rows, n], comes back as
OUTPUT.
"""

import asyncio
import json
import struct

import pytest
from tritonclient.grpc import service_pb2

from tritonsched.backend.base import Backend
from tritonsched.backend.batch_call import BatchCall, BatchInput, BatchOutput, BatchReply
from tritonsched.errors import BackendError, TritonschedError
from tritonsched.tensors import Buffer, GrpcReply, HttpReply, InferCall, Tensor, Wire

COLUMNS = 4
ROW_BYTES = 4 * COLUMNS
AT_ONCE = 16


def row(start: int) -> bytes:
    """One row of FP32, counting up from `start`."""
    return struct.pack(f"<{COLUMNS}f", *range(start, start + COLUMNS))


def batch(
    *parts: Buffer, model: str = "echo", row_bytes: int | None = ROW_BYTES, number: int = 1
) -> BatchCall:
    """A merged call of whole rows."""
    rows = sum(map(len, parts)) // ROW_BYTES
    return BatchCall(
        id=number,
        model=model,
        version="",
        rows=rows,
        inputs=(BatchInput("INPUT", "FP32", (rows, COLUMNS), parts),),
        outputs=(BatchOutput("OUTPUT", row_bytes),),
        parameters={},
    )


def lone_call(wire: Wire, *, model: str = "echo") -> InferCall:
    """One row, with original bytes that a real Triton understands."""
    data = row(7)
    if wire is Wire.GRPC:
        message = service_pb2.ModelInferRequest(model_name=model, id="mine")
        message.inputs.add(name="INPUT", datatype="FP32", shape=(1, COLUMNS))
        message.raw_input_contents.append(data)
        raw = message.SerializeToString()
    else:
        values = list(range(7, 7 + COLUMNS))
        tensor = {"name": "INPUT", "datatype": "FP32", "shape": [1, COLUMNS], "data": values}
        raw = json.dumps({"id": "mine", "inputs": [tensor]}).encode()
    return InferCall(
        wire=wire,
        model=model,
        version="",
        id="mine",
        received_ns=0,
        raw=raw,
        path=f"/v2/models/{model}/infer" if wire is Wire.HTTP else "",
        inputs=(Tensor("INPUT", "FP32", (1, COLUMNS), data),),
    )


async def executed(backend: Backend, call: BatchCall) -> BatchReply:
    """The batch's answer. Raises what it ended with."""
    future: asyncio.Future[BatchReply] = asyncio.get_running_loop().create_future()

    def done(outcome: BatchReply | TritonschedError) -> None:
        assert not future.done(), "told twice"
        if isinstance(outcome, TritonschedError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    backend.send(call, done)
    return await asyncio.shield(future)


async def outputs_of(backend: Backend, call: BatchCall) -> list[tuple[str, tuple[int, ...], bytes]]:
    """Name, shape and bytes of a batch's outputs; the answer is released."""
    reply = await executed(backend, call)
    try:
        assert reply.model == call.model
        return [(tensor.name, tensor.shape, bytes(tensor.data)) for tensor in reply.outputs]
    finally:
        reply.release()


class BackendContract:
    """Tests to inherit."""

    async def test_parts_come_back_in_order_as_one_tensor(self, backend: Backend) -> None:
        """Parts of one row, of several, as bytes and as views, stand one after the other."""
        parts = (row(0), memoryview(row(10) + row(20)), bytearray(row(30)))
        answer = await outputs_of(backend, batch(*parts))
        assert answer == [("OUTPUT", (4, COLUMNS), b"".join(parts))]

    async def test_an_output_of_unknown_size_comes_back_too(self, backend: Backend) -> None:
        """Nothing is known of its bytes before the answer."""
        answer = await outputs_of(backend, batch(row(1), row(2), row_bytes=None))
        assert answer == [("OUTPUT", (2, COLUMNS), row(1) + row(2))]

    async def test_batches_at_once_do_not_mix(self, backend: Backend) -> None:
        """Each gets its own rows, whatever the others do meanwhile."""
        calls = [batch(*[row(n)] * (1 + n % 8), number=n) for n in range(AT_ONCE)]
        answers = await asyncio.gather(*(outputs_of(backend, call) for call in calls))
        for number, ((_, _, data),) in enumerate(answers):
            assert data == row(number) * (1 + number % 8)

    async def test_a_failed_batch_raises_with_tritons_code(self, backend: Backend) -> None:
        """So that the driver can take it apart."""
        with pytest.raises(BackendError, match="nowhere") as caught:
            await executed(backend, batch(row(0), model="nowhere"))
        assert caught.value.grpc_code_name == "NOT_FOUND"

    @pytest.mark.parametrize("wire", list(Wire))
    async def test_a_lone_call_is_answered_on_its_own_protocol(
        self, backend: Backend, wire: Wire
    ) -> None:
        """Original bytes there, the answer as it came back."""
        reply = await backend.forward(lone_call(wire))
        if wire is Wire.HTTP:
            assert isinstance(reply, HttpReply)
            assert reply.status == 200
        else:
            assert isinstance(reply, GrpcReply)
            assert reply.code == "OK"

    @pytest.mark.parametrize("wire", list(Wire))
    async def test_an_error_that_triton_answers_is_an_answer(
        self, backend: Backend, wire: Wire
    ) -> None:
        """Triton's own status and text go to the client."""
        reply = await backend.forward(lone_call(wire, model="nowhere"))
        if wire is Wire.HTTP:
            assert isinstance(reply, HttpReply)
            assert reply.status >= 400
            assert b"nowhere" in bytes(reply.body)
        else:
            assert isinstance(reply, GrpcReply)
            assert reply.code == "NOT_FOUND"
            assert "nowhere" in reply.details

    async def test_a_model_is_described_under_the_version_asked_for(self, backend: Backend) -> None:
        """The driver keys its knowledge by what the client wrote."""
        newest = await backend.model_info("echo", "")
        first = await backend.model_info("echo", "1")
        assert newest is not None
        assert first is not None
        assert (newest.version, first.version) == ("", "1")
        assert newest.max_batch_size >= 8
        assert set(newest.inputs) == {"INPUT"}
        assert newest.lone_reason == ""

    async def test_a_model_that_is_not_served_is_none(self, backend: Backend) -> None:
        """Not an error: the call is forwarded and Triton words it."""
        assert await backend.model_info("nowhere", "") is None

    async def test_a_backend_that_is_up_is_ready(self, backend: Backend) -> None:
        """The driver may send."""
        assert await backend.ready()
