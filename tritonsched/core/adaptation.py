"""DeepRT's fourth module: who overran pays it back in a cheaper variant (Yang et al., SEC 2021,
"Adaptation Module").

Rule: pure bookkeeping by category; it never decides what runs, it says which rung of its ladder a
category has to use now, and what else happens stays as it was.

Each category has a penalty in nanoseconds, 0 to begin with. A batch that takes longer than promised
is an overrun: the excess is added, and the category goes down its ladder (the paper: a smaller
shape; here: a model's variants, most accurate first). A batch on a lower rung pays back what it
saved: the promise of the first rung for the same rows, less what was measured. At 0 the category is
on the first rung again. Excess on a lower rung is added, too.

What the paper leaves open is settled so: the first overrun goes one rung down, every further one
before the debt is paid goes one more, to the last. One step a window (`hold_ns`): batches that were
under way when the category stepped say nothing new of the rung, and it does not come back within
it. A rung that promises no less than the one above is passed over, so that every debt can be paid.
What a penalty can grow to is bounded (PENALTY_MAX_NS): a device that hung for a minute must not
cost a day of accuracy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tritonsched.core.reservation import Category

PENALTY_MAX_NS = 10_000_000_000
CATEGORIES_MAX = 1024  # with a debt; the one that stepped longest ago is forgotten first


@dataclass(slots=True)
class Debt:
    """What a category owes. penalty_ns: >= 0. rung: of its ladder; 0 is the one it is meant to be
    on. moved_ns: when it last stepped.
    """

    penalty_ns: int = 0
    rung: int = 0
    moved_ns: int = 0


class Adaptation:
    """The debts of all categories. Memory: CATEGORIES_MAX."""

    __slots__ = ("_debts",)

    def __init__(self) -> None:
        self._debts: dict[Category, Debt] = {}

    def rung(self, category: Category, rungs: int) -> int:
        """Which of its `rungs` variants, most accurate first, the category has to use now."""
        debt = self._debts.get(category)
        return 0 if debt is None else min(debt.rung, rungs - 1)

    def debt(self, category: Category) -> Debt | None:
        """What it owes; None for nothing."""
        return self._debts.get(category)

    def observe(
        self,
        category: Category,
        *,
        promised_ns: Sequence[int],
        used: int,
        measured_ns: int,
        hold_ns: int,
        now: int,
    ) -> None:
        """A batch of the category ran.

        promised_ns: for its rows, by rung. used: the rung it ran on. hold_ns: a window of the
        category.
        """
        excess_ns = measured_ns - promised_ns[used]
        debt = self._debts.get(category)
        if debt is None:
            if excess_ns <= 0 or _cheaper(promised_ns, 0) == 0:
                return
            debt = self._begin(category)
        if excess_ns > 0:
            debt.penalty_ns = min(PENALTY_MAX_NS, debt.penalty_ns + excess_ns)
            if not debt.rung or now >= debt.moved_ns + hold_ns:
                debt.rung = _cheaper(promised_ns, debt.rung)
                debt.moved_ns = now
        elif used:
            debt.penalty_ns -= min(debt.penalty_ns, max(0, promised_ns[0] - measured_ns))
        if not debt.penalty_ns and now >= debt.moved_ns + hold_ns:
            del self._debts[category]

    def _begin(self, category: Category) -> Debt:
        if len(self._debts) >= CATEGORIES_MAX:
            del self._debts[min(self._debts, key=lambda known: self._debts[known].moved_ns)]
        debt = self._debts[category] = Debt()
        return debt


def _cheaper(promised_ns: Sequence[int], rung: int) -> int:
    """The next rung that promises less; the same one if there is none."""
    below = range(rung + 1, len(promised_ns))
    return next((low for low in below if promised_ns[low] < promised_ns[rung]), rung)
