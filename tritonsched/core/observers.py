"""Who listens to the scheduler. Rule: the scheduler does not know who does, nor what for."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from mypy_extensions import mypyc_attr

from tritonsched.core.batch import Batch
from tritonsched.core.request import Outcome, Request


@mypyc_attr(allow_interpreted_subclasses=True)
class Observer:
    """Hooks of the scheduler; they must not raise and must not call back. What an observer does not
    define is never called.
    """

    __slots__ = ()

    def on_submit(self, request: Request, now: int) -> None:
        """A request came."""

    def on_dispatch(self, batch: Batch, now: int) -> None:
        """The batch is sent."""

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        """The batch was executed; measured_ns: execution time as the profile learnt it."""

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        """These left together, in the same way. reason: a RejectReason's value for `rejected`, else
        empty.
        """


class Complete(Protocol):
    """`Observer.on_complete`."""

    def __call__(self, batch: Batch, *, measured_ns: int, now: int) -> None: ...


Left = Callable[[Sequence[Request], Outcome, str, int], None]


class Audience:
    """The hooks that observers define, in their order: at a thousand requests a second it counts
    who is called in vain.
    """

    __slots__ = ("complete", "dispatch", "outcomes", "submit")

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.submit: list[Callable[[Request, int], None]] = []
        self.dispatch: list[Callable[[Batch, int], None]] = []
        self.complete: list[Complete] = []
        self.outcomes: list[Left] = []
        for observer in observers:
            self.join(observer)

    def join(self, observer: Observer) -> None:
        """It hears what comes from now on."""
        kind = type(observer)
        if kind.on_submit is not Observer.on_submit:
            self.submit.append(observer.on_submit)
        if kind.on_dispatch is not Observer.on_dispatch:
            self.dispatch.append(observer.on_dispatch)
        if kind.on_complete is not Observer.on_complete:
            self.complete.append(observer.on_complete)
        if kind.on_outcomes is not Observer.on_outcomes:
            self.outcomes.append(observer.on_outcomes)
