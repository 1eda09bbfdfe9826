"""Open-loop load over gRPC, as a process of its own: many models, classes, reserved streams.

    python -m tests.bench.live_load TRACE

TRACE is JSON: `target`, and `shots` of [at_ns, model, class, deadline_ms, reservation] in order of
time, at_ns on the machine's monotonic clock; a deadline of 0 is none. What came of each shot is
printed as JSON. No call is cancelled and none is waited for before the next one is due; how late
the generator itself was is part of what is printed. Requests are one row for an emulated GPU.
"""

import asyncio
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.backend.upstream_h2 import H2Upstream
from tritonsched.errors import TritonUnavailable
from tritonsched.proxy.timer import TimerFd
from tritonsched.tensors import GrpcReply

ROW_FLOATS = 4
DRAIN_S = 20.0
METHOD = f"{SERVICE}ModelInfer"


class Shot(NamedTuple):
    """One request. at_ns: when it is due to be sent. deadline_ms: 0 for none."""

    at_ns: int
    model: str
    slo: str
    deadline_ms: float = 0.0
    reservation: str = ""


def message(model: str) -> bytes:
    request = pb.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="INPUT", datatype="FP32", shape=[1, ROW_FLOATS])
    assert tensor is not None
    request.raw_input_contents.append(b"\0\0\x80?" * ROW_FLOATS)
    made: bytes = request.SerializeToString()
    return made


def metadata(shot: Shot) -> tuple[tuple[str, str], ...]:
    made = [("x-tritonsched-class", shot.slo)]
    if shot.deadline_ms:
        made.append(("x-request-deadline-ms", f"{shot.deadline_ms:g}"))
    if shot.reservation:
        made.append(("x-tritonsched-reservation", shot.reservation))
    return tuple(made)


class Load:
    """Sends what is due when it is due. took_ms: from the due time to the answer, by shot; None
    where nothing came. statuses: `ok`, or why not.
    """

    def __init__(self, upstream: H2Upstream, shots: list[Shot]) -> None:
        self.statuses = ["unanswered"] * len(shots)
        self.took_ms: list[float | None] = [None] * len(shots)
        self.lags_ns: list[int] = []
        self._upstream = upstream
        self._shots = shots
        self._messages = {model: message(model) for model in {shot.model for shot in shots}}
        self._next = 0
        self._out = 0
        self._over = asyncio.Event()
        self._timer = TimerFd(asyncio.get_running_loop(), self._fire)

    async def run(self) -> None:
        self._fire()
        left_s = max(0, self._shots[-1].at_ns - time.monotonic_ns()) / 1e9
        try:
            async with asyncio.timeout(left_s + DRAIN_S):
                await self._over.wait()
        except TimeoutError:
            pass
        finally:
            self._timer.close()

    def _fire(self) -> None:
        while self._next < len(self._shots):
            shot = self._shots[self._next]
            now = time.monotonic_ns()
            if shot.at_ns > now:
                self._timer.arm(shot.at_ns)
                return
            self.lags_ns.append(now - shot.at_ns)
            done = partial(self._done, self._next)
            self._next += 1
            self._out += 1
            self._upstream.send(METHOD, self._messages[shot.model], done, metadata(shot))

    def _done(self, index: int, reply: GrpcReply | TritonUnavailable) -> None:
        self._out -= 1
        if isinstance(reply, TritonUnavailable):
            self.statuses[index] = "unavailable"
        else:
            self.statuses[index] = "ok" if reply.code == "OK" else reply.code.lower()
            self.took_ms[index] = (time.monotonic_ns() - self._shots[index].at_ns) / 1e6
        if not self._out and self._next == len(self._shots):
            self._over.set()


async def run(trace: dict[str, Any]) -> dict[str, Any]:
    """Everything of a trace."""
    upstream = H2Upstream(trace["target"])
    await upstream.start()
    load = Load(upstream, [Shot(*values) for values in trace["shots"]])
    cpu_s = time.process_time()
    await load.run()
    cpu_s = time.process_time() - cpu_s
    await upstream.close()
    return {
        "statuses": load.statuses,
        "took_ms": load.took_ms,
        "lags_ms": [lag_ns / 1e6 for lag_ns in load.lags_ns],
        "cpu_us": cpu_s * 1e6 / len(load.statuses),
    }


def main() -> None:
    trace = json.loads(Path(sys.argv[1]).read_text())
    sys.stdout.write(json.dumps(uvloop.run(run(trace))) + "\n")


if __name__ == "__main__":
    main()
