"""What the driver needs of a backend. Rule: five methods; everything Triton-specific is behind
them.

Implementations: `triton.TritonBackend` (real), `scripted.ScriptedBackend` (the fake that ships);
one contract test runs on both.
"""

from typing import Protocol

from tritonsched.backend.catalogue import ModelInfo
from tritonsched.tensors import BatchCall, BatchDone, InferCall, RawReply


class Backend(Protocol):
    """A server of models.

    Never cancelled and never given a deadline: Triton 2.51 can crash on either (server issues 7368,
    8034). A coroutine is kept alive by its caller until it returns.
    """

    def send(self, call: BatchCall, done: BatchDone) -> None:
        """Send a merged batch before this returns; `done` hears how it ended, in a later loop turn.

        Errors: BackendError (Triton failed it), MalformedAnswer, TritonUnavailable (it may or may
        not have been executed).
        """

    async def forward(self, call: InferCall) -> RawReply:
        """Send one call's original bytes over its own protocol and return the answer as it came.

        Raises TritonUnavailable; an error that Triton answers is an answer.
        """

    async def model_info(self, model: str, version: str) -> ModelInfo | None:
        """What Triton says of the model; None if it does not serve it. Raises TritonUnavailable."""

    async def ready(self) -> bool:
        """Triton is up and says it can serve. Never raises."""

    async def close(self) -> None:
        """Give everything back: connections, regions, registrations."""
