"""busline's pytest plugin. Beside the package, so that a run of pytest that does not use it imports nothing of busline.

`bus_test` is an open `busline.testing.BusTest` of the bus that the fixture `bus` returns, which is yours to write:

    @pytest.fixture
    def bus():
        return app.bus

It works with pytest-asyncio in auto mode and with anyio's plugin on asyncio. In strict mode, and for other options,
write `async with BusTest(bus) as t:` yourself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from busline import Bus
    from busline.testing import BusTest


@pytest.fixture
def bus() -> Bus:
    """The bus under test; to be replaced by a fixture of the same name."""
    pytest.fail("write a fixture `bus` that returns the Bus that `bus_test` is to test", pytrace=False)


@pytest.fixture
async def bus_test(bus: Bus) -> AsyncIterator[BusTest]:
    """The bus on a memory broker and a clock that stands still, open until the test has ended."""
    from busline.testing import BusTest

    async with BusTest(bus) as test:
        yield test
