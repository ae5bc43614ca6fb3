"""Asking one queue for messages: as many as somebody waits for, and never broken off.

A poll that is cancelled goes on at SQS: the next message would go into a closed connection and be away for a whole
visibility timeout. So a poll always comes back, and `arrived` finds a place for what it brings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import time
from typing import Any

from busline.errors import BuslineError, QueueNotFound, TransportClosed
from busline.transports.sqs.batching import GATHER
from busline.transports.sqs.clients import Clients
from busline.transports.sqs.faults import Denied
from busline.transports.sqs.receipts import SYSTEM_ATTRIBUTES

MOST = 10
"""Messages that one poll brings at most."""
AT_ONCE = 16
"""Polls of one queue at the same time, at most; more than one only while they come back full."""
BACK_OFF = (0.1, 5.0)
"""First and longest pause after a poll that failed, seconds."""

Raw = dict[str, Any]


class Poller:
    """Polls one queue for `wanted()` messages more, whenever that is above nothing and it is `kick`ed."""

    def __init__(
        self,
        clients: Clients,
        url: str,
        name: str,
        *,
        wait: int,
        lease: int,
        wanted: Callable[[], int],
        arrived: Callable[[Sequence[Raw]], None],
        gone: Callable[[QueueNotFound], None],
        denied: Callable[[Denied], None],
    ) -> None:
        self._clients = clients
        self._url = url
        self._name = name
        self._wait = wait
        self._lease = lease
        self._wanted = wanted
        self._arrived = arrived
        self._gone = gone
        self._denied = denied
        self._polls: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._pause = 0.0
        self._busy = True
        self._first = True
        self._stopped = False
        self.asked = 0
        """Messages that polls on their way may bring."""
        self.fault = ""
        """Why the last poll failed; "" if it didn't."""
        self.since = time()
        """When that last changed."""

    def kick(self) -> None:
        """Somebody waits: ask for all who do so in this tick; beside another poll, for all within milliseconds."""
        if self._stopped or self._timer is not None or self._soon is not None:
            return
        loop = asyncio.get_running_loop()
        self._soon = loop.call_later(GATHER, self._ask) if self._polls else loop.call_soon(self._ask)

    def _ask(self) -> None:
        """If nobody has asked already. While polls come back full, several ask at once."""
        self._soon = None
        if self._stopped or self._timer is not None:
            return
        while (wanted := self._wanted() - self.asked) > 0 and len(self._polls) < (AT_ONCE if self._busy else 1):
            # The first one does not wait, so that a start tells at once what is wrong; nor do those beside another.
            wait = 0 if self._first or self._polls else self._wait
            self._first = False
            most = min(MOST, wanted)
            self.asked += most
            task = asyncio.create_task(self._poll(most, wait), name=f"busline sqs poll {self._name}")
            self._polls.add(task)

    async def _poll(self, most: int, wait: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        found: list[Raw] = []
        try:
            found = await self._clients.poll(
                self._name,
                QueueUrl=self._url,
                MaxNumberOfMessages=most,
                WaitTimeSeconds=wait,
                VisibilityTimeout=self._lease,
                MessageSystemAttributeNames=SYSTEM_ATTRIBUTES,
                MessageAttributeNames=["All"],
            )
            self._tell("")
            self._pause = 0.0
            self._busy = len(found) == most
        except QueueNotFound as error:
            self._tell(str(error))
            self._gone(error)
        except Denied as error:
            self._tell(str(error))
            self._back_off()
            self._denied(error)
        except TransportClosed:
            self._stopped = True
        except BuslineError as error:
            self._tell(str(error))
            self._back_off()
        finally:
            self.asked -= most
            self._polls.discard(task)
        if found:
            self._arrived(_newest(found))
        self.kick()

    def _tell(self, fault: str) -> None:
        if self._stopped:
            return  # what still comes back says nothing of how it is now
        if bool(fault) != bool(self.fault):
            self.since = time()
        self.fault = fault

    def _back_off(self) -> None:
        shortest, longest = BACK_OFF
        self._busy = False
        self._pause = min(longest, self._pause * 2) or shortest
        if self._timer is None and not self._stopped:
            self._timer = asyncio.get_running_loop().call_later(self._pause, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        self.kick()

    def stop(self) -> None:
        """Ask no more; polls on their way still come back."""
        self._stopped = True
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()
        self._timer = self._soon = None

    async def ended(self, timeout: float) -> None:
        """Until the last poll is back; one that is not within `timeout` seconds is broken off."""
        self.stop()
        if self._polls:
            await asyncio.wait(self._polls, timeout=timeout)
        await self.abort()

    async def abort(self) -> None:
        """Break off what is on its way: for a queue that nobody will look at any more."""
        self.stop()
        polls = list(self._polls)
        for poll in polls:
            poll.cancel()
        if polls:
            await asyncio.wait(polls)


def _newest(found: Sequence[Raw]) -> Sequence[Raw]:
    """One answer may bring the same message twice: its later handle is the one that counts."""
    if len(found) == 1:
        return found
    return list({raw["MessageId"]: raw for raw in found}.values())
