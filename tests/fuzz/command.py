"""The command line of a fuzzer. Rule: exit 1 if anything was found."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable

import uvloop


def command(prog: str, fuzz: Callable[[float, int], Awaitable[int]]) -> None:
    """fuzz: of minutes and seed; returns the number of findings."""
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()

    async def run() -> int:
        return await fuzz(given.minutes, given.seed)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(1 if runner.run(run()) else 0)
