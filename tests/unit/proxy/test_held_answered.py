"""What is held, and `await` over `done`."""

import asyncio

import pytest

from tritonsched.errors import TritonschedError
from tritonsched.proxy.answered import answered
from tritonsched.proxy.held import Held
from tritonsched.tensors import Cancel, Done, HttpReply

REPLY = HttpReply(200, "OK", (), b"")


async def test_nothing_is_left_when_each_was_given_back() -> None:
    held = Held()
    await held.none_left()
    held.take(3)
    held.take(4)
    assert (held.calls, held.size_bytes) == (2, 7)
    waiting = asyncio.ensure_future(held.none_left())
    held.give_back(3)
    await asyncio.wait({waiting}, timeout=0)
    assert not waiting.done()
    held.give_back(4)
    await waiting
    assert (held.calls, held.size_bytes) == (0, 0)


class Submitted:
    """A `submit` that keeps the `done` it was given."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.told: asyncio.Future[Done] = asyncio.get_running_loop().create_future()

    def __call__(self, done: Done) -> Cancel:
        self.told.set_result(done)
        return self._cancel

    def _cancel(self) -> None:
        self.cancelled += 1


async def test_an_answer_is_returned_and_an_error_raised() -> None:
    for outcome in (REPLY, TritonschedError("no")):
        submitted = Submitted()
        waiting = asyncio.ensure_future(answered(submitted))
        (await submitted.told)(outcome)
        if isinstance(outcome, TritonschedError):
            with pytest.raises(TritonschedError, match="no"):
                await waiting
        else:
            assert await waiting is outcome
        assert submitted.cancelled == 0


async def test_an_answer_may_come_before_submit_returns() -> None:
    def submit(done: Done) -> Cancel:
        done(REPLY)
        return lambda: None

    assert await answered(submit) is REPLY


async def test_a_cancelled_caller_cancels_once_and_hears_nothing_more() -> None:
    submitted = Submitted()
    waiting = asyncio.ensure_future(answered(submitted))
    done = await submitted.told
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert submitted.cancelled == 1
    done(REPLY)
