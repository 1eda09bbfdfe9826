"""A profile as YAML text. Rule: written by hand, a line a batch size, so that people can compare
two of them; what it writes, `config/profile_file.py` reads.
"""

from collections.abc import Iterator

from tritonsched.config.profile_file import Hardware, Made, ModelTimes, Point, ProfileFile, Server

HEAD = "# Execution times, measured by `tritonsched profile`; for `tritonsched serve --profile`.\n"


def profile_text(profile: ProfileFile) -> str:
    """The whole file."""
    return HEAD + "\n".join(_lines(profile)) + "\n"


def _lines(profile: ProfileFile) -> Iterator[str]:
    yield f"profile: {profile.profile}"
    yield from _made(profile.made)
    yield from _hardware(profile.hardware)
    yield from _server(profile.triton)
    yield "models:" if profile.models else "models: {}"
    for name, model in profile.models.items():
        yield f"  {_quoted(name)}:"
        yield from _model(model)


def _made(made: Made) -> Iterator[str]:
    yield "made:"
    yield f"  date: {_quoted(made.date)}"
    yield f"  tritonsched: {_quoted(made.tritonsched)}"
    yield f"  command: {_quoted(made.command)}"


def _hardware(hardware: Hardware) -> Iterator[str]:
    yield "hardware:"
    yield f"  cpu: {_quoted(hardware.cpu)}"
    yield f"  cores: {hardware.cores}"
    yield "  gpus:" if hardware.gpus else "  gpus: []"
    for gpu in hardware.gpus:
        yield f"    - {{name: {_quoted(gpu.name)}, driver: {_quoted(gpu.driver)}}}"


def _server(server: Server) -> Iterator[str]:
    yield "triton:"
    yield f"  version: {_quoted(server.version)}"
    yield f"  transport: {server.transport}"
    yield f"  rtt_ms: {server.rtt_ms:.3f}"


def _model(model: ModelTimes) -> Iterator[str]:
    yield f"    version: {_quoted(model.version)}"
    if model.files_sha256 is not None:
        yield f"    files_sha256: {_quoted(model.files_sha256)}"
    yield f"    config_sha256: {_quoted(model.config_sha256)}"
    yield "    points:"
    for point in model.points:
        yield f"      - {{{_point(point)}}}"


def _point(point: Point) -> str:
    times = ", ".join(
        f"{name}_ms: {getattr(point, f'{name}_ms'):.3f}" for name in ("p50", "p90", "p99", "max")
    )
    return f"rows: {point.rows}, {times}, runs: {point.runs}"


def _quoted(text: str) -> str:
    """A double-quoted scalar of plain ASCII (YAML 1.1, 5.7: `\\U` and eight digits)."""
    plain = (c if " " <= c <= "~" and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(plain)}"'
