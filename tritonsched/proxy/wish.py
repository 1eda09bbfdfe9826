"""What a client asks to be reserved, on either protocol, as numbers and as a frame. Rule: pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tritonsched.backend.catalogue import ModelInfo
from tritonsched.core.reservation import FRAMES_MAX, Reservation
from tritonsched.errors import BadReservation
from tritonsched.proxy.reserving import JITTER_NS
from tritonsched.tensors import InferCall, ShmRef, Tensor, Wire, byte_size

TIME_MS_MAX = 86_400_000.0  # a day
TENANT_CHARS_MAX = 128
Spec = tuple[str, str, tuple[int, ...]]
"""Name, datatype, shape with the batch dimension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A stream as asked for. Either frames or duration_s. start_in_ms: from now, at the earliest.
    inputs: how each frame looks; none: as the model declares it, one row. outputs: as the frames
    ask for them; none: all.
    """

    model: str
    version: str = ""
    period_ms: float = 0.0
    relative_deadline_ms: float = 0.0
    frames: int | None = None
    duration_s: float | None = None
    start_in_ms: float = 0.0
    jitter_ms: float = JITTER_NS / 1e6
    inputs: tuple[Spec, ...] = ()
    outputs: tuple[str, ...] = ()
    tenant: str = ""
    weight: float = 1.0


def frame_of(wish: Wish, info: ModelInfo) -> InferCall:
    """A frame without its data. Raises BadReservation if it does not say how frames look."""
    inputs = wish.inputs or _declared(info)
    tensors = []
    for name, datatype, shape in inputs:
        size = byte_size(datatype, shape) if all(extent >= 0 for extent in shape) else None
        tensors.append(Tensor(name, datatype, shape, b"", ShmRef("", 0, size or 0)))
    return InferCall(
        wire=Wire.GRPC,
        model=wish.model,
        version=wish.version,
        id="",
        received_ns=0,
        raw=b"",
        inputs=tuple(tensors),
        outputs=wish.outputs,
        tenant=wish.tenant,
    )


def _declared(info: ModelInfo) -> tuple[Spec, ...]:
    """One row of each input. Raises BadReservation where the model leaves a dimension open."""
    for tensor in info.inputs.values():
        if any(dim < 0 for dim in tensor.dims):
            raise BadReservation(
                f"input '{tensor.name}' of model '{info.name}' has dimensions of any size: say in "
                "'inputs' how each frame looks"
            )
    return tuple((t.name, t.datatype, (1, *t.dims)) for t in info.inputs.values())


def reservation_of(wish: Wish, *, rows: int, signature: int, now: int) -> Reservation:
    """The core's own form; its id is given later. Raises BadReservation."""
    if len(wish.tenant) > TENANT_CHARS_MAX:
        raise BadReservation(f"'tenant' is longer than {TENANT_CHARS_MAX} characters")
    period_ns = _ns("period_ms", wish.period_ms)
    try:
        return Reservation(
            id=1,
            model=wish.model,
            period_ns=period_ns,
            relative_deadline_ns=_ns("relative_deadline_ms", wish.relative_deadline_ms),
            frames=_frames(wish),
            start_ns=now + _ns("start_in_ms", wish.start_in_ms),
            rows=rows,
            signature=signature,
            jitter_ns=_ns("jitter_ms", wish.jitter_ms),
            tenant=wish.tenant,
            weight=wish.weight if math.isfinite(wish.weight) else 0.0,
        )
    except ValueError as error:
        raise BadReservation(str(error).removeprefix("reservation 1: ")) from error


def _frames(wish: Wish) -> int:
    if (wish.frames is None) == (wish.duration_s is None):
        raise BadReservation("say either 'frames' or 'duration_s'")
    if wish.frames is not None:
        return wish.frames
    assert wish.duration_s is not None
    duration_ms = 1e3 * wish.duration_s
    if not 0 < duration_ms <= TIME_MS_MAX:
        raise BadReservation(f"'duration_s' must be > 0 and <= {TIME_MS_MAX / 1e3:g}")
    if not wish.period_ms > 0:
        raise BadReservation("'period_ms' must be > 0")
    frames = max(1, round(duration_ms / wish.period_ms))
    if frames > FRAMES_MAX:
        raise BadReservation(
            f"{frames} frames are more than {FRAMES_MAX}: reserve a shorter time, and again"
        )
    return frames


def _ns(name: str, value_ms: float) -> int:
    """Raises BadReservation for what is no time."""
    if not 0 <= value_ms <= TIME_MS_MAX:
        raise BadReservation(f"'{name}' must be a number of milliseconds from 0 to a day")
    return round(value_ms * 1e6)


def from_json(model: str, version: str, given: Mapping[str, object]) -> Wish:
    """Of a JSON object's members. Raises BadReservation, which names the member."""
    wish: dict[str, object] = {}
    for name, value in given.items():
        if name not in _READERS:
            known = ", ".join(sorted(_READERS))
            raise BadReservation(f"'{name[:64]}' is unknown; use {known}")
        wish[name] = _READERS[name](name, value)
    for name in ("period_ms", "relative_deadline_ms"):
        if name not in wish:
            raise BadReservation(f"'{name}' is missing")
    return Wish(model=model, version=version, **wish)  # type: ignore[arg-type]  # as read


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadReservation(f"'{name}' is not a number")
    return float(value)


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadReservation(f"'{name}' is not a whole number")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadReservation(f"'{name}' is not a text")
    return value


def _names(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise BadReservation(f"'{name}' is not a list of names")
    return tuple(_text(f"{name}[{index}]", item) for index, item in enumerate(value))


def _specs(name: str, value: object) -> tuple[Spec, ...]:
    if not isinstance(value, list):
        raise BadReservation(f"'{name}' is not a list of inputs")
    specs = []
    for index, item in enumerate(value):
        place = f"{name}[{index}]"
        if not isinstance(item, dict) or item.keys() != {"name", "datatype", "shape"}:
            raise BadReservation(f"'{place}' needs name, datatype and shape, and no more")
        shape = item["shape"]
        if not isinstance(shape, list):
            raise BadReservation(f"'{place}.shape' is not a list")
        extents = tuple(_whole(f"{place}.shape", extent) for extent in shape)
        datatype = _text(f"{place}.datatype", item["datatype"])
        specs.append((_text(f"{place}.name", item["name"]), datatype, extents))
    return tuple(specs)


_READERS = {
    "period_ms": _number,
    "relative_deadline_ms": _number,
    "frames": _whole,
    "duration_s": _number,
    "start_in_ms": _number,
    "jitter_ms": _number,
    "inputs": _specs,
    "outputs": _names,
    "tenant": _text,
    "weight": _number,
}
