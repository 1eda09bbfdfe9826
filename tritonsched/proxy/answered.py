"""From `done(answer)` to `await`: for callers that have a task of their own anyway."""

import asyncio
from collections.abc import Callable

from tritonsched.errors import TritonschedError
from tritonsched.tensors import Answer, Cancel, Done


async def answered(submit: Callable[[Done], Cancel]) -> Answer:
    """Submit, wait, return the answer. Raises the error it ended with; cancels if cancelled."""
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def done(outcome: Answer | TritonschedError) -> None:
        if future.done():
            return
        if isinstance(outcome, TritonschedError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    cancel = submit(done)
    try:
        return await future
    except asyncio.CancelledError:
        cancel()
        raise
