"""Traffic beside a case: clients whose requests merge with it and with each other. Rule: each knows
what Triton answers it, id and all, and looks at every answer: a foreign byte is a failure.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import numpy as np

from tests.differential.cases import GrpcCase, HttpCase, infer, plain, slot
from tests.differential.conftest import Case, Stage
from tests.differential.grpc_cases import PAIR, request
from tests.differential.grpc_cases import infer as grpc_infer
from tests.differential.http_infer import texts
from tritonsched.sidecar import Sidecar

MARK = "neighbour"
COUNT = 3  # clients of each kind


def clients() -> list[Case]:
    """Of each kind some, all with ids, values and sizes of their own; some are refused by their
    model.
    """
    made: list[Case] = []
    for number in range(COUNT):
        made += _http(number, f"{MARK}-{number}")
        made += _grpc(number, f"{MARK}-g{number}")
    return made


def _http(number: int, name: str) -> list[HttpCase]:
    rows = 1 + number % 2
    data = np.full((rows, 2), number + 10, np.float32)
    head = plain(id=name, inputs=[slot(shape=(rows, 2), size=data.nbytes)])
    wrong = np.full((1, 2), -1 - number % 8, np.float32)
    return [
        infer(head, data.tobytes()),
        infer(plain(id=f"{name}-refused"), wrong.tobytes()),
        texts(name.encode() * number, b"\xff", id=name),
        infer(plain(id=name), data[:1].tobytes(), model="ver", version="13"[number % 2]),
    ]


def _grpc(number: int, name: str) -> list[GrpcCase]:
    a, b = (np.full((1, 2), value, np.int32).tobytes() for value in (number, 100))
    data = np.full((1, 2), number + 50, np.float32)
    return [
        grpc_infer(request("pair", PAIR, (a, b), id=name)),
        grpc_infer(request(raws=(data.tobytes(),), id=name)),
        grpc_infer(request(raws=((-data / 25).tobytes(),), id=f"{name}-refused")),
    ]


TRITON_HANGS = "Triton does not answer either"


@contextlib.asynccontextmanager
async def beside(stage: Stage, sidecar: Sidecar) -> AsyncIterator[list[str]]:
    """They ask again and again while the block runs; what went wrong for them is in the list."""
    faults: list[str] = []
    made = clients()
    for client in made:
        await stage.theirs(client)
    stop = asyncio.Event()

    async def ask_on(client: Case) -> None:
        while not stop.is_set():
            if fault := await difference(stage, client, sidecar):
                faults.append(fault)
                return

    tasks = [asyncio.create_task(ask_on(client)) for client in made]
    try:
        yield faults
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def difference(stage: Stage, client: Case, sidecar: Sidecar) -> str:
    """Between what Triton and the sidecar answer, or who does not; empty if there is none."""
    try:
        return await stage.difference(client, sidecar)
    except TimeoutError:
        running = sidecar.scheduler.running()
        return f"{client}: {await _silence(stage, client)}; running: {running}"


async def _silence(stage: Stage, client: Case) -> str:
    """Who does not answer it."""
    try:
        await stage.asked(client)
    except TimeoutError:
        return TRITON_HANGS
    return "the sidecar does not answer, Triton does"
