"""Two clients of SQS: one for the polls, which wait, and one for everything else, which must not wait behind them."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from functools import cache
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import xform_name
from botocore.loaders import Loader, create_loader

from busline.errors import BuslineError, TransportClosed
from busline.transports.sqs.faults import LIBRARY, Throttled, translate
from busline.transports.sqs.silence import silence
from busline.transports.sqs.url import Settings

CONNECTIONS = 200
"""Most of them to each service at once; opened as they are needed."""
PAUSE = (0.05, 1.0)
"""First and longest pause after a request that was throttled, seconds."""
SLACK = 10.0
"""Seconds that an answer to a poll may be late."""


@cache
def _loader() -> Loader:
    """The library's descriptions of services, read once in a process: half a second each time otherwise."""
    return create_loader()


class Clients:
    """Opened and closed once. Answers and errors are plain: a dict, or one of our exceptions."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._where = settings.where
        self._stack: AsyncExitStack | None = None
        self._work: Any = None
        self._polls: Any = None
        self._session: AioSession | None = None
        self._sns: Any = None
        self._sns_lock = asyncio.Lock()

    async def open(self) -> None:
        """Nothing is asked yet. Raises ConfigurationError for a profile or region that botocore doesn't know."""
        self._stack = AsyncExitStack()
        try:
            self._session = AioSession()
            self._session.register_component("data_loader", _loader())
            self._work = await self._client("sqs", self._settings.timeout)
            self._polls = await self._client("sqs", self._settings.wait + SLACK)
        except LIBRARY as error:
            await self.close()
            raise translate(error, self._where, "open") from error
        except ValueError as error:  # an endpoint that is none
            await self.close()
            raise translate(OSError(str(error)), self._where, "open") from error

    async def _client(self, service: str, read_timeout: float) -> Any:
        assert self._stack is not None
        assert self._session is not None
        # Never retried by the library: a send that it repeats is a duplicate that nobody is told of.
        config = AioConfig(
            connect_timeout=min(5.0, self._settings.timeout),
            read_timeout=read_timeout,
            max_pool_connections=CONNECTIONS,
            retries={"total_max_attempts": 1},
            tcp_keepalive=True,
        )
        made: Any = self._session.create_client(
            service,
            region_name=self._settings.region,
            endpoint_url=self._settings.endpoint_url,
            config=config,
        )
        with silence():
            return await self._stack.enter_async_context(made)

    async def close(self) -> None:
        """Idempotent; requests in flight end with an error."""
        stack, self._stack = self._stack, None
        self._work = self._polls = self._sns = None
        if stack is not None:
            await stack.aclose()

    async def ask(self, action: str, *, queue: str = "", handed_over: bool = False, **request: Any) -> dict[str, Any]:
        """One request beside the polls, repeated while it is throttled, within the time of one operation."""
        client = self._work
        if client is None:
            raise TransportClosed(f"the transport to {self._where} is not open")
        return await self._ask(client, f"sqs:{action}", queue, handed_over, request)

    async def ask_sns(self, action: str, *, handed_over: bool = False, **request: Any) -> dict[str, Any]:
        """The same of SNS, whose client is made when it is first needed."""
        async with self._sns_lock:
            if self._stack is None:
                raise TransportClosed(f"the transport to {self._where} is not open")
            if self._sns is None:
                self._sns = await self._client("sns", self._settings.timeout)
        return await self._ask(self._sns, f"sns:{action}", "", handed_over, request)

    async def _ask(
        self, client: Any, action: str, queue: str, handed_over: bool, request: dict[str, Any]
    ) -> dict[str, Any]:
        method = getattr(client, xform_name(action.partition(":")[2]))
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.timeout
        pause, longest = PAUSE
        while True:
            error = None
            try:
                async with asyncio.timeout_at(end):
                    return await method(**request)  # type: ignore[no-any-return]  # every action answers with one
            except LIBRARY as raised:
                error = self._translated(raised, action, queue, handed_over)
            except RuntimeError as raised:  # of a session that was closed meanwhile
                error = self._translated(OSError(str(raised)), action, queue, handed_over)
            if not isinstance(error, Throttled) or loop.time() + pause >= end:
                raise error
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(longest, pause * 2)

    def _translated(self, error: Exception, action: str, queue: str, handed_over: bool) -> BuslineError:
        translated = translate(error, self._where, action, queue=queue, handed_over=handed_over)
        translated.__cause__ = error
        return translated

    async def poll(self, queue: str, **request: Any) -> list[dict[str, Any]]:
        """ReceiveMessage, asked once: whoever asks again decides when. Never to be cancelled while it waits."""
        client = self._polls
        if client is None:
            raise TransportClosed(f"the transport to {self._where} is not open")
        try:
            answer = await client.receive_message(**request)
        except LIBRARY as error:
            raise self._translated(error, "sqs:ReceiveMessage", queue, False) from error
        except RuntimeError as error:
            raise self._translated(OSError(str(error)), "sqs:ReceiveMessage", queue, False) from error
        return answer.get("Messages") or []
