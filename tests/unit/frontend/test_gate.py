"""Who may be connected: the bound of their number, what they hold together, who has to go."""

from tritonsched.frontend import gate as gates
from tritonsched.frontend.gate import GAVE_WAY, HOLDS_MOST, TOO_MANY, Gate, Limits, Reading, is_slow

S = 1_000_000_000
MIB = 1 << 20


class Somebody:
    """A connection whose state a test sets. left: why it was ended."""

    def __init__(self, *, is_idle: bool = True, held_bytes: int = 0) -> None:
        self.is_idle = is_idle
        self.held_bytes = held_bytes
        self.reason = ""
        self.left = ""

    def fault(self, now_ns: int) -> str:
        return self.reason

    def leave_for(self, reason: str) -> None:
        self.left = reason

    def close_when_idle(self) -> None:
        self.left = "idle"

    def abort(self) -> None:
        self.left = "aborted"


async def test_an_idle_one_makes_room_and_a_busy_one_does_not() -> None:
    told: list[str] = []
    gate = Gate(Limits(connections_max=2), ended=told.append)
    busy, idle, late, later = (
        Somebody(is_idle=False),
        Somebody(),
        Somebody(is_idle=False),
        Somebody(),
    )
    assert gate.admit(busy)
    assert gate.admit(idle)
    assert gate.admit(late)
    gate.leave(idle)
    assert (busy.left, idle.left, len(gate)) == ("", GAVE_WAY, 2)
    assert not gate.admit(later)
    assert told == [GAVE_WAY, TOO_MANY]
    gate.leave(later)  # was never there
    assert len(gate) == 2


async def test_idle_ones_make_room_in_the_order_in_which_they_came() -> None:
    gate = Gate(Limits(connections_max=3))
    first, second, third = Somebody(), Somebody(), Somebody()
    for somebody in (first, second, third):
        gate.admit(somebody)
    for somebody in (first, second):
        gate.admit(Somebody(is_idle=False))
        assert somebody.left == GAVE_WAY
        gate.leave(somebody)
    assert not third.left


async def test_a_search_for_an_idle_one_is_bounded() -> None:
    looks = gates.IDLE_LOOKS_MAX
    gate = Gate(Limits(connections_max=looks + 1))
    for _ in range(looks):
        gate.admit(Somebody(is_idle=False))
    idle = Somebody()
    gate.admit(idle)
    assert not gate.admit(Somebody())  # the next one finds it
    assert gate.admit(Somebody())
    assert idle.left == GAVE_WAY


async def test_everybody_is_looked_at_once_a_round_a_slice_at_a_time() -> None:
    told: list[str] = []
    gate = Gate(ended=told.append)
    guests = [Somebody() for _ in range(25)]
    for guest in guests:
        guest.reason = "slow"
        gate.admit(guest)
    for count in (10, 20, 25):
        gate.look(10)
        assert len(told) == count
    gate.look(10)  # the next round
    assert len(told) == 35


async def test_whoever_left_since_the_round_began_is_not_looked_at() -> None:
    gate = Gate()
    guests = [Somebody(), Somebody()]
    for guest in guests:
        gate.admit(guest)
    gate.look(1)
    for guest in guests:
        guest.reason = "slow"
        gate.leave(guest)
    gate.look(2)
    assert [guest.left for guest in guests] == ["", ""]


async def test_those_who_hold_most_go_until_it_is_little_enough() -> None:
    told: list[str] = []
    gate = Gate(Limits(held_bytes_max=10 * MIB), ended=told.append)
    sizes = (1, 6, 3, 5)
    guests = [Somebody(held_bytes=size * MIB) for size in sizes]
    for guest in guests:
        gate.admit(guest)
    gate.look_at_all()
    assert [guest.left for guest in guests] == ["", HOLDS_MOST, "", ""]
    guests[0].held_bytes = 20 * MIB
    gate.leave(guests[1])
    gate.look_at_all()
    assert [guest.left for guest in guests] == [HOLDS_MOST, HOLDS_MOST, "", ""]
    assert told == [HOLDS_MOST] * 2


async def test_the_timer_looks_while_somebody_is_there_and_then_rests() -> None:
    gate = Gate()
    somebody = Somebody()
    gate.admit(somebody)
    somebody.reason = "slow"
    gate._tick()
    assert somebody.left == "slow"
    assert gate._ticking is not None
    gate.leave(somebody)
    gate._tick()
    assert gate._ticking is None
    gate.admit(somebody)
    assert gate._ticking is not None
    gate.leave(somebody)
    await gate.drain(0)
    assert gate._ticking is None


async def test_a_drain_aborts_who_does_not_finish_in_time() -> None:
    gate = Gate()
    somebody = Somebody()
    gate.admit(somebody)
    await gate.drain(0)
    assert somebody.left == "aborted"


def test_a_request_is_slow_by_a_time_and_a_rate() -> None:
    began = 5 * S
    assert not is_slow(began, 0, began + gates.REQUEST_NS)
    assert is_slow(began, 0, began + gates.REQUEST_NS + 1)
    size = 10 * gates.REQUEST_BYTES_PER_S
    assert not is_slow(began, size, began + gates.REQUEST_NS + 10 * S)
    assert is_slow(began, size, began + gates.REQUEST_NS + 10 * S + 1)


def test_a_reader_is_stuck_when_the_unsent_bytes_do_not_become_less() -> None:
    reading = Reading()
    late = gates.UNREAD_NS + 1
    assert not reading.is_stuck(0, 0)
    assert not reading.is_stuck(MIB, S)
    assert not reading.is_stuck(2 * MIB, S + late - 1)
    assert reading.is_stuck(2 * MIB, S + late)
    assert reading.is_stuck(2 * MIB - gates.UNREAD_BYTES_MIN + 1, S + late)  # a drip
    assert not reading.is_stuck(2 * MIB - gates.UNREAD_BYTES_MIN, S + late)
    assert reading.is_stuck(2 * MIB - gates.UNREAD_BYTES_MIN, S + 2 * late)
    assert not reading.is_stuck(0, S + 3 * late)
    assert not reading.is_stuck(MIB, S + 9 * late)  # it had read all
