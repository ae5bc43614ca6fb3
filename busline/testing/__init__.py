"""Testing: `BusTest` for programs that use busline; and the checks that every transport passes, for those who write
one. Free of pytest.

The checks are unstable until 1.0: they grow with the contracts in `busline.transports.base` and `busline.stores.base`.
"""

from busline.testing.bus_test import BusTest
from busline.testing.clock import VirtualClock
from busline.testing.records import Failure, Record, Records

__all__ = ["BusTest", "Failure", "Record", "Records", "VirtualClock"]
