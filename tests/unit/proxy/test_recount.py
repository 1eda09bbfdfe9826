"""When Triton is asked for its counts, and what is made of its answer."""

from collections.abc import Mapping

import pytest

from tests.unit.proxy.test_tallies import ONE, counts, many
from tritonsched.errors import BackendError, TritonUnavailable
from tritonsched.proxy.recount import Recount
from tritonsched.proxy.tallies import Count, Key, Tallies

KEPT = counts(m_1=9)


class Asked:
    """Triton's answer to each question, in order."""

    def __init__(self, *answers: Mapping[Key, Count] | Exception) -> None:
        self.answers = list(answers)

    async def __call__(self) -> Mapping[Key, Count]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def recount(*answers: Mapping[Key, Count] | Exception) -> tuple[Recount, Asked]:
    """With a tally of one version, of 3 calls."""
    tallies, asked = Tallies(), Asked(*answers)
    many(tallies, ONE, 3)
    return Recount(tallies, asked), asked


async def test_a_version_that_is_gone_is_forgotten_at_a_look() -> None:
    made, _ = recount(KEPT, counts(m_2=9))
    await made.look()
    assert not made.tallies.is_empty
    await made.look()
    assert made.tallies.is_empty


async def test_triton_is_not_asked_where_nothing_was_counted() -> None:
    asked = Asked(KEPT)
    await Recount(Tallies(), asked).look()
    assert asked.answers == [KEPT]


@pytest.mark.parametrize("error", [TritonUnavailable("gone"), BackendError("no statistics")])
async def test_a_look_without_an_answer_changes_nothing(error: Exception) -> None:
    made, asked = recount(error)
    await made.look()
    assert not made.tallies.is_empty
    assert asked.answers == []


@pytest.mark.parametrize(
    ("answer", "is_kept"),
    [(KEPT, True), (counts(m_1=2), False), (BackendError("no statistics"), False)],
)
async def test_a_new_triton_is_known_by_its_counts_or_by_having_none(
    answer: Mapping[Key, Count] | Exception, *, is_kept: bool
) -> None:
    made, _ = recount(answer)
    await made.reconnected()
    assert made.tallies.is_empty != is_kept


async def test_a_triton_that_left_again_is_not_connected() -> None:
    made, _ = recount(TritonUnavailable("gone"))
    with pytest.raises(TritonUnavailable):
        await made.reconnected()
    assert not made.tallies.is_empty
