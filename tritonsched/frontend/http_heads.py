"""Heads of requests that were parsed before. Rule: byte for byte the same head, the same meaning.

A steady client sends the same head with every request, so looking it up saves parsing it, which is
a third of what a 12 KB request costs in the frontend. Only what the parser has accepted and what
says nothing but "POST, this long, keep the connection" is remembered; anything that asks for more
(chunks, `Expect`, an upgrade, closing) is parsed each time.
"""

from dataclasses import dataclass

from tritonsched.frontend.http_message import Headers

HEADS_MAX = 1024  # remembered by a server; a client that puts an id into each head only fills it up
HEAD_BYTES_MAX = 4096  # longer ones are parsed each time
_END = b"\r\n\r\n"
_SPECIAL = frozenset({"transfer-encoding", "expect", "upgrade", "connection", "trailer"})


@dataclass(slots=True)
class Head:
    """size_bytes: of the head itself, its empty line included. body_bytes: of what follows."""

    target: str
    headers: Headers
    size_bytes: int
    body_bytes: int


class KnownHeads:
    """The heads that one server has seen."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def read(self, data: bytes) -> Head | None:
        """The head that `data` begins with, if it is whole and known."""
        end = data.find(_END, 0, HEAD_BYTES_MAX)
        return self._known.get(data[: end + len(_END)]) if end > 0 else None

    def learn(self, data: bytes, target: str, headers: Headers, body_bytes: int) -> None:
        """The parser read a POST at the start of `data` so. Not remembered unless it is plain."""
        end = data.find(_END, 0, HEAD_BYTES_MAX)
        raw = data[: end + len(_END)]
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        plain = (
            end > 0
            and raw.startswith(b"POST ")
            and raw.partition(b"\r\n")[0].endswith(b" HTTP/1.1")
            and raw.count(b"\n") == len(headers) + 2  # no folded line, nothing before the request
            and lengths == [str(body_bytes)]
            and not any(name.lower() in _SPECIAL for name, _ in headers)
        )
        if not plain:
            return
        if len(self._known) >= HEADS_MAX:
            self._known.clear()
        self._known[raw] = Head(target, headers, len(raw), body_bytes)
