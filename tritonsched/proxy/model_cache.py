"""What Triton says of its models, asked once each, and of families what their variants add up to.

Rule: whoever asks while the answer is on its way waits for the same one; what a load may have
changed is asked again.
"""

import asyncio
from collections.abc import Callable

import structlog

from tritonsched.backend.base import Backend
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.proxy.families import Families, combined, is_version

MODELS_MAX = 4096  # (model, version) entries remembered; beyond, the oldest are asked for again
FAULTS_MAX = 256  # misfits told once each

_log = structlog.get_logger()


class ModelCache:
    """Not cached: models that Triton does not serve. announce: hears of each one that is new, of
    variants before their family. on_change: what was known of some is void.
    """

    def __init__(
        self,
        backend: Backend,
        families: Families,
        announce: Callable[[ModelInfo], None],
        on_change: Callable[[], object],
    ) -> None:
        self._backend = backend
        self._families = families
        self._announce = announce
        self._on_change = on_change
        self._known: dict[tuple[str, str], ModelInfo] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[ModelInfo | None]] = {}
        self._told: set[str] = set()
        self._generation = 0

    def known(self, model: str, version: str) -> ModelInfo | None:
        return self._known.get((model, version))

    async def ask(self, model: str, version: str) -> ModelInfo | None:
        """The model's entry; None if Triton does not serve it. Raises TritonUnavailable."""
        key = (model, version)
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask(key))
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(task)

    async def _ask(self, key: tuple[str, str]) -> ModelInfo | None:
        while True:
            generation = self._generation
            infos = await self._asked(*key)
            if generation == self._generation:  # else it may be of the model before a load
                break
        for info in infos:
            self._announce(info)
        if not infos:
            return None
        while len(self._known) >= MODELS_MAX:
            del self._known[next(iter(self._known))]
        self._known[key] = infos[-1]
        self._on_change()
        return infos[-1]

    async def _asked(self, model: str, version: str) -> list[ModelInfo]:
        """The model's entry last, those of its variants before it; empty if nobody serves it."""
        names = self._families.variants(model)
        if not names:
            info = await self._backend.model_info(model, version)
            return [] if info is None else [self._families.valued(info)]
        if not is_version(version):
            return []
        asked = [await self._backend.model_info(name, "") for name in names]
        variants = [self._families.valued(info) for info in asked if info is not None]
        family, faults = combined(model, version, variants)
        self._tell(faults)
        if family is None:
            return []
        return [*(info for info in variants if info.name in family.variants), family]

    def _tell(self, faults: list[str]) -> None:
        for fault in faults:
            if fault not in self._told and len(self._told) < FAULTS_MAX:
                self._told.add(fault)
                _log.warning(fault)

    def serves(self, model: str) -> bool:
        """Whether some version of the model is known."""
        return any(name == model for name, _ in self._known)

    def forget(self) -> None:
        """Ask again for all models: one was loaded or unloaded, or Triton is another one."""
        self._generation += 1
        self._known.clear()
        self._on_change()

    async def refresh(self) -> None:
        """Ask again, and go on with what is known meanwhile. Raises TritonUnavailable."""
        for key in tuple(self._known):
            if await self._ask(key) is None:
                self._known.pop(key, None)
                self._on_change()
