"""A wish to cancel reaches a running job at its worker's next sign of life."""

import asyncio

import pytest

from busline import Bus, Idempotency
from busline.testing import BusTest

LEASE = 30.0


@pytest.mark.parametrize("into", [0.0, 4.0, 9.9, 10.1, 25.0])
async def test_a_running_job_is_cancelled_within_a_third_of_its_lease(into: float) -> None:
    """At whatever moment between two signs of life it is wished for."""
    bus, ends = Bus(service="w"), []
    started = asyncio.Event()

    @bus.handler("work", idempotency=Idempotency(lease=LEASE))
    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    async with BusTest(bus) as test:
        job = await test.send("work", track=True)
        await started.wait()
        await test.advance(into)
        assert await job.cancel()
        assert not ends
        await test.advance(LEASE / 3)
        assert ends == ["cancelled"]
        assert await job.status() == "CANCELLED"
