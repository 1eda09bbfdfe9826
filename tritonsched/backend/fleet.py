"""Several Tritons as one `Backend`. Rule: a batch goes to the server that its device names
(`server/device`), a lone call to the one that it names itself; whoever is asked about models knows
what all servers that are up say.

A model is served by every server that has it in an equal form (inputs, outputs, sizes, what keeps
its calls from merging); where forms differ, the first server in the file has it alone, and that is
said. What clients ask Triton itself goes through `fleet_http` and `fleet_grpc`.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Generic, Literal, Protocol, TypeVar

from tritonsched.backend.batch_call import BatchCall, BatchDone
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.backend.control import Index
from tritonsched.backend.cuda_region import CudaRegions
from tritonsched.backend.triton import TritonBackend
from tritonsched.errors import TritonUnavailable
from tritonsched.tensors import InferCall, RawReply

SEPARATOR = "/"
REGISTRATIONS_MAX = 1024  # regions that a server is told of when it comes up
TOLD_MAX = 1024  # (model, server) pairs whose other form was said
T = TypeVar("T")
Replay = Callable[[str], Awaitable[object]]
"""Asks the server of that name what clients asked of all. Raises TritonUnavailable."""


class Members:
    """The servers, in the file's order, and which of them are up; shared by all parts of a fleet.

    T's of each are kept elsewhere, by name.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._up: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        """Those that are up."""
        return (name for name in self.names if name in self._up)

    def __contains__(self, name: str) -> bool:
        return name in self._up

    def put(self, name: str, *, up: bool) -> None:
        """From now on."""
        (self._up.add if up else self._up.discard)(name)

    def chosen(self, name: str) -> str:
        """That server; the first one that is up if none is named. Raises TritonUnavailable."""
        if name:
            return name
        first = next(iter(self), None)
        if first is None:
            raise none_up()
        return first

    async def ask_all(self, ask: Callable[[str], Awaitable[T]]) -> dict[str, T]:
        """What each that is up answers, in the file's order. Raises TritonUnavailable if none does,
        and whatever else one raises.
        """
        names = tuple(self)
        told = await asyncio.gather(*(ask(name) for name in names), return_exceptions=True)
        answers: dict[str, T] = {}
        for name, answer in zip(names, told, strict=True):
            if not isinstance(answer, BaseException):
                answers[name] = answer
            elif not isinstance(answer, TritonUnavailable):
                raise answer
        if not answers:
            raise none_up()
        return answers


class Upstream(Protocol):
    """A port of one server."""

    address: str

    async def start(self) -> None: ...

    async def close(self) -> None: ...


P = TypeVar("P", bound=Upstream)


class Ports(Generic[P]):
    """The same port of several servers, by name. registrations: shared by HTTP and gRPC."""

    def __init__(
        self, upstreams: Mapping[str, P], members: Members, registrations: "Registrations"
    ) -> None:
        self.address = ", ".join(upstream.address for upstream in upstreams.values())
        self._upstreams = upstreams
        self._members = members
        self._registrations = registrations

    async def start(self) -> None:
        for upstream in self._upstreams.values():
            await upstream.start()

    async def close(self) -> None:
        """Let running calls finish within a bound, then close."""
        await asyncio.gather(*(upstream.close() for upstream in self._upstreams.values()))


class Registrations:
    """Regions that clients have registered on all servers, over either protocol."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Replay] = {}

    def __len__(self) -> int:
        return len(self._held)

    def keep(self, kind: str, name: str, replay: Replay) -> None:
        """kind: `system` or `cuda`. Beyond the bound a server that comes back is not told."""
        if len(self._held) < REGISTRATIONS_MAX:
            self._held[kind, name] = replay

    def drop(self, kind: str, name: str) -> None:
        """One of them, or without a name all of the kind."""
        for key in [key for key in self._held if key[0] == kind and name in ("", key[1])]:
            del self._held[key]

    async def replay(self, server: str) -> None:
        """Tell a server that has come up. Raises TritonUnavailable."""
        for replay in tuple(self._held.values()):
            await replay(server)


def none_up() -> TritonUnavailable:
    """No server answers."""
    return TritonUnavailable("no Triton answers; try again later", retry_after_ns=1_000_000_000)


class Fleet:
    """A `Backend` of several. backends: by server. say: tells the person at the terminal one line.

    registrations: told to a server that has come up, before it is given work.
    """

    cuda: CudaRegions | None = None  # a client's memory on a GPU is the servers' own affair

    def __init__(
        self,
        backends: Mapping[str, TritonBackend],
        members: Members,
        *,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.backends = backends
        self.members = members
        self.registrations = Registrations()
        self._say = say
        self._told: set[tuple[str, str]] = set()

    # -- one server -----------------------------------------------------------------------------

    async def connect(self, server: str = "") -> None:
        """Prepare a Triton that has just come up; unnamed: all that are up, anew. Raises as
        `TritonBackend.connect`.
        """
        for name in (server,) if server else tuple(self.members):
            await self.backends[name].connect()
            await self.registrations.replay(name)
            self.members.put(name, up=True)

    # -- Backend --------------------------------------------------------------------------------

    def send(self, call: BatchCall, done: BatchDone) -> None:
        """See `Backend`; the device names the server."""
        server, _, device = call.device.partition(SEPARATOR)
        self.backends[server].send(replace(call, device=device), done)

    async def forward(self, call: InferCall) -> RawReply:
        """See `Backend`; to the call's own server, or any. Raises TritonUnavailable."""
        return await self.backends[self.members.chosen(call.server)].forward(call)

    async def model_info(self, model: str, version: str) -> ModelInfo | None:
        """What they say of the model, together; None if none serves it. Raises TritonUnavailable if
        none answers.
        """
        found = await self.members.ask_all(
            lambda name: self.backends[name].model_info(model, version)
        )
        infos = {name: info for name, info in found.items() if info is not None}
        return self._joined(infos) if infos else None

    def _joined(self, infos: Mapping[str, ModelInfo]) -> ModelInfo:
        (first, info), *others = infos.items()
        serving = {first: info}
        for name, other in others:
            if other.is_like(info):
                serving[name] = other
            elif (info.name, name) not in self._told and len(self._told) < TOLD_MAX:
                self._told.add((info.name, name))
                self._say(
                    f"model '{info.name}' has another form on server '{name}' than on '{first}', "
                    f"which serves it alone; make the configurations equal"
                )
        places = [(name, device) for name, made in serving.items() for device in made.devices]
        return replace(
            info,
            devices=tuple(f"{name}{SEPARATOR}{device}" for name, device in places),
            servers=tuple(name for name, _ in places),
        )

    async def ready(self) -> bool:
        """Some server is up. Never raises."""
        return any([await backend.ready() for backend in self.backends.values()])

    async def close(self) -> None:
        """Give everything back, on each server."""
        for backend in self.backends.values():
            await backend.close()

    # -- what is known of all -------------------------------------------------------------------

    @property
    def version(self) -> str:
        """The oldest that is up, as `2.51.0`; empty if one has not told."""
        versions = [self.backends[name].version for name in self.members]
        return min(versions, key=_release, default="")

    def is_local(self) -> bool:
        """Every server that is up has our /dev/shm."""
        return all(self.backends[name].is_local() for name in self.members)

    @property
    def transport_info(self) -> str:
        """How batches travel, by server."""
        told = (f"{name}: {backend.transport_info}" for name, backend in self.backends.items())
        return ", ".join(told)

    @property
    def transport_word(self) -> Literal["cuda", "system", "inline"]:
        """The best way that is open to some server."""
        words = {self.backends[name].transport_word for name in self.members}
        return "cuda" if "cuda" in words else "system" if "system" in words else "inline"

    @property
    def batches_shm(self) -> int:
        return sum(backend.batches_shm for backend in self.backends.values())

    @property
    def batches_cuda(self) -> int:
        return sum(backend.batches_cuda for backend in self.backends.values())

    @property
    def batches_inline(self) -> int:
        return sum(backend.batches_inline for backend in self.backends.values())

    @property
    def fallbacks(self) -> int:
        return sum(backend.fallbacks for backend in self.backends.values())

    @property
    def malformed(self) -> int:
        return sum(backend.malformed for backend in self.backends.values())

    async def repository_index(self) -> Index | None:
        """All models of all servers and their states; None if one does not tell. Never raises."""
        told = [await self.backends[name].repository_index() for name in self.members]
        known = [index for index in told if index is not None]
        return frozenset().union(*known) if known else None

    async def request_counts(self) -> dict[tuple[str, str], tuple[int, int]]:
        """The sums over the servers that are up. Raises TritonUnavailable or BackendError."""
        succeeded: Counter[tuple[str, str]] = Counter()
        failed: Counter[tuple[str, str]] = Counter()
        for counts in (
            await self.members.ask_all(lambda name: self.backends[name].request_counts())
        ).values():
            for key, (good, bad) in counts.items():
                succeeded[key] += good
                failed[key] += bad
        return {key: (succeeded[key], failed[key]) for key in succeeded}

    async def region_status(self) -> dict[str, int]:
        """The system shared-memory regions that servers know: bytes by name."""
        told = await self.members.ask_all(lambda name: self.backends[name].region_status())
        return {name: size for regions in told.values() for name, size in regions.items()}


def _release(version: str) -> tuple[int, ...]:
    """`2.51.0` as (2, 51, 0); before all others what does not begin with numbers."""
    numbers = version.split(".")
    return tuple(int(number) for number in numbers) if all(map(str.isdigit, numbers)) else ()
