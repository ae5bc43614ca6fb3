"""A worker that operators look after, and that they cannot ask."""

from __future__ import annotations

import pytest

from busline import Bus, operated
from busline.errors import ConfigurationError
from busline.testing.scenes import eventually
from busline.transports.memory import MemoryBroker, MemoryTransport


def bus_at(broker: MemoryBroker, *, control: bool | None = None) -> Bus:
    bus = Bus(MemoryTransport(broker), service="svc", control=control)

    @bus.handler("svc.work")
    async def work() -> None: ...

    return bus


async def test_it_keeps_to_what_is_paused_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operated, "LOOK_AGAIN", 0.01)
    broker = MemoryBroker()
    async with bus_at(broker).worker(control="heeding") as worker, bus_at(broker).control() as control:
        assert await control.ping(timeout=0.1) == []
        await control.pause("svc", timeout=0.01)
        await eventually(lambda: worker.paused == {"svc": ["an operator has paused it"]})
        await control.resume("svc", timeout=0.01)
        await eventually(lambda: worker.paused == {})


@pytest.mark.parametrize("control", [True, False])
async def test_what_the_bus_and_its_worker_are_told_may_not_differ(control: bool) -> None:
    with pytest.raises(ConfigurationError, match=f"control={not control}, and its bus says control={control}"):
        async with bus_at(MemoryBroker(), control=control).worker(control=not control):
            raise AssertionError("it started")
