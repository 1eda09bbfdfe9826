"""The policy file's sections `classes` and `models`: what a request is worth, and who may serve it.

Rule: times are milliseconds from arrival here and shares of the deadline in the core, so that a
client that tightens its deadline tightens the shape with it.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tritonsched.core.request import NEVER_NS, SloClass, Utility

MS_NS = 1_000_000
DAY_MS = 86_400_000.0
POINTS_MAX = 32
VARIANTS_MAX = 16
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
Point = Annotated[list[float], Field(min_length=2, max_length=2)]


class ClassSection(BaseModel):
    """A class of service."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    deadline_ms: float | None = Field(
        default=None, gt=0, le=DAY_MS, description="From the request's arrival; none if absent."
    )
    weight: float = Field(
        default=1.0, gt=0, le=1e6, description="Worth of one request when not all can be served."
    )
    soft_ms: float | None = Field(
        default=None,
        ge=0,
        le=DAY_MS,
        description="Until then an answer has its full worth, which falls to 0 at deadline_ms.",
    )
    utility: list[Point] | None = Field(
        default=None,
        min_length=1,
        max_length=POINTS_MAX,
        description="Instead of soft_ms: [ms, share of the weight] points, linear between.",
    )

    @model_validator(mode="after")
    def _has_one_shape(self) -> "ClassSection":
        if self.soft_ms is not None and self.utility is not None:
            raise ValueError("soft_ms and utility say the same thing; keep one of them")
        if (self.soft_ms is not None or self.utility) and self.deadline_ms is None:
            raise ValueError("soft_ms and utility need a deadline_ms, where the worth ends")
        self.shape()
        return self

    def shape(self) -> Utility | None:
        """How the worth falls. Raises ValueError."""
        if self.deadline_ms is None or (self.soft_ms is None and not self.utility):
            return None
        points = self.utility or [[self.soft_ms or 0.0, 1.0], [self.deadline_ms, 0.0]]
        if any(not 0 <= ms <= self.deadline_ms for ms, _ in points):
            raise ValueError(f"times of soft_ms and utility lie in [0, {self.deadline_ms:g}] ms")
        if points[0][0] == self.deadline_ms:
            return None  # soft_ms at the deadline: a step
        return Utility(tuple((ms / self.deadline_ms, value) for ms, value in points))

    def slo_class(self, name: str) -> SloClass:
        """The class as the core knows it."""
        deadline_ns = NEVER_NS
        if self.deadline_ms is not None:
            deadline_ns = max(1, int(self.deadline_ms * MS_NS))
        return SloClass(name, deadline_ns, self.weight, self.shape())


class ModelSection(BaseModel):
    """What holds for one model."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    default_class: Name | None = Field(
        default=None, description="Class of requests that name none."
    )
    variants: list[ModelName] | None = Field(
        default=None,
        min_length=1,
        max_length=VARIANTS_MAX,
        description="Triton models, one as good as another, that serve requests for this one.",
    )
    accuracy: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of right answers; default: the parameter tritonsched_accuracy, else 1.",
    )

    @model_validator(mode="after")
    def _names_each_variant_once(self) -> "ModelSection":
        twice = [name for name in self.variants or [] if (self.variants or []).count(name) > 1]
        if twice:
            raise ValueError(f"variant '{twice[0]}' is named twice")
        return self


def families(models: Mapping[str, ModelSection]) -> dict[str, tuple[str, ...]]:
    """The variants of the models that have some."""
    return {name: tuple(model.variants) for name, model in models.items() if model.variants}


def accuracies(models: Mapping[str, ModelSection]) -> dict[str, float]:
    """The accuracies that are given."""
    return {name: m.accuracy for name, m in models.items() if m.accuracy is not None}
