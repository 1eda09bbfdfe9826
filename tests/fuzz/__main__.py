"""Odd requests by the thousand, to Triton and through a sidecar that merges, beside neighbours.

    make fuzz ARGS='--minutes 30'
    make fuzz ARGS='--minutes 1 --seed 7'      # the same requests again

A finding is an answer that is not Triton's (but for the rules of tests/differential/compare.py), a
status of the sidecar's own making, a request that hangs, a neighbour who is told something else, or
a sidecar that ends. Each is printed with its bytes, to become a case of the table. Exit code 1 if
there was one. A Triton that ends is started again: that is Triton's finding.
"""

import asyncio
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from tests.differential import grpc_cases, http_control, http_framing, http_infer, http_json
from tests.differential.cases import GrpcCase, HttpCase
from tests.differential.conftest import ENVIRONMENT, MERGING, Outcome, Stage
from tests.differential.models import write_repository
from tests.differential.neighbours import TRITON_HANGS, beside
from tests.fuzz.command import command
from tests.fuzz.mutate import mutated
from tests.fuzz.verdict import UNANSWERED, Unanswered, finding
from tests.integration.sidecars import grpc_url, http_url, running_sidecar
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.sidecar import Sidecar

AT_ONCE = 24  # requests in flight to each side
WAIT_S = 1.5  # for Triton; then it waits for more of the request, and so must the sidecar
HANG_S = 30.0  # for the sidecar when Triton has answered: it queues, and merges as much as it can
FINDINGS_MAX = 50
TRIES = 3
SEEDS: list[HttpCase | GrpcCase] = [
    *http_infer.TABLE.values(),
    *http_json.SHAPES.values(),
    *http_control.GENERATES.values(),
    *[case for name, case in http_control.CONTROL.items() if "infer" in name],
    *[case for case in http_framing.TABLE.values() if not case.may_differ],
    *[case for case in grpc_cases.TABLE.values() if case.ask.method == "ModelInfer"],
    *grpc_cases.STREAMS.values(),
]
GRPC = [case for case in SEEDS if isinstance(case, GrpcCase) and case.ask.messages]


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def asked(
    stage: Stage, case: Any, *, http: str, grpc: str, wait_s: float
) -> Outcome | Unanswered:
    """By whoever listens there."""
    try:
        async with asyncio.timeout(wait_s):
            return await stage.at(case, http=http, grpc=grpc)
    except (TimeoutError, OSError, ValueError, IndexError) as error:
        return UNANSWERED if isinstance(error, TimeoutError) else Unanswered(repr(error))


async def both(stage: Stage, case: Any, sidecar: Sidecar) -> str:
    """What is wrong with the sidecar's answer; empty if nothing is."""
    fault = ""
    triton = stage.triton
    for _ in range(TRIES):  # Triton itself is not always the same, nor always quick
        there = {"http": triton.http_address, "grpc": triton.grpc_address}
        theirs = await asked(stage, case, **there, wait_s=WAIT_S)
        wait_s = WAIT_S if theirs == UNANSWERED else HANG_S
        here = {"http": http_url(sidecar), "grpc": grpc_url(sidecar)}
        fault = finding(case, theirs, await asked(stage, case, **here, wait_s=wait_s))
        if not fault or not triton.is_running:
            break
    return fault


class Fuzz:
    """One run. found: what was found, with the request."""

    def __init__(self, stage: Stage, random: Random) -> None:
        self.stage = stage
        self.random = random
        self.found: list[str] = []
        self.counts: Counter[str] = Counter()

    async def run(self, until_s: float) -> None:
        """Restarted with Triton when that ends."""
        while time.monotonic() < until_s and len(self.found) < FINDINGS_MAX:
            async with running_sidecar(self.stage.triton, policy=MERGING) as sidecar:
                async with beside(self.stage, sidecar) as faults:
                    workers = (self._on(sidecar, until_s, faults) for _ in range(AT_ONCE))
                    await asyncio.gather(*workers)
                hangs = any(TRITON_HANGS in fault for fault in faults)
                if self.stage.triton.is_running and not hangs:
                    self.found += faults
                    for fault in faults:
                        say(fault)
                    faults.clear()
                    continue
            self.counts["Triton ended"] += 1
            say("Triton ended, or hangs; its last requests were not looked at")
            self.stage.answers.clear()
            await self.stage.triton.restart()

    async def _on(self, sidecar: Sidecar, until_s: float, faults: list[str]) -> None:
        """One after the other, as one of AT_ONCE; those that wait for more take their time."""
        running = self.stage.triton
        while time.monotonic() < until_s and running.is_running and not faults:
            if len(self.found) >= FINDINGS_MAX:
                return
            case = mutated(self.random.choice(SEEDS), GRPC, self.random)
            fault = await both(self.stage, case, sidecar)
            self.counts["requests"] += 1
            if fault and running.is_running:
                self.found.append(fault)
                say(f"{case.ask}\n  {fault}")


async def fuzz(minutes: float, seed: int) -> int:
    """The number of findings."""
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory) / "models"
        write_repository(models)
        config = EmbeddedConfig(
            repository=models,
            environment=ENVIRONMENT,
            run_dir=Path(directory) / "run",
            control_mode="explicit",
        )
        async with EmbeddedTriton(config) as triton:
            stage = Stage(triton)
            run = Fuzz(stage, Random(seed))
            await run.run(time.monotonic() + 60 * minutes)
            await stage.close()
    say(f"{dict(run.counts)}, {len(run.found)} findings, seed {seed}")
    return len(run.found)


if __name__ == "__main__":
    command("fuzz", fuzz)
