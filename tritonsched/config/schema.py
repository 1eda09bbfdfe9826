"""What a policy file may say. Rule: units stand in the names, every number has bounds, nothing is
guessed.

Everything has a default: without a file the sidecar serves all of Triton's models under one class
without a deadline. The core's own values (nanoseconds) are made here, once.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tritonsched.config.classes_section import (
    MS_NS,
    ClassSection,
    ModelSection,
    Name,
    accuracies,
    families,
)
from tritonsched.config.faults import SHOWN_CHARS, did_you_mean
from tritonsched.config.feedback_section import FeedbackSection
from tritonsched.config.servers_section import SERVERS_MAX, ServerSection
from tritonsched.config.tenants_section import (
    DEFAULT_TENANT,
    TENANTS_MAX,
    FairnessSection,
    TenantSection,
    rules,
    tenant_faults,
)
from tritonsched.core.fairness import Fairness
from tritonsched.core.feedback import Settings
from tritonsched.core.policies import DEFAULT_POLICY, POLICIES
from tritonsched.core.request import SloClass, Tenant
from tritonsched.core.tuning import GUARD_NS, Tuning

MIB = 1024 * 1024
DEFAULT_CLASS = "default"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SchedulerSection(_Section):
    """The scheduling rule and its numbers."""

    policy: str = Field(
        default=DEFAULT_POLICY, description="One of: " + ", ".join(sorted(POLICIES))
    )
    window_ms: float = Field(
        default=0.0, ge=0, le=10_000, description="How long fcfs and edf hold an unfilled batch."
    )
    rows_max: int = Field(
        default=0, ge=0, le=65_536, description="Rows a batch, beside the model's own; 0: no bound."
    )
    safety: float = Field(
        default=1.0, ge=0, le=100, description="Times that the margin of a promise counts."
    )
    guard_ms: float = Field(
        default=GUARD_NS / MS_NS, ge=0, le=1_000, description="Sent that much earlier than needed."
    )
    reply_ms: float = Field(
        default=0.0, ge=0, le=1_000, description="What writing replies takes, to begin with."
    )

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, policy: str) -> str:
        if policy not in POLICIES:
            listed = ", ".join(sorted(POLICIES))
            shown, hint = repr(policy[:SHOWN_CHARS]), did_you_mean(policy, POLICIES)
            raise ValueError(f"policy {shown} is unknown; use one of {listed}{hint}")
        return policy


class LimitsSection(_Section):
    """Bounds of everything that can grow."""

    queue_requests_max: int = Field(
        default=4096, ge=1, le=1_000_000, description="Requests waiting for one model."
    )
    tensor_mib_max: int = Field(
        default=256, ge=1, le=1_048_576, description="MiB of tensors in flight, all models."
    )
    request_mib_max: int = Field(default=2047, ge=1, le=2047, description="MiB of one request.")
    connections_max: int = Field(
        default=16_384, ge=1, le=1_000_000, description="Clients' connections to one port."
    )
    held_mib_max: int = Field(
        default=4096,
        ge=1,
        le=1_048_576,
        description="MiB of requests in part and of answers not read, of one port's connections.",
    )

    @property
    def tensor_bytes_max(self) -> int:
        return self.tensor_mib_max * MIB

    @property
    def held_bytes_max(self) -> int:
        return self.held_mib_max * MIB

    @property
    def request_bytes_max(self) -> int:
        return self.request_mib_max * MIB


class TransportSection(_Section):
    """How batches reach Triton."""

    mode: Literal["auto", "cuda", "system", "inline"] = Field(
        default="auto",
        description="cuda: memory of the models' GPUs; system: POSIX shared memory; inline: gRPC "
        "bytes; auto: what works.",
    )
    pool_mib: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="Shared-memory pool; default 25 % of /dev/shm, <= 256.",
    )
    cuda_pool_mib: int = Field(
        default=64,
        ge=2,
        le=65_536,
        description="Pool on each GPU that a model runs on, and as much page-locked memory.",
    )
    resend_failed: bool = Field(
        default=True,
        description="Send the members of a failed batch alone: Triton may execute them twice.",
    )
    resend_lost: bool = Field(
        default=True,
        description="Send what was lost with a server to another one: it may be executed twice.",
    )

    @property
    def pool_bytes(self) -> int | None:
        return None if self.pool_mib is None else self.pool_mib * MIB

    @property
    def cuda_pool_bytes(self) -> int:
        return self.cuda_pool_mib * MIB


ShieldRule = Literal[
    "class-of-nothing", "class-of-text", "file-name", "json-depth", "json-shape", "json-unread",
    "place-wraps", "region-offset", "shrunk-region", "strict-stream",
]  # fmt: skip


class ShieldSection(_Section):
    """What is not let through to Triton."""

    enabled: bool = Field(
        default=True, description="Refuse requests that would end this release of Triton."
    )
    allow: list[ShieldRule] = Field(
        default_factory=list, max_length=64, description="Rules that are not to hold."
    )
    guard_regions: bool = Field(
        default=True,
        description="Keep clients from shared memory of sidecars and of Triton itself.",
    )


class ReloadSection(_Section):
    """How a changed policy file is taken into use."""

    watch: bool = Field(default=True, description="Reload when the file changes.")
    guard_s: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="Seconds on probation: back to the policy before if misses double; 0: none.",
    )


class PolicyFile(_Section):
    """A whole policy file."""

    classes: dict[Name, ClassSection] = Field(
        default_factory=dict,
        max_length=64,
        description="Classes of service, by the name in `x-tritonsched-class`.",
    )
    default_class: Name = Field(
        default=DEFAULT_CLASS, description="Class of requests that name none."
    )
    models: dict[str, ModelSection] = Field(
        default_factory=dict, max_length=4096, description="Settings of models, by Triton's name."
    )
    tenants: dict[Name, TenantSection] = Field(
        default_factory=dict,
        max_length=TENANTS_MAX,
        description="Who asks, by the name in `x-tritonsched-tenant`.",
    )
    default_tenant: Name = Field(
        default=DEFAULT_TENANT,
        description="Tenant of requests that name none, or one that is not here.",
    )
    fairness: FairnessSection = Field(
        default=FairnessSection(), description="Worth more while served too seldom."
    )
    scheduler: SchedulerSection = Field(
        default=SchedulerSection(), description="The scheduling rule and its numbers."
    )
    limits: LimitsSection = Field(
        default=LimitsSection(), description="Bounds of everything that can grow."
    )
    transport: TransportSection = Field(
        default=TransportSection(), description="How batches reach Triton."
    )
    servers: dict[Name, ServerSection] = Field(
        default_factory=dict,
        max_length=SERVERS_MAX,
        description="The Tritons to serve from, in order of preference; none: as the options say.",
    )
    shield: ShieldSection = Field(
        default=ShieldSection(), description="What is not let through to Triton."
    )
    reload: ReloadSection = Field(
        default=ReloadSection(), description="How a changed policy file is taken into use."
    )
    profile: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="File of measured execution times to start from; beside this file.",
    )

    feedback: FeedbackSection = Field(
        default=FeedbackSection(), description="What is learnt and retuned while it runs."
    )

    @model_validator(mode="after")
    def _known_classes(self) -> "PolicyFile":
        for path, message in references(self.model_dump()):
            raise ValueError(f"{'.'.join(path)}: {message}")
        return self

    def slo_classes(self) -> dict[str, SloClass]:
        """The classes as the core knows them, `default` among them."""
        sections = {DEFAULT_CLASS: ClassSection(), **self.classes}
        return {name: section.slo_class(name) for name, section in sections.items()}

    def families(self) -> dict[str, tuple[str, ...]]:
        """The models that have variants, with those."""
        return families(self.models)

    def accuracies(self) -> dict[str, float]:
        """By model, where Triton is not to say it."""
        return accuracies(self.models)

    def tenant_rules(self) -> dict[str, Tenant]:
        """The tenants as the core knows them, `default` among them."""
        return rules(self.tenants)

    def fairness_rule(self) -> Fairness:
        """What boosts who is served too seldom."""
        return self.fairness.rule()

    def class_of_model(self, model: str) -> str:
        """The class of the model's requests that name none."""
        section = self.models.get(model)
        return (section and section.default_class) or self.default_class

    def tuning(self) -> Tuning:
        """The numbers the scheduler starts with."""
        return Tuning(
            window_ns=int(self.scheduler.window_ms * MS_NS),
            rows_cap=self.scheduler.rows_max,
            queue_requests_max=self.limits.queue_requests_max,
            safety=self.scheduler.safety,
            guard_ns=int(self.scheduler.guard_ms * MS_NS),
            reply_ns=int(self.scheduler.reply_ms * MS_NS),
            learning=self.feedback.learning,
        )

    def feedback_settings(self) -> Settings:
        """What feedback may do."""
        return self.feedback.settings(queue_requests_max=self.limits.queue_requests_max)


def references(data: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Names that nothing has: (path, message). data: plain values, maybe not valid."""
    data = _mapping(data)
    known = sorted({DEFAULT_CLASS, *map(str, _mapping(data.get("classes")))})
    wanted: dict[tuple[str, ...], Any] = {("default_class",): data.get("default_class")}
    for name, model in _mapping(data.get("models")).items():
        wanted["models", name, "default_class"] = _mapping(model).get("default_class")
    for path, name in wanted.items():
        if isinstance(name, str) and name not in known:
            shown, hint = repr(name[:SHOWN_CHARS]), did_you_mean(name, known)
            yield path, f"class {shown} is not in classes ({', '.join(known)[:200]}){hint}"
    yield from tenant_faults(data)


def _mapping(value: Any) -> Mapping[str, Any]:  # YAML may hold anything
    return value if isinstance(value, dict) else {}
