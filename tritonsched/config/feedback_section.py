"""The policy file's section `feedback`: what may be retuned, within which bounds. Rule: units in
the names; a bound that is not given is the core's default.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tritonsched.core.controllers import Bounds
from tritonsched.core.feedback import DEFAULT_BOUNDS, DEFAULT_KNOBS, Settings

MS_NS = 1_000_000
KnobName = Literal["safety", "window", "rows", "queue", "guard", "reply"]
UNITS = {"safety": 1, "window": MS_NS, "rows": 1, "queue": 1, "guard": MS_NS, "reply": MS_NS}
KEYS = {
    "safety": "safety",
    "window": "window_ms",
    "rows": "rows",
    "queue": "queue_requests",
    "guard": "guard_ms",
    "reply": "reply_ms",
}


class BoundsSection(BaseModel):
    """The values that a knob may have."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    min: float | None = Field(default=None, ge=0, le=1e6, description="Lowest; default: built in.")
    max: float | None = Field(default=None, ge=0, le=1e6, description="Highest; default: built in.")

    @model_validator(mode="after")
    def _ordered(self) -> "BoundsSection":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class FeedbackSection(BaseModel):
    """What is learnt and retuned while the sidecar runs."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    enabled: bool = Field(default=True, description="Retune at all.")
    freeze: bool = Field(default=False, description="Leave the numbers as they are for now.")
    learning: bool = Field(
        default=True, description="Execution times follow what is measured after the first batches."
    )
    miss_ratio_max: float = Field(
        default=0.01, gt=0, le=1, description="Late or expired, of what was admitted: the target."
    )
    knobs: list[KnobName] = Field(
        default=sorted(DEFAULT_KNOBS),  # type: ignore[arg-type]  # names of the core
        max_length=len(KEYS),
        description="What may be retuned; window, rows and queue are for fcfs, edf, disbatcher.",
    )
    safety: BoundsSection = Field(
        default=BoundsSection(), description="Times that the margin of a promise counts."
    )
    window_ms: BoundsSection = Field(
        default=BoundsSection(), description="How long fcfs and edf hold an unfilled batch."
    )
    rows: BoundsSection = Field(default=BoundsSection(), description="Rows a batch.")
    queue_requests: BoundsSection = Field(
        default=BoundsSection(), description="Requests waiting for one model."
    )
    guard_ms: BoundsSection = Field(
        default=BoundsSection(), description="How much earlier than needed a batch is sent."
    )
    reply_ms: BoundsSection = Field(
        default=BoundsSection(), description="What writing replies takes, part of every promise."
    )

    def settings(self, *, queue_requests_max: int) -> Settings:
        """The core's own. queue_requests_max: of `limits`; feedback only lowers it."""
        bounds = {knob: self._bounds(knob) for knob in KEYS}
        high = min(bounds["queue"].high, queue_requests_max)
        bounds["queue"] = Bounds(min(bounds["queue"].low, high), high)
        return Settings(
            knobs=frozenset(self.knobs) if self.enabled else frozenset(),
            frozen=self.freeze,
            miss_ratio_max=self.miss_ratio_max,
            bounds=bounds,
        )

    def _bounds(self, knob: str) -> Bounds:
        """One given bound wins over the other, built-in one."""
        section: BoundsSection = getattr(self, KEYS[knob])
        unit, built_in = UNITS[knob], DEFAULT_BOUNDS[knob]
        low = built_in.low if section.min is None else section.min * unit
        high = built_in.high if section.max is None else section.max * unit
        if section.max is None:
            high = max(low, high)
        return Bounds(min(low, high), high)
