"""Has a client left, or does it only send no more? Rule: ask the kernel, and let the client be.

TCP says the same of both: the end of what it sends. Triton answers a client that half-closes, so
that may not count as leaving; nor may work be done for one that is gone. An interim answer (RFC
9110 15.2: any number may come before the final one) tells them apart: where nobody is left to read
it, the other host resets the connection. HTTP/1.0 has no interim answers: there it is answered.
"""

import asyncio
import socket
from collections.abc import Callable

PROBE_S = 0.01  # after the end of what it sends: most answers are there by then, without a probe
LOOK_S = 0.001  # then, doubling: a round trip on the way to the client
LOOK_S_MAX = 0.5
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_TCP_CLOSE = 7  # tcp_states.h; the first byte of tcp_info


def watch(
    transport: asyncio.Transport, *, is_waiting: Callable[[], bool], left: Callable[[], None]
) -> None:
    """Call `left` if the client of a half-closed connection is gone.

    is_waiting: an answer is owed and not begun; when it is no more, the watch ends.
    """
    loop = asyncio.get_running_loop()

    def probe() -> None:
        if is_waiting():
            transport.write(_CONTINUE)
            loop.call_later(LOOK_S, look, LOOK_S)

    def look(after_s: float) -> None:
        if not is_waiting():
            return
        if _is_reset(transport):
            left()
        else:
            loop.call_later(after_s, look, min(2 * after_s, LOOK_S_MAX))

    loop.call_later(PROBE_S, probe)


def _is_reset(transport: asyncio.Transport) -> bool:
    connection = transport.get_extra_info("socket")
    try:
        state: bytes = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except OSError:
        return True  # not even a descriptor is left
    return state[0] == _TCP_CLOSE
