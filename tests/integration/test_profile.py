"""A profile made on a real Triton, and a sidecar that starts from it; no time is judged."""

from pathlib import Path

import aiohttp
import pytest

from tests.integration.conftest import MODEL_REPOSITORY
from tests.integration.sidecars import http_url, options
from tests.integration.test_bad_input import body, post
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.backend.hardware import hardware
from tritonsched.config.profile_file import ProfileFile, parse_profile
from tritonsched.profiling.command import ProfileOptions, measure
from tritonsched.profiling.stable import RUNS_MAX, RUNS_MIN
from tritonsched.profiling.sweep import Wish
from tritonsched.profiling.text import profile_text
from tritonsched.sidecar import Sidecar

WISH = Wish(("echo", "emulated_b"), (1, 4), {"echo/INPUT": (4,)})


class NoBar:
    def begin(self, points: int) -> None: ...

    def show(self, model: str, rows: int, runs: int) -> None: ...

    def advance(self, points: int) -> None: ...


async def profiled(triton: EmbeddedTriton, wish: Wish = WISH) -> tuple[ProfileFile, dict[str, str]]:
    """The profile, and what was not measured."""
    asked = ProfileOptions(
        (triton.http_address, triton.grpc_address),
        MODEL_REPOSITORY,
        Path(),
        Path(),
        wish,
        "auto",
        "c",
    )
    made, sweep = await measure(asked, NoBar(), lambda _: None)
    return made, sweep.failed


@pytest.fixture(scope="module")
async def made(triton: EmbeddedTriton) -> ProfileFile:
    """Of `WISH`, measured once for all tests here."""
    found, failed = await profiled(triton)
    assert not failed
    return found


async def test_a_profile_of_a_real_triton_is_one_that_a_sidecar_starts_from(
    triton: EmbeddedTriton, made: ProfileFile, tmp_path: Path
) -> None:
    assert made.triton.version == "2.51.0"
    assert made.hardware == hardware()
    assert {name: [p.rows for p in model.points] for name, model in made.models.items()} == {
        "echo": [1, 4],
        "emulated_b": [1, 4],
    }
    assert all(RUNS_MIN <= p.runs <= RUNS_MAX for m in made.models.values() for p in m.points)
    assert parse_profile(profile_text(made)) == made
    (tmp_path / "p.yaml").write_text(profile_text(made))
    said = await started_from(triton, tmp_path / "p.yaml", known=True)
    assert f"profile {tmp_path}/p.yaml: 2 models" in said


async def started_from(triton: EmbeddedTriton, path: Path, *, known: bool) -> list[str]:
    """What a sidecar says that was given this profile; known: `echo` has times before it ran."""
    said: list[str] = []
    sidecar = Sidecar(options(triton, policy=f"profile: {path}\n"), say=said.append)
    seen: list[bool] = []
    try:
        await sidecar.start()
        await sidecar.health.wait_up()
        before = sidecar.proxy.on_announce

        def announced(info: object) -> None:
            before(info)  # type: ignore[arg-type]  # passed on
            (device,) = info.devices  # type: ignore[attr-defined]  # as above
            seen.append(sidecar.scheduler.is_measured("echo", device))

        sidecar.proxy.on_announce = announced
        async with aiohttp.ClientSession() as session:
            headers, data = body()
            status, _, _ = await post(session, http_url(sidecar), "echo", headers, data)
        assert status == 200
        assert seen == [known]
    finally:
        await sidecar.stop()
    return said


@pytest.mark.parametrize(
    ("is_other_machine", "words"),
    [(True, "measured on other hardware: cores: "), (False, "(config_sha256 differs)")],
)
async def test_a_profile_of_something_else_is_told_and_times_are_learnt(
    triton: EmbeddedTriton, made: ProfileFile, tmp_path: Path, is_other_machine: bool, words: str
) -> None:
    cores = made.hardware.cores + 1
    change: dict[str, object] = {"hardware": made.hardware.model_copy(update={"cores": cores})}
    if not is_other_machine:
        other = made.models["echo"].model_copy(update={"config_sha256": "0" * 64})
        change = {"models": {"echo": other}}
    path = tmp_path / "p.yaml"
    path.write_text(profile_text(made.model_copy(update=change)))
    said = await started_from(triton, path, known=False)
    assert any(words in line for line in said), said


async def test_a_model_with_variable_dimensions_is_told_how_to_name_them(
    triton: EmbeddedTriton,
) -> None:
    found, failed = await profiled(triton, Wish(("echo",), (1,)))
    assert failed == {"echo": "input 'INPUT' has dimensions [-1]; name them with --shape"}
    assert not found.models
