"""Starting from a profile: used for the models that were measured, on the machine that was
measured, and what was learnt here stays.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.profiling.profiles import HARDWARE, SHA, point, profile, times
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.backend.hardware import hardware
from tritonsched.backend.weights import files_sha256
from tritonsched.config.profile_file import ModelTimes
from tritonsched.core.policies import POLICIES
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.variant import Variant
from tritonsched.errors import ConfigError
from tritonsched.profiling.text import profile_text
from tritonsched.proxy import seeding
from tritonsched.proxy.seeding import Measured, Seeding, of_other_weights, read

MS = 1_000_000
OTHER = "f" * 64
TIMES = times(point(1, 6.0, 7.0), point(8, 13.0, 14.0))


def info(name: str = "m", config: str = SHA, devices: tuple[str, ...] = ("gpu:0",)) -> ModelInfo:
    return ModelInfo(name, "", 8, {}, {}, devices, config_sha256=config)


class Scene:
    """A scheduler that profiles are given to. files: what can be read here, by path."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(POLICIES["lite"]())
        self.said: list[str] = []
        self.files: dict[str, Measured] = {}
        self.seeding = Seeding(
            self.scheduler, Path("models"), say=self.said.append, read=self._read
        )

    def _read(self, path: Path, repository: Path | None) -> Measured:
        assert repository == Path("models")
        if str(path) not in self.files:
            raise ConfigError(f"{path}: cannot be read")
        return self.files[str(path)]

    def announce(self, model: ModelInfo) -> None:
        self.seeding.announced(model)
        self.scheduler.set_variant(Variant(model.name, 8, model.devices), 0)

    def safe_ms(self, model: str, rows: int = 1, device: str = "gpu:0") -> float:
        return self.scheduler.safe_ns(model, device, rows) / MS


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    made.files["p"] = measured(m=TIMES)
    return made


def measured(files: dict[str, str] | None = None, **models: ModelTimes) -> Measured:
    return Measured(profile(**models), files or {}, HARDWARE)


async def test_a_model_of_the_profile_is_known_before_its_first_request(scene: Scene) -> None:
    await scene.seeding.adopt("p")
    scene.announce(info(devices=("gpu:0", "gpu:1")))
    scene.announce(info("n"))
    for device in ("gpu:0", "gpu:1"):
        assert (scene.safe_ms("m", 1, device), scene.safe_ms("m", 8, device)) == (7, 14)
    assert scene.scheduler.rows_cap("m", "gpu:0") == 8
    assert not scene.scheduler.is_measured("n", "gpu:0")
    assert scene.said == ["profile p: 1 models"]


async def test_a_profile_that_comes_later_is_used_for_the_models_that_are_there(
    scene: Scene,
) -> None:
    scene.announce(info())
    assert scene.safe_ms("m") == 0
    await scene.seeding.adopt("p")
    assert scene.safe_ms("m") == 7


async def test_what_was_learnt_stays_until_another_profile_comes(scene: Scene) -> None:
    """A model announced again and the same profile read again change nothing."""
    await scene.seeding.adopt("p")
    scene.announce(info())
    seeded = scene.scheduler._profiles["m", "gpu:0"]
    scene.announce(info())
    await scene.seeding.adopt("p")
    assert scene.scheduler._profiles["m", "gpu:0"] is seeded
    scene.files["p"] = measured(m=times(point(1, 9.0, 9.5)))
    await scene.seeding.adopt("p")
    assert scene.safe_ms("m") == 9.5
    await scene.seeding.adopt(None)
    assert scene.safe_ms("m") == 9.5


async def test_a_model_that_was_dropped_and_comes_back_starts_from_the_profile_again(
    scene: Scene,
) -> None:
    await scene.seeding.adopt("p")
    scene.announce(info())
    scene.scheduler.drop_model("m", 0)
    scene.announce(info())
    assert scene.safe_ms("m") == 7


async def test_a_model_of_other_weights_is_learnt_and_told_once(scene: Scene) -> None:
    await scene.seeding.adopt("p")
    scene.announce(info(config=OTHER))
    scene.announce(info(config=OTHER))
    assert not scene.scheduler.is_measured("m", "gpu:0")
    assert scene.said[1:] == [
        "model 'm' is not the one of the profile (config_sha256 differs): its times are learnt"
    ]


@pytest.mark.parametrize(
    ("profiled", "here", "config", "field"),
    [
        (SHA, SHA, OTHER, ""),
        (SHA, OTHER, SHA, "files_sha256"),
        (SHA, None, SHA, ""),
        (SHA, None, OTHER, "config_sha256"),
        (None, SHA, OTHER, "config_sha256"),
    ],
)
def test_files_count_where_both_sides_can_read_them_else_the_configuration(
    profiled: str | None, here: str | None, config: str, field: str
) -> None:
    model = times(point(1, 6.0), files=profiled)
    assert of_other_weights(model, info(config=config), here) == field


async def test_a_profile_of_other_hardware_is_not_used_and_the_field_is_named(
    scene: Scene,
) -> None:
    here = HARDWARE.model_copy(update={"cores": 96})
    scene.files["p"] = Measured(profile(m=TIMES), {}, here)
    await scene.seeding.adopt("p")
    scene.announce(info())
    assert not scene.scheduler.is_measured("m", "gpu:0")
    assert scene.said == [
        "profile p not used, times are learnt: measured on other hardware: cores: 2 there, 96 here"
    ]


async def test_a_profile_that_cannot_be_read_is_told_and_times_are_learnt(scene: Scene) -> None:
    await scene.seeding.adopt("none")
    scene.announce(info())
    assert not scene.scheduler.is_measured("m", "gpu:0")
    assert scene.said == ["profile not used, times are learnt: none: cannot be read"]


async def test_of_two_profiles_at_once_the_later_one_is_in_use(scene: Scene) -> None:
    scene.files["q"] = measured(m=times(point(1, 9.0, 9.5)))
    scene.announce(info())
    await asyncio.gather(scene.seeding.adopt("p"), scene.seeding.adopt("q"))
    assert scene.safe_ms("m") == 9.5


def test_remembered_models_are_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "MODELS_MAX", 3)
    for number in range(9):
        scene.seeding.announced(info(f"m{number}"))
    assert list(scene.seeding._infos) == ["m6", "m7", "m8"]


@pytest.mark.parametrize("place", [lambda root: root, lambda _: None])
def test_a_profile_is_read_with_the_hashes_of_its_models_where_they_are(
    place: Callable[[Path], Path | None], tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt").write_text("x")
    path = tmp_path / "p.yaml"
    path.write_text(profile_text(profile(m=TIMES, n=TIMES)))
    root = place(tmp_path)
    found = read(path, root)
    assert found.profile == profile(m=TIMES, n=TIMES)
    assert found.files == ({"m": files_sha256(tmp_path / "m")} if root else {})
    assert found.here == hardware()
