"""Measuring every model at every batch size. Rule: one batch at a time, sent the very way in which
the sidecar sends it, so that a time here is a time there.

Not measured, and told: models whose calls have an order or any number of answers (sequences,
decoupled ones), inputs that cannot be made up, and models that answer with an error.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tritonsched.backend.base import Backend
from tritonsched.backend.batch_call import BatchCall, BatchInput, BatchOutput, BatchReply
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.backend.control import Index
from tritonsched.backend.embedded_env import PROOF_MODEL
from tritonsched.bench.payload import Inputs, grpc_message, inputs
from tritonsched.config.profile_file import MODELS_MAX, POINTS_MAX, ModelTimes, Point
from tritonsched.errors import BackendError, TritonschedError
from tritonsched.profiling.stable import Samples
from tritonsched.proxy.assembly import row_bytes
from tritonsched.tensors import GrpcReply, InferCall, Wire

SETS = 4  # of inputs a batch size, taken in turn
UNORDERED = {"sequence", "decoupled"}
Shapes = Mapping[str, tuple[int, ...]]


class Server(Backend, Protocol):
    """A backend that also tells what it serves."""

    async def repository_index(self) -> Index | None:
        """(model, version, state) of the repository; None if it does not tell."""


class Bar(Protocol):
    """Hears how far the sweep is."""

    def begin(self, points: int) -> None:
        """So many batch sizes of all models are to be measured."""

    def show(self, model: str, rows: int, runs: int) -> None:
        """This one has so many runs."""

    def advance(self, points: int) -> None:
        """So many are done or given up."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to measure. models: by name, all if empty. rows: batch sizes, powers of two if empty.
    shapes: of inputs with variable dimensions, by `input` or `model/input`, without the rows.
    """

    models: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    shapes: Shapes = field(default_factory=dict)
    seed: int = 1


@dataclass(slots=True)
class Sweep:
    """What came out. skipped: models that cannot be profiled; failed: those that should have been;
    both by name, with the reason.
    """

    models: dict[str, ModelTimes] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def rows_of(info: ModelInfo, wished: Iterable[int]) -> list[int]:
    """The batch sizes to measure: of those wished what the model takes, else powers of two and its
    largest.
    """
    most = max(1, info.max_batch_size)
    given = sorted({rows for rows in wished if rows <= most})
    if given:
        return given
    powers = itertools.takewhile(lambda rows: rows < most, (1 << k for k in range(POINTS_MAX - 1)))
    return [*powers, most]


def shapes_of(model: str, shapes: Shapes) -> Shapes:
    """Of the model's inputs, by their own names; `model/input` goes before `input`."""
    own = {name.removeprefix(f"{model}/"): dims for name, dims in shapes.items() if "/" in name}
    return {**{n: d for n, d in shapes.items() if "/" not in n}, **own}


async def ready_models(server: Server, wished: tuple[str, ...]) -> dict[str, str]:
    """The newest ready version by model, in order of name, without the embedded Triton's own.

    Raises BackendError in words.
    """
    index = await server.repository_index()
    if index is None:
        raise BackendError("Triton does not tell its models (repository index)")
    by_version = sorted(index, key=lambda each: (each[0], _number(each[1])))
    found = {name: version for name, version, state in by_version if state == "READY"}
    if missing := sorted(set(wished) - found.keys()):
        known = ", ".join(found)[:500] or "none"
        raise BackendError(f"Triton has no ready model {', '.join(missing)}; it has: {known}")
    chosen = {name: found[name] for name in sorted(wished or found) if name != PROOF_MODEL}
    if len(chosen) > MODELS_MAX:
        raise BackendError(f"{len(chosen)} models; name at most {MODELS_MAX} with --models")
    return chosen


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else 0


class Sweeper:
    """clock: monotonic nanoseconds. rtt_ns: of an empty call. files: hashes of models' files."""

    def __init__(
        self,
        server: Server,
        wish: Wish,
        *,
        clock: Callable[[], int],
        rtt_ns: int,
        files: Mapping[str, str],
        bar: Bar,
    ) -> None:
        self._server = server
        self._wish = wish
        self._clock = clock
        self._rtt_ns = rtt_ns
        self._files = files
        self._bar = bar
        self._ids = itertools.count(1)

    async def run(self, versions: Mapping[str, str]) -> Sweep:
        """Measure these models, one after the other. Raises TritonUnavailable."""
        sweep = Sweep()
        infos = [info for name in versions if (info := await self._measurable(name, sweep))]
        sizes = {info.name: rows_of(info, self._wish.rows) for info in infos}
        self._bar.begin(sum(map(len, sizes.values())))
        for info in infos:
            try:
                points = [await self._point(info, rows) for rows in sizes[info.name]]
            except (BackendError, ValueError) as error:
                sweep.failed[info.name] = str(error)
                continue
            sweep.models[info.name] = ModelTimes(
                version=versions[info.name],
                config_sha256=info.config_sha256,
                files_sha256=self._files.get(info.name),
                points=points,
            )
        return sweep

    async def _measurable(self, name: str, sweep: Sweep) -> ModelInfo | None:
        info = await self._server.model_info(name, "")
        if info is None:
            sweep.failed[name] = "Triton does not serve it any more"
        elif info.lone_reason in UNORDERED or info.is_decoupled:
            kind = "sequence" if info.lone_reason == "sequence" else "decoupled"
            sweep.skipped[name] = f"a {kind} model has no execution time by rows"
            return None
        return info

    async def _point(self, info: ModelInfo, rows: int) -> Point:
        """Raises ValueError: inputs cannot be made up; BackendError: Triton's own words."""
        made = inputs(
            info,
            rows=rows,
            shapes=shapes_of(info.name, self._wish.shapes),
            pictures=False,
            seed=self._wish.seed,
            sets=SETS,
        )
        samples = Samples()
        for each in itertools.cycle(made):
            samples.add(await self._one(info, rows, each))
            self._bar.show(info.name, rows, len(samples))
            if samples.is_done:
                break
        self._bar.advance(1)
        return samples.point(rows)

    async def _one(self, info: ModelInfo, rows: int, made: Inputs) -> int:
        """One batch's time in ns, less an empty round trip."""
        whole_ns = await (self._merged if not info.lone_reason else self._lone)(info, rows, made)
        return whole_ns - self._rtt_ns

    async def _merged(self, info: ModelInfo, rows: int, made: Inputs) -> int:
        call = BatchCall(
            id=next(self._ids),
            model=info.name,
            version="",
            rows=rows,
            inputs=tuple(BatchInput(n, kind, s, (data,)) for n, (kind, s, data) in made.items()),
            outputs=tuple(BatchOutput(name, row_bytes(info, name)) for name in info.outputs),
            parameters={},
            device=info.devices[0],
        )
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def done(outcome: BatchReply | TritonschedError) -> None:
            if isinstance(outcome, TritonschedError):
                ended.set_exception(outcome)
            else:
                ended.set_result(self._clock())
                outcome.release()

        self._server.send(call, done)
        sent_ns = self._clock()
        return await ended - sent_ns

    async def _lone(self, info: ModelInfo, rows: int, made: Inputs) -> int:
        """As the sidecar forwards what it cannot merge."""
        message = grpc_message(info.name, made, {})
        sent_ns = self._clock()
        call = InferCall(Wire.GRPC, info.name, "", "", sent_ns, message)
        reply = await self._server.forward(call)
        answered_ns = self._clock()
        if isinstance(reply, GrpcReply) and reply.code != "OK":
            raise BackendError(reply.details, grpc_code_name=reply.code)
        return answered_ns - sent_ns


def told(sweep: Sweep) -> Iterator[str]:
    """What was left out, and why."""
    for name, reason in sweep.skipped.items():
        yield f"{name}: skipped: {reason}"
    for name, reason in sweep.failed.items():
        yield f"{name}: not measured: {reason}"
