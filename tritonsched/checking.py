"""`tritonsched check` and `tritonsched schema`: a policy file judged before anybody runs it.

Rule: `check` says everything that `serve` would refuse, at the same place and in the same words,
and with a profile or a live Triton also what would be legal and useless: a model that Triton does
not have, a deadline shorter than the model's fastest batch. A profile, named by the file or given,
is judged itself. Exit 0: good; 2: faults; 1: Triton did not answer.
"""

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tritonsched.backend.control import Control
from tritonsched.backend.upstream_h2 import H2Upstream
from tritonsched.config.classes_section import MS_NS
from tritonsched.config.faults import FORMATS, Fault, PolicyFaults, did_you_mean
from tritonsched.config.load import parse_with_places
from tritonsched.config.profile_file import load_profile
from tritonsched.config.reader import Places, read_text
from tritonsched.config.schema import PolicyFile
from tritonsched.errors import ConfigError, TritonschedError

WHOLE_FILE = 1  # where a fault without a place stands
Times = Mapping[str, Mapping[int, int]]
"""Expected execution in ns, by model and rows."""


class Format(StrEnum):
    """How faults are written."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


def check(
    file: Annotated[Path, typer.Argument(help="Policy file (YAML).")],
    *,
    format_: Annotated[
        Format, typer.Option("--format", help="text, json or github (annotations).")
    ] = Format.TEXT,
    triton_grpc: Annotated[
        str | None, typer.Option(help="HOST:PORT of a running Triton, to check against.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Measured times to check against; over the file's own.")
    ] = None,
) -> None:
    """Say all that is wrong with a policy file."""
    name = str(file)
    try:
        faults = faults_of(file, triton_grpc, profile)
    except PolicyFaults as error:
        name, faults = error.name, list(error.faults)
    except TritonschedError as error:
        sys.stderr.write(f"tritonsched: {error}\n")
        raise typer.Exit(1) from error
    text = FORMATS[format_](name, faults)
    if text:
        sys.stdout.write(f"{text}\n")
    if faults:
        raise typer.Exit(2)
    if format_ is Format.TEXT:
        sys.stdout.write(f"{file}: good\n")


def schema() -> None:
    """Print the JSON schema of the policy file, for editors."""
    sys.stdout.write(schema_text())


def schema_text() -> str:
    """The JSON schema (draft 2020-12) of a policy file."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(made | PolicyFile.model_json_schema(), indent=2) + "\n"


def faults_of(
    path: Path, triton_grpc: str | None = None, profile: Path | None = None
) -> list[Fault]:
    """Every fault, by place.

    Raises PolicyFaults, of the profile; TritonUnavailable or BackendError.
    """
    try:
        policy, places = parse_with_places(read_text(path), str(path))
    except PolicyFaults as error:
        return list(error.faults)
    except ConfigError as error:
        return [_of_the_whole(path, error)]
    if profile is None and policy.profile is not None:
        profile = path.parent / policy.profile
    found = [] if profile is None else list(beyond_reach(policy, places, measured_times(profile)))
    if triton_grpc is not None:
        models, times = asyncio.run(_asked(triton_grpc))
        found += against_triton(policy, places, models, times)
    return sorted({(fault.line, fault.column, fault.path): fault for fault in found}.values())


def _of_the_whole(path: Path, error: ConfigError) -> Fault:
    return Fault(WHOLE_FILE, WHOLE_FILE, "", str(error).removeprefix(f"{path}: "))


def measured_times(path: Path) -> Times:
    """Of a profile. Raises PolicyFaults under the profile's name."""
    try:
        profile = load_profile(path)
    except PolicyFaults:
        raise
    except ConfigError as error:
        raise PolicyFaults(str(path), [_of_the_whole(path, error)]) from error
    return {name: model.table_ns() for name, model in profile.models.items()}


async def _asked(address: str) -> tuple[frozenset[str], Times]:
    grpc = H2Upstream(address)
    await grpc.start()
    try:
        control = Control(grpc)
        index = await control.repository_index()
        return frozenset(model for model, _, _ in index), await control.batch_times_ns()
    finally:
        await grpc.close()


def against_triton(
    policy: PolicyFile, places: Places, models: frozenset[str], times: Times
) -> Iterator[Fault]:
    """What cannot work with these models. times: as Triton has measured them so far."""
    for name, section in policy.models.items():
        for wanted in section.variants or [name]:
            if wanted not in models:
                hint = did_you_mean(wanted, models)
                message = f"Triton's repository has no model {wanted!r}{hint}"
                yield Fault(*places.of(("models", name), key=True), f"models.{name}", message)
    yield from beyond_reach(policy, places, times)


def beyond_reach(policy: PolicyFile, places: Places, times: Times) -> Iterator[Fault]:
    """Deadlines that no request of a model with that class could meet, even alone and at once."""
    for model, by_rows in sorted(times.items()):
        slo = policy.class_of_model(model)
        section = policy.classes.get(slo)
        rows, best_ns = min(by_rows.items(), key=lambda item: (item[1], item[0]))
        if section and section.deadline_ms is not None and section.deadline_ms * MS_NS < best_ns:
            path = ("classes", slo, "deadline_ms")
            message = (
                f"{section.deadline_ms:g} ms < best time of {model} at {rows} "
                f"{'row' if rows == 1 else 'rows'}, {best_ns / MS_NS:.3g} ms: no request of this "
                "class can be met"
            )
            yield Fault(*places.of(path), ".".join(path), message)
