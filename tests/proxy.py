"""A TCP proxy that can swallow, cut and refuse, between a client and a server on this machine."""

from __future__ import annotations

import asyncio


class Proxy:
    """Forwards to `port`. Its own port is `port` after `start`."""

    def __init__(self, target: int, latency: float = 0.0) -> None:
        """`latency`: seconds that everything takes longer, each way."""
        self._target = target
        self._latency = latency
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.connections = 0
        self.port = 0

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def swallow(self) -> None:
        """From now on nothing passes, in either direction, and nobody is told; new connections are accepted."""
        self._open.clear()

    def pass_again(self) -> None:
        """New connections work; those that were swallowed stay dead, as behind a router that forgot them."""
        for pipe in self._pipes:
            pipe.cancel()
        self._open.set()

    async def close(self) -> None:
        """Stop everything."""
        if self._server is not None:
            self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        there: asyncio.StreamWriter | None = None
        try:
            await self._open.wait()
            back, there = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._pump(reader, there), self._pump(back, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._pipes.discard(task)
            for each in (writer, there):
                if each is not None:
                    each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._open.wait()
            if self._latency:
                asyncio.get_running_loop().call_later(self._latency, writer.write, data)
            else:
                writer.write(data)
                await writer.drain()
        raise ConnectionResetError
