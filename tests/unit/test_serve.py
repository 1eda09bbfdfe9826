"""What `serve` does for its process alone."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from tritonsched import serve
from tritonsched.config.load import parse_policy
from tritonsched.options import ServeOptions

OPTIONS = ServeOptions(
    host="127.0.0.1", http_port=0, grpc_port=0, metrics_port=0, triton_http=None, triton_grpc=None,
    triton_metrics=None, policy=parse_policy(""), repository=Path(), triton_env=Path(),
    run_dir=Path(), drain_s=0.0,
)  # fmt: skip
FAULTS = """
import resource, sys
from tritonsched.serve import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(b"x") * (1 << 20)
before = faults()
for _ in range(50):
    bytearray(b"x") * (1 << 20)
print(faults() - before)
"""


def faults(how: str) -> int:
    """Page faults of taking and freeing a megabyte 50 times, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
    )
    return int(run.stdout)


def test_memory_that_was_freed_is_taken_again_without_page_faults() -> None:
    assert faults("kept") < 100  # of 12,800 pages


def test_another_libc_than_glibc_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not serve.keep_freed_memory()


def test_serve_keeps_it_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(serve, "raise_open_files", lambda: None)
    monkeypatch.setattr(serve, "keep_freed_memory", lambda: kept.append(True))

    async def stopped(*_: object) -> None:
        assert kept

    monkeypatch.setattr(serve, "_serve", stopped)
    serve.run_serve(OPTIONS)
    assert kept == [True]
