"""Profiles for tests."""

from typing import Any

from tritonsched.config.profile_file import (
    Gpu,
    Hardware,
    Made,
    ModelTimes,
    Point,
    ProfileFile,
    Server,
)

SHA = "0123456789abcdef" * 4
HARDWARE = Hardware(cpu="A CPU", cores=2, gpus=[Gpu(name="A GPU", driver="1.2")])


def point(rows: int, p50_ms: float, p99_ms: float = 0.0) -> Point:
    """p99_ms: 0: as p50_ms."""
    high = p99_ms or p50_ms
    return Point(rows=rows, p50_ms=p50_ms, p90_ms=high, p99_ms=high, max_ms=high, runs=40)


def times(*points: Point, files: str | None = None, config: str = SHA) -> ModelTimes:
    return ModelTimes(version="1", config_sha256=config, files_sha256=files, points=list(points))


def profile(hardware: Hardware = HARDWARE, /, **models: Any) -> ProfileFile:
    """models: `ModelTimes` by name."""
    return ProfileFile(
        profile=1,
        made=Made(date="2026-01-01T00:00:00+00:00", tritonsched="0.1.0", command="profile"),
        hardware=hardware,
        triton=Server(version="2.51.0", transport="system", rtt_ms=0.3),
        models=models,
    )
