"""What it costs that copies to and from a GPU are done by threads. No GPU is needed.

    python -m tests.bench.lanes                 # a table, some seconds

A batch on a GPU is handed to a thread and back twice: before its message and after its answer. This
measures that alone: scripted copies of nothing, one after the other (each begun when the last was
heard of, as batches of one device are), against a turn of the event loop, which polling would take
as often as it looks. wall: from handing over to hearing. CPU: of the process, both threads.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable

import uvloop

from tritonsched.backend.cuda_lane import Lane
from tritonsched.backend.scripted_cuda import ScriptedCuda
from tritonsched.errors import CudaFault

Begin = Callable[[Callable[[], None]], None]


async def hops(begin: Begin, count: int) -> tuple[list[int], int]:
    """Wall times of `count` hops in ns, and the CPU time of all. begin: starts one; told when it
    has ended.
    """
    loop, times = asyncio.get_running_loop(), []
    cpu = time.process_time_ns()
    for _ in range(count):
        ended = loop.create_future()
        begun = time.perf_counter_ns()
        begin(lambda ended=ended: ended.set_result(None))  # type: ignore[misc]  # a default
        await ended
        times.append(time.perf_counter_ns() - begun)
    return times, time.process_time_ns() - cpu


async def table(count: int) -> None:
    loop = asyncio.get_running_loop()
    lane = Lane(ScriptedCuda().stream(0), loop, "bench")

    def by_thread(ended: Callable[[], None]) -> None:
        def told(fault: CudaFault | None) -> None:
            assert fault is None
            ended()

        lane.do(lambda _: None, told)

    def by_turn(ended: Callable[[], None]) -> None:
        loop.call_soon(ended)

    sys.stdout.write("hop             wall p50 us   wall p99 us   CPU us\n")
    for name, begin in (("thread", by_thread), ("loop turn", by_turn)):
        await hops(begin, count // 10)
        times, cpu = await hops(begin, count)
        p50, p99 = statistics.median(times) / 1e3, sorted(times)[count * 99 // 100] / 1e3
        sys.stdout.write(f"{name:<15} {p50:11.1f}   {p99:11.1f}   {cpu / count / 1e3:6.1f}\n")
    await asyncio.to_thread(lane.end)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.lanes")
    parser.add_argument("--count", type=int, default=20_000, help="hops of each kind")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(table(options.count))


if __name__ == "__main__":
    main()
