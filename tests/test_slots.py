"""`Slots`: stops begin in turn, and all at once if they get nowhere."""

import asyncio

import attrs
import pytest
from manual_clock import ManualClock

from openai_cancel.slots import LONGEST_TURN, Slots

GRACE = 10.0

pytestmark = pytest.mark.usefixtures("no_task_is_left")


async def settle() -> None:
    """Let all tasks go on as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


@attrs.define
class Stops:
    """Stops that take slots, and end when a test says so.

    Attributes:
        begun: the names of those that have begun, in this order.
    """

    slots: Slots
    seconds: float = GRACE
    begun: list[str] = attrs.field(factory=list)
    tasks: dict[str, asyncio.Task[None]] = attrs.field(factory=dict)
    _ends: dict[str, asyncio.Event] = attrs.field(factory=dict)

    async def begin(self, names: str) -> None:
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._run(name))
        await settle()

    async def end(self, names: str) -> None:
        for name in names:
            self._ends[name].set()
        await settle()

    async def _run(self, name: str) -> None:
        async with self.slots.take(self.seconds):
            self.begun.append(name)
            await self._ends[name].wait()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def stops(clock: ManualClock) -> Stops:
    """Stops that share two slots."""
    return Stops(Slots(lambda: 2 / LONGEST_TURN, clock))


async def test_stops_begin_in_their_order_when_others_have_ended(stops: Stops) -> None:
    await stops.begin("abcd")
    assert stops.begun == ["a", "b"]
    await stops.end("b")
    assert stops.begun == ["a", "b", "c"]
    await stops.end("acd")
    assert stops.begun == ["a", "b", "c", "d"]


async def test_a_cancelled_stop_takes_no_slot(stops: Stops) -> None:
    await stops.begin("abcd")
    stops.tasks["c"].cancel()
    await stops.end("abd")
    assert stops.begun == ["a", "b", "d"]


async def test_a_slot_goes_to_the_next_one_if_its_stop_is_cancelled_meanwhile(stops: Stops) -> None:
    async with stops.slots.take(GRACE):
        await stops.begin("abc")
        assert stops.begun == ["a"]
    stops.tasks["b"].cancel()  # it has the slot, and does not know yet
    await settle()
    assert stops.begun == ["a", "c"]
    await stops.end("ac")


async def test_a_later_stop_does_not_overtake_those_that_wait(stops: Stops) -> None:
    await stops.begin("abc")
    stops.slots.rate = lambda: 3 / LONGEST_TURN
    await stops.begin("d")
    assert stops.begun == ["a", "b"]
    await stops.end("abcd")
    assert stops.begun == ["a", "b", "c", "d"]


async def test_all_begin_once_a_stop_has_used_up_its_time_and_no_other_has_ended(
    stops: Stops, clock: ManualClock
) -> None:
    await stops.begin("abcdef")
    clock.advance(GRACE)
    await stops.end("a")
    assert stops.begun == ["a", "b", "c", "d", "e", "f"]
    await stops.end("c")  # it has ended soon, so that the next ones have to wait again
    await stops.begin("gh")
    assert stops.begun == ["a", "b", "c", "d", "e", "f"]
    await stops.end("bdefgh")


async def test_a_stop_that_uses_up_its_time_is_waited_for_while_others_end(stops: Stops, clock: ManualClock) -> None:
    await stops.begin("abcde")
    clock.advance(GRACE - 1)
    await stops.end("b")
    clock.advance(1)
    await stops.end("c")
    await stops.end("a")
    assert stops.begun == ["a", "b", "c", "d", "e"]
    await stops.begin("fg")
    assert "f" not in stops.begun
    await stops.end("defg")


@pytest.mark.parametrize(("seconds", "slots"), [(0.1, 1), (1.6, 4), (4.0, 10), (6.4, 16), (100.0, 16)])
async def test_no_stop_waits_long_for_its_first_turn(clock: ManualClock, seconds: float, slots: int) -> None:
    stops = Stops(Slots(lambda: 20, clock), seconds)
    names = "abcdefghijklmnopqrst"
    await stops.begin(names)
    assert len(stops.begun) == slots
    await stops.end(names)
