"""The policy file's section `servers`: the Tritons to serve from. Rule: a name and where it is;
what differs between them beyond that, each Triton tells itself.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SERVERS_MAX = 64  # each has connections, a watch and label values of its own
HostPort = Annotated[str, Field(pattern=r"^[^\s/]{1,255}:[0-9]{1,5}$")]


class ServerSection(BaseModel):
    """One Triton."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    http: HostPort = Field(description="HOST:PORT of its HTTP endpoint.")
    grpc: HostPort = Field(description="HOST:PORT of its gRPC endpoint.")
    metrics: HostPort | None = Field(
        default=None, description="HOST:PORT whose /metrics joins ours, with its server's name."
    )
    transport: Literal["auto", "cuda", "system", "inline"] | None = Field(
        default=None, description="How batches reach it; default `transport.mode`."
    )
