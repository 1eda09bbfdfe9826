"""Real grpcio clients: threads that share a channel, each with one call at a time. Rule: it prints
one line of JSON, or ends with an error if any call failed.

    python -m tests.bench.grpc_clients --target HOST:PORT --body FILE --requests 10000
"""

import argparse
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from tests.bench.loads import INFER
from tests.bench.meter import quantile
from tritonsched.frontend.grpc_framing import PREFIX_BYTES

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
WARM_UP_SHARE = 0.1


def ask(target: str, message: bytes, *, requests: int, threads: int) -> dict[str, float]:
    """Requests a second and latencies in µs. Raises grpc.RpcError."""
    with grpc.insecure_channel(target, options=OPTIONS) as channel:
        call = channel.unary_unary(INFER, None, None)
        warm_up = max(1, int(requests * WARM_UP_SHARE))
        for _ in range(warm_up):
            call(message)
        left = iter(range(requests))
        lock = threading.Lock()

        def worker() -> list[float]:
            took: list[float] = []
            while True:
                with lock:
                    if next(left, None) is None:
                        return took
                start = time.perf_counter()
                call(message)
                took.append((time.perf_counter() - start) * 1e6)

        begin = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            found = [us for future in [pool.submit(worker) for _ in range(threads)]
                     for us in future.result()]  # fmt: skip
        seconds = time.perf_counter() - begin
    found.sort()
    return {
        "sent": warm_up + requests,
        "requests_per_s": requests / seconds,
        "p50_us": quantile(found, 0.5),
        "p99_us": quantile(found, 0.99),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--body", type=Path, required=True, help="a gRPC message with its prefix")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=16)
    options = parser.parse_args()
    message = options.body.read_bytes()[PREFIX_BYTES:]
    told = ask(options.target, message, requests=options.requests, threads=options.threads)
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
