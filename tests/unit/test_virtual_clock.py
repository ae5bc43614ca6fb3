import asyncio

from busline.testing.clock import VirtualClock


async def test_time_stands_still_until_it_is_turned() -> None:
    clock = VirtualClock(start=100.0)
    await asyncio.sleep(0.001)
    assert clock.time() == 100.0
    await clock.advance(2.5)
    assert clock.time() == 102.5


async def test_callbacks_run_in_order_each_at_its_own_instant() -> None:
    clock = VirtualClock(start=0.0)
    seen: list[tuple[str, float]] = []
    for name, when in (("late", 3.0), ("early", 1.0), ("same", 1.0), ("never", 9.0)):
        clock.call_at(when, lambda name=name: seen.append((name, clock.time())))
    await clock.advance(5.0)
    assert seen == [("early", 1.0), ("same", 1.0), ("late", 3.0)]


async def test_a_callback_may_ask_for_another_one_within_the_same_turn_of_the_clock() -> None:
    clock = VirtualClock(start=0.0)
    seen: list[float] = []

    def tick() -> None:
        seen.append(clock.time())
        clock.call_at(clock.time() + 1.0, tick)

    clock.call_at(1.0, tick)
    await clock.advance(3.5)
    assert seen == [1.0, 2.0, 3.0]


async def test_what_a_callback_wakes_has_run_before_the_next_one() -> None:
    clock = VirtualClock(start=0.0)
    woken = asyncio.Event()
    seen: list[float] = []

    async def wait() -> None:
        await woken.wait()
        seen.append(clock.time())

    task = asyncio.create_task(wait())
    clock.call_at(1.0, woken.set)
    await clock.advance(10.0)
    assert seen == [1.0]
    await task


async def test_a_cancelled_callback_does_not_run() -> None:
    clock = VirtualClock(start=0.0)
    seen: list[str] = []
    timer = clock.call_at(1.0, lambda: seen.append("cancelled"))
    clock.call_at(1.0, lambda: seen.append("kept"))
    timer.cancel()
    await clock.advance(1.0)
    timer.cancel()
    assert seen == ["kept"]


async def test_what_is_overdue_runs_in_the_next_turn_of_the_loop() -> None:
    clock = VirtualClock(start=10.0)
    seen: list[str] = []
    clock.call_at(9.0, lambda: seen.append("overdue"))
    assert seen == []
    await asyncio.sleep(0)
    assert seen == ["overdue"]
