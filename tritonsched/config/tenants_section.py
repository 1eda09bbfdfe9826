"""The policy file's sections `tenants` and `fairness`: who asks, and what is guaranteed to each.

Rule: a share is a part of a whole that all tenants have in common, so the shares add up to 1 at
most; what is left over is anybody's.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tritonsched.config.faults import SHOWN_CHARS, did_you_mean
from tritonsched.core.fairness import Fairness
from tritonsched.core.request import Tenant

TENANTS_MAX = 64  # each is a label value of the metrics
DEFAULT_TENANT = "default"
ROUNDING = 1e-9  # of shares like 0.1, which have no exact sum


class TenantSection(BaseModel):
    """A tenant."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    weight: float = Field(
        default=1.0, gt=0, le=1e6, description="Times what a request of its class is worth."
    )
    share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Part of each queue and of the memory that is its own when there is no room.",
    )
    queue_requests_max: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Its requests waiting for one model."
    )
    reservations_max: int | None = Field(
        default=None, ge=0, le=1_000_000, description="Its streams at once; 0: it may have none."
    )
    merge: Literal["all", "own"] = Field(
        default="all", description="own: its requests share no batch with those of others."
    )

    def rule(self, name: str) -> Tenant:
        """The core's own."""
        return Tenant(
            name,
            weight=self.weight,
            share=self.share,
            queue_requests_max=self.queue_requests_max or 0,
            reservations_max=self.reservations_max,
            merges_own=self.merge == "own",
        )


class FairnessSection(BaseModel):
    """Worth more while served too seldom."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    target: float = Field(
        default=0.5, gt=0, le=1, description="Share on time below which a tenant is worth more."
    )
    strength: float = Field(
        default=0.0, ge=0, le=100, description="How many times more, at most; 0: fairness is off."
    )

    def rule(self) -> Fairness:
        """The core's own."""
        return Fairness(self.target, self.strength)


def rules(sections: Mapping[str, TenantSection]) -> dict[str, Tenant]:
    """The tenants as the core knows them, `default` among them."""
    named = {DEFAULT_TENANT: TenantSection(), **sections}
    return {name: section.rule(name) for name, section in named.items()}


def tenant_faults(data: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path, message) of a default that nobody is, and of shares beyond the whole.

    data: a policy file's plain values, maybe not valid.
    """
    tenants = data.get("tenants")
    tenants = tenants if isinstance(tenants, dict) else {}
    known = sorted({DEFAULT_TENANT, *map(str, tenants)})
    default = data.get("default_tenant")
    if isinstance(default, str) and default not in known:
        shown, hint = repr(default[:SHOWN_CHARS]), did_you_mean(default, known)
        message = f"tenant {shown} is not in tenants ({', '.join(known)[:200]}){hint}"
        yield ("default_tenant",), message
    total = 0.0
    for name, section in tenants.items():
        share = section.get("share") if isinstance(section, dict) else None
        if isinstance(share, int | float) and 0 <= share <= 1:
            total += share
            if total > 1 + ROUNDING:
                message = f"the shares up to here add up to {total:g}; all together 1 at most"
                yield ("tenants", str(name), "share"), message
                return
