"""What a client says on HTTP/2, frame by frame, and how it goes wrong. Rule: all chance is given.

A conversation is a list of frames as a sound client sends them: calls of several methods whose
messages come in pieces, trailers, pings, windows, resets. `spoilt` plants faults by structure: a
frame's kind, flags, stream, length or payload is another, frames are lost, doubled, exchanged,
repeated by the thousand, cut off or made of nothing. Source: RFC 9113 6, RFC 7541.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import ngh2
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.frontend.grpc_framing import framed

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
METHODS = ("ModelInfer", "ModelStreamInfer", "ServerLive", "ModelMetadata", "Nothing", "ModelInfer")
CALLS_MAX = 6
FAULTS_MAX = 4
REPEATS_MAX = 6_000
PAYLOAD_BYTES_MAX = 4_096  # of a payload made up


@dataclass(frozen=True, slots=True)
class Frame:
    """length: what its head says, if that is not its payload's."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes
    length: int | None = None

    def encode(self) -> bytes:
        length = len(self.payload) if self.length is None else self.length
        head = (length & 0xFFFFFF).to_bytes(3, "big") + bytes((self.kind & 255, self.flags & 255))
        return head + (self.stream_id & 0xFFFFFFFF).to_bytes(4, "big") + self.payload


def frames_of(data: bytes) -> list[Frame]:
    """Whole frames, as a sound engine writes them."""
    frames = []
    while data:
        length = int.from_bytes(data[:3], "big")
        stream_id = int.from_bytes(data[5:9], "big")
        frames.append(Frame(data[3], data[4], stream_id, data[9 : 9 + length]))
        data = data[9 + length :]
    return frames


def conversation(random: Random) -> tuple[list[Frame], list[int]]:
    """A sound one, after the preface, and the streams that it must be answered on."""
    engine = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration())
    engine.initiate_connection({ngh2.Setting.INITIAL_WINDOW_SIZE: random.choice((0, 100, 1 << 20))})
    data = engine.data_to_send().removeprefix(PREFACE)
    wanted = []
    for _ in range(random.randint(1, CALLS_MAX)):
        stream_id, is_whole = _call(engine, random)
        if is_whole:
            wanted.append(stream_id)
        if random.random() < 0.2:
            engine.ping()
        data += engine.data_to_send()
    return frames_of(data), wanted


def _call(engine: ngh2.Connection, random: Random) -> tuple[int, bool]:
    method = random.choice(METHODS)
    headers = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", f"{SERVICE}{method}".encode()),
        (b":authority", b"x"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    ]  # fmt: skip
    if random.random() < 0.3:
        headers.append((b"grpc-timeout", random.choice((b"1m", b"10S", b"x", b"99999999H"))))
    if random.random() < 0.3:
        headers.append((b"k" * random.randint(1, 50), b"v" * random.randint(0, 3000)))
    stream_id = engine.send_request(headers)
    body = b"".join(_message(random) for _ in range(random.choice((1, 1, 1, 2, 5))))
    while body:
        size = random.choice((1, 5, 100, len(body)))
        engine.send_data(stream_id, body[:size])
        body = body[size:]
    ending = random.random()
    if ending < 0.1:
        engine.reset_stream(stream_id, random.choice((0, 8)))
    elif ending < 0.2:
        engine.send_trailers(stream_id, [(b"k", b"v")])
    elif ending < 0.95:
        engine.end_stream(stream_id)
    return stream_id, 0.1 <= ending < 0.95


def _message(random: Random) -> bytes:
    made = pb.ModelInferRequest(model_name="m", id=str(random.random()))
    made.inputs.add(name="IN", datatype="FP32", shape=(1, 4))
    made.raw_input_contents.append(random.randbytes(16))
    message: bytes = framed(made.SerializeToString())
    return message


# -- faults ----------------------------------------------------------------------------------------


def spoilt(frames: list[Frame], random: Random) -> bytes:
    """The same conversation with faults, as bytes; maybe without a sound preface."""
    frames = list(frames)
    for _ in range(random.randint(1, FAULTS_MAX)):
        where = random.randrange(len(frames) + 1)
        random.choice(FAULTS)(frames, where, random)
    data = (PREFACE if random.random() < 0.97 else random.randbytes(24)) + b"".join(
        frame.encode() for frame in frames
    )
    if random.random() < 0.2:
        data = _with_noise(data, random)
    return data[: random.randrange(len(data))] if random.random() < 0.2 else data


def _with_noise(data: bytes, random: Random) -> bytes:
    where = random.randrange(len(data))
    noise = random.randbytes(random.choice((1, 4, 9, 100)))
    return data[:where] + noise + data[where + random.choice((0, len(noise))) :]


def _lose(frames: list[Frame], where: int, random: Random) -> None:
    del frames[where : where + random.choice((1, 1, 3))]


def _double(frames: list[Frame], where: int, random: Random) -> None:
    frames[where:where] = frames[where : where + random.choice((1, 2))]


def _exchange(frames: list[Frame], where: int, random: Random) -> None:
    if frames:
        one, other = where % len(frames), random.randrange(len(frames))
        frames[one], frames[other] = frames[other], frames[one]


def _repeat(frames: list[Frame], where: int, random: Random) -> None:
    count = random.choice((3, 100, REPEATS_MAX))
    frames[where:where] = frames[where : where + 1] * count


def _change(frames: list[Frame], where: int, random: Random) -> None:
    if not frames:
        return
    where %= len(frames)
    frame = frames[where]
    size = len(frame.payload)
    changes: tuple[Callable[[], Frame], ...] = (
        lambda: replace(frame, kind=random.choice((*range(11), 16, 255))),
        lambda: replace(frame, flags=frame.flags ^ (1 << random.randrange(8))),
        lambda: replace(frame, stream_id=random.choice((0, 1, 2, 3, 99, (1 << 31) - 1, 1 << 31))),
        lambda: replace(frame, length=random.choice((0, size + 1, max(0, size - 1), 1 << 23))),
        lambda: replace(frame, payload=frame.payload[: random.randrange(size + 1)]),
        lambda: replace(frame, payload=_scratched(frame.payload, random)),
    )
    frames[where] = random.choice(changes)()


def _scratched(payload: bytes, random: Random) -> bytes:
    made = bytearray(payload)
    for _ in range(random.choice((1, 1, 5))):
        if made:
            made[random.randrange(len(made))] = random.randrange(256)
    return bytes(made)


def _make_up(frames: list[Frame], where: int, random: Random) -> None:
    size = random.choice((0, 1, 4, 4, 5, 6, 8, 8, random.randrange(PAYLOAD_BYTES_MAX)))
    stream_id = random.choice((0, 1, 3, 5, 2 * random.randrange(1000) + 1))
    flags = random.choice((0, 1, 4, 5, 8, 0x20, random.randrange(256)))
    made = Frame(random.randrange(11), flags, stream_id, random.randbytes(size))
    frames[where:where] = [made] * random.choice((1, 1, 50))


def _split_headers(frames: list[Frame], where: int, random: Random) -> None:
    """Into CONTINUATIONs, of which some may be empty or wrong."""
    lists = [index for index, frame in enumerate(frames) if frame.kind == HEADERS]
    if not lists:
        return
    where = random.choice(lists)
    frame = frames[where]
    cut = random.randrange(len(frame.payload) + 1)
    count = random.choice((0, 1, 20))
    frames[where : where + 1] = [
        replace(frame, flags=frame.flags & ~4, payload=frame.payload[:cut]),
        *[Frame(CONTINUATION, 0, frame.stream_id, b"")] * count,
        Frame(CONTINUATION, 4, frame.stream_id, frame.payload[cut:]),
    ]


FAULTS = (_lose, _double, _exchange, _repeat, _change, _change, _change, _make_up, _split_headers)
