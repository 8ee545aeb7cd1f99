"""`Clock`: time and chance, and a subclass in place of them."""

import time

from conftest import KEY

from openai_cancel import AsyncSession, Clock
from openai_cancel.clock import SYSTEM_CLOCK
from openai_cancel.emulator import Emulator, Fault


class FastClock(Clock):
    """The example of the documentation."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def test_the_system_clock_measures_real_time() -> None:
    before = SYSTEM_CLOCK.monotonic()
    await SYSTEM_CLOCK.sleep(0.01)
    assert 0.01 <= SYSTEM_CLOCK.monotonic() - before < 5


def test_random_numbers_are_from_0_up_to_1_and_differ() -> None:
    numbers = [SYSTEM_CLOCK.random() for _ in range(1000)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) > 900


async def test_a_clock_that_takes_no_time_makes_retries_and_polling_take_none(server: Emulator, create) -> None:
    server.faults += [Fault(status=503, headers={"retry-after": "10"})] * 3
    clock = FastClock()
    began = time.monotonic()
    async with AsyncSession(api_key=KEY, base_url=server.base_url, clock=clock) as session:
        assert (await session.cancel(create())).attempts == 4
    assert clock.now == 30.0
    assert time.monotonic() - began < 5
