"""Large messages over HTTP/2 whose fate is known before they have come."""

import ngh2
from tritonclient.grpc import service_pb2 as pb

from tests.unit.frontend.h2_client import Client
from tests.unit.frontend.test_grpc_h2_connection import Setup, serving
from tritonsched.errors import DeadlineUnreachable
from tritonsched.frontend import grpc_wire
from tritonsched.frontend.grpc_framing import framed
from tritonsched.frontend.grpc_h2_call import EARLY_BYTES_MIN


def picture(size: int, model: str = "m") -> bytes:
    """One input of so many bytes."""
    request = pb.ModelInferRequest(model_name=model, id="x")
    request.inputs.add(name="IN", datatype="UINT8", shape=(1, size))
    request.raw_input_contents.append(b"p" * size)
    message: bytes = request.SerializeToString()
    return message


async def begin(there: Setup, client: Client, body: bytes) -> int:
    """A call like one before, of which the first 10,000 bytes are sent."""
    stream_id = client.call(body=body)  # this one is whole: its layout is known then
    await client.status(stream_id)
    there.service.refused = DeadlineUnreachable("too late")
    stream_id = client.open()
    client.engine.send_data(stream_id, body[:10_000])
    client.flush()
    return stream_id


async def test_a_hopeless_call_is_refused_before_its_tensors_have_come() -> None:
    """With what its head says, and its stream is ended: the rest need not be sent."""
    async with serving() as there, there.client() as client:
        stream_id = await begin(there, client, framed(picture(EARLY_BYTES_MIN)))
        status = await client.status(stream_id)
        assert status[b"x-tritonsched-reason"] == b"deadline-unreachable"
        begun = there.service.begun[-1]
        assert (begun.model, begun.id, begun.inputs[0].shape) == ("m", "x", (1, EARLY_BYTES_MIN))
        assert len(there.service.calls) == 1
        there.service.refused = None
        stream_id = client.call(body=framed(picture(10)))  # the connection lives
        assert (await client.status(stream_id))[b"grpc-status"] == b"0"


async def test_a_message_that_is_soon_here_is_waited_for() -> None:
    async with serving() as there, there.client() as client:
        body = framed(picture(EARLY_BYTES_MIN // 2))
        stream_id = await begin(there, client, body)
        client.engine.send_data(stream_id, body[10_000:], end_stream=True)
        client.flush()
        assert (await client.until(ngh2.StreamClosed, stream_id)).error_code == 0
        assert (len(there.service.begun), len(there.service.calls)) == (0, 2)


def test_a_call_is_known_by_its_first_piece_if_one_like_it_came_before() -> None:
    message = picture(5000, "early")
    first = framed(message)[:200]

    def known(piece: bytes, *metadata: tuple[str, str]) -> bool:
        made = grpc_wire.decode_head(piece, metadata, received_ns=1, remaining_ns=2)
        return made is not None and made.hints.grpc_remaining_ns == 2

    assert not known(first)
    assert grpc_wire.decode(message, (), received_ns=0, remaining_ns=None).inputs
    assert known(first)
    assert not known(first[:3])
    assert not known(b"\1" + first[1:])  # compressed
    assert not known(first, ("endpoint-load-metrics-format", "text"))
