"""What a profile may say: execution times by model and rows, and what they were measured on. Rule:
read like a policy file, with the same guards and the same words for faults.

Times are what the scheduler calls execution: from the written message to the answer, less an empty
round trip. `hardware` is that of the machine on which the sidecar runs.
"""

import itertools
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tritonsched.config.classes_section import DAY_MS, MS_NS
from tritonsched.config.faults import PolicyFaults
from tritonsched.config.load import schema_faults
from tritonsched.config.reader import FAULTS_MAX, read_text, read_values

MODELS_MAX = 100  # with POINTS_MAX each, what the reader's bounds of bytes and tokens allow
POINTS_MAX = 12  # batch sizes of a model
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=1024)]
TimeMs = Annotated[float, Field(gt=0, le=DAY_MS)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Point(_Section):
    """The times of one batch size, in ms."""

    rows: int = Field(ge=1, le=65_536)
    p50_ms: TimeMs
    p90_ms: TimeMs
    p99_ms: TimeMs
    max_ms: TimeMs
    runs: int = Field(ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _rises(self) -> "Point":
        if not self.p50_ms <= self.p90_ms <= self.p99_ms <= self.max_ms:
            raise ValueError("p50_ms, p90_ms, p99_ms, max_ms must not fall")
        return self


class ModelTimes(_Section):
    """One model's times, and what it was.

    config_sha256: of its configuration as Triton tells it. files_sha256: of its files, if they
    could be read. points: by rising rows.
    """

    version: Text
    config_sha256: Sha256
    files_sha256: Sha256 | None = None
    points: list[Point] = Field(min_length=1, max_length=POINTS_MAX)

    @field_validator("points")
    @classmethod
    def _by_rows(cls, points: list[Point]) -> list[Point]:
        for before, after in itertools.pairwise(points):
            if after.rows <= before.rows:
                raise ValueError(f"rows {after.rows} after rows {before.rows}; they must rise")
        return points

    def table_ns(self) -> dict[int, int]:
        """Median execution in ns, by rows."""
        return {point.rows: max(1, round(point.p50_ms * MS_NS)) for point in self.points}

    def margin_ns(self) -> int:
        """What a promise adds to begin with: p90 less p50, of the middle one of the batch sizes.

        Not more, because a margin that is too small is learnt within a few batches, one that is
        too large is unlearnt over thousands; and a busy moment falls on one size alone.
        """
        return round(median(point.p90_ms - point.p50_ms for point in self.points) * MS_NS)


class Gpu(_Section):
    """A GPU and its driver, as nvidia-smi names them."""

    name: Text
    driver: Text


class Hardware(_Section):
    """The machine. cores: those that the process may use."""

    cpu: Text
    cores: int = Field(ge=1, le=65_536)
    gpus: list[Gpu] = Field(max_length=64)


class Server(_Section):
    """The Triton that was measured. transport: how batches reached it."""

    version: Text
    transport: Literal["cuda", "system", "inline"]
    rtt_ms: float = Field(ge=0, le=DAY_MS)


class Made(_Section):
    """How the file came about. date: UTC, ISO 8601."""

    date: Text
    tritonsched: Text
    command: Text


class ProfileFile(_Section):
    """A whole profile. profile: the version of this form."""

    profile: Literal[1]
    made: Made
    hardware: Hardware
    triton: Server
    models: dict[str, ModelTimes] = Field(max_length=MODELS_MAX)


def load_profile(path: Path) -> ProfileFile:
    """Read a profile. Raises ConfigError, one line a fault."""
    return parse_profile(read_text(path), str(path))


def parse_profile(text: str, name: str = "profile.yaml") -> ProfileFile:
    """The profile in `text`; `name` stands before each fault. Raises PolicyFaults."""
    data, places, faults = read_values(text, name)
    try:
        profile = ProfileFile.model_validate(data)
    except ValidationError as error:
        seen = {(fault.line, fault.column) for fault in faults}
        of_schema = schema_faults(error, places, ProfileFile)
        faults += [fault for fault in of_schema if (fault.line, fault.column) not in seen]
        raise PolicyFaults(name, sorted(faults)[:FAULTS_MAX]) from None
    if faults:
        raise PolicyFaults(name, sorted(faults)[:FAULTS_MAX])
    return profile


def of_other_hardware(there: Hardware, here: Hardware) -> list[str]:
    """What differs, in words; empty if nothing does."""
    pairs = {
        "cpu": (there.cpu, here.cpu),
        "cores": (there.cores, here.cores),
        "gpus": (_named(there.gpus), _named(here.gpus)),
    }
    return [
        f"{field}: {was!r} there, {now!r} here" for field, (was, now) in pairs.items() if was != now
    ]


def _named(gpus: list[Gpu]) -> str:
    return ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in gpus) or "none"
