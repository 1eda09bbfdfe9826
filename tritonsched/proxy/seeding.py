"""Starting from a measured profile instead of from nothing. Rule: a profile is used whole, or for
the models that are the measured ones, or not at all, and it is said which; what was learnt here
stays.

Other hardware: not used at all. A model of other weights (its files, or where they cannot be read
its configuration) is learnt, as one that the profile does not have. Learning goes on from what the
profile says. Another profile (a reload) replaces what was learnt.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tritonsched.backend.catalogue import ModelInfo
from tritonsched.backend.hardware import hardware
from tritonsched.backend.weights import hashes
from tritonsched.config.profile_file import (
    Hardware,
    ModelTimes,
    ProfileFile,
    load_profile,
    of_other_hardware,
)
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.scheduler import Scheduler
from tritonsched.errors import ConfigError

MODELS_MAX = 4096  # announced ones that are remembered, as many as proxy/service.py remembers


@dataclass(frozen=True, slots=True)
class Measured:
    """A profile as it was read here. files: hashes of its models' files, of those that could be
    read; here: this machine.
    """

    profile: ProfileFile
    files: Mapping[str, str]
    here: Hardware


def read(path: Path, repository: Path | None) -> Measured:
    """The profile of a path, and what is here to hold against it. Blocking.

    Raises ConfigError, one line a fault.
    """
    profile = load_profile(path)
    return Measured(profile, hashes(repository, profile.models), hardware())


def of_other_weights(times: ModelTimes, info: ModelInfo, files_sha256: str | None) -> str:
    """The field that differs; empty if it is the measured model."""
    if times.files_sha256 is not None and files_sha256 is not None:
        return "" if times.files_sha256 == files_sha256 else "files_sha256"
    return "" if times.config_sha256 == info.config_sha256 else "config_sha256"


class Seeding:
    """scheduler: gets the times. repository: of the models that Triton serves, None if it is not at
    hand. say: tells the person at the terminal one line. read: see `read`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        repository: Path | None,
        *,
        say: Callable[[str], None],
        read: Callable[[Path, Path | None], Measured] = read,
    ) -> None:
        self._scheduler = scheduler
        self._read = lambda path: read(path, repository)
        self._say = say
        self._used: Measured | None = None
        self._infos: dict[str, ModelInfo] = {}
        self._told: set[str] = set()
        self._turn = asyncio.Lock()

    async def adopt(self, path: str | None) -> None:
        """This profile from now on, or none. Never raises for what stands in it."""
        async with self._turn:
            found = await self._found(Path(path)) if path is not None else None
            if found == self._used:
                return
            self._used = found
            self._told.clear()
            if found is not None:
                self._say(f"profile {path}: {len(found.profile.models)} models")
                for info in self._infos.values():
                    self._seed(info, found)

    def announced(self, info: ModelInfo) -> None:
        """Triton serves this model; to be called before the scheduler hears of it."""
        self._infos[info.name] = info
        while len(self._infos) > MODELS_MAX:
            del self._infos[next(iter(self._infos))]
        known = [self._scheduler.is_measured(info.name, device) for device in info.devices]
        if self._used is not None and not any(known):
            self._seed(info, self._used)

    async def _found(self, path: Path) -> Measured | None:
        """The profile, if it is one of this machine."""
        try:
            found = await asyncio.to_thread(self._read, path)
        except ConfigError as error:
            self._say(f"profile not used, times are learnt: {error}")
            return None
        odd = of_other_hardware(found.profile.hardware, found.here)
        if odd:
            self._say(
                f"profile {path} not used, times are learnt: measured on other hardware: "
                + "; ".join(odd)
            )
            return None
        return found

    def _seed(self, info: ModelInfo, found: Measured) -> None:
        times = found.profile.models.get(info.name)
        if times is None:
            return
        field = of_other_weights(times, info, found.files.get(info.name))
        if field:
            if info.name not in self._told:
                self._told.add(info.name)
                self._say(
                    f"model '{info.name}' is not the one of the profile ({field} differs): its "
                    "times are learnt"
                )
            return
        for device in info.devices:
            seed = LatencyProfile(times.table_ns(), margin_ns=times.margin_ns())
            self._scheduler.set_profile(info.name, device, seed)
