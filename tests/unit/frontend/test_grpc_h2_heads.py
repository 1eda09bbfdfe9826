"""Headers that are the last call's are not read anew; what is a call's own stays its own."""

from tests.unit.frontend.test_grpc_h2_connection import serving
from tritonsched.frontend import grpc_h2_call, grpc_h2_connection


async def test_what_a_call_says_of_itself_holds_for_no_other_of_its_connection() -> None:
    """Neither its timeout nor its metadata, however alike the calls are."""
    timed, named = (b"grpc-timeout", b"5S"), (b"x-tritonsched-class", b"gold")
    async with serving() as there, there.client() as client:
        for said in ((), (timed,), (), (named,), (named, timed), ()):
            await client.status(client.call(*said))
        heard = [(c.hints.grpc_remaining_ns is not None, c.slo) for c in there.service.calls]
        names = (None, None, None, "gold", "gold", None)
        assert heard == list(zip((False, True, False, False, True, False), names, strict=True))


async def test_only_headers_of_a_bounded_length_are_kept() -> None:
    long = (b"x-long", b"x" * grpc_h2_call.HEAD_BYTES_MAX)
    async with serving() as there, there.client() as client:
        await client.status(client.call(long))
        (connection,) = there.server.gate
        assert isinstance(connection, grpc_h2_connection.Connection)
        assert connection._head is None  # it would hold what they say, too
        assert (await client.status(client.call()))[b"grpc-status"] == b"0"
        assert connection._head is not None
        assert connection._head.said
