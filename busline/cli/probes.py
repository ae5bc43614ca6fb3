"""`--health-port`: /livez, /readyz and /metrics over HTTP, for orchestrators and Prometheus.

GET and HEAD, one request per connection, nothing that a request says is more than looked at: no framework is needed,
and none could be asked more than this.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from http import HTTPStatus

import orjson

from busline.cli.board import GIVEN_UP, Board
from busline.cli.exits import Exit, Failure
from busline.cli.terminal import say
from busline.errors import ConfigurationError
from busline.integrations.app_metrics import as_prometheus

REQUEST_TIMEOUT = 5.0
"""Seconds in which a client must have sent its request, and taken the answer."""
MAX_REQUEST = 16_384
"""Bytes of a request's head."""
MAX_CLIENTS = 64
"""Connections at a time; those beyond are closed at once."""
JSON, TEXT = "application/json", "text/plain; charset=utf-8"

Answer = tuple[HTTPStatus, str, bytes]


class Probes:
    """Answers from a board. `supervised` says that stuck processes are replaced, so that the whole lives on."""

    def __init__(self, board: Board, host: str, port: int, *, supervised: bool) -> None:
        self._board = board
        self._host = host
        self._port = port
        self._supervised = supervised
        self._server: asyncio.Server | None = None
        self._clients = 0

    async def start(self) -> None:
        """Listen. Raises Failure if that is not possible."""
        try:
            self._server = await asyncio.start_server(self._attend, self._host, self._port, limit=MAX_REQUEST)
        except OSError as error:
            what = error.strerror or str(error)
            text = f"--health-port {self._port} on {self._host} cannot be had: {what}"
            raise Failure(Exit.CONFIGURATION, text) from error
        port = self._server.sockets[0].getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        say(f"health at http://{host}:{port}/readyz")

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    def serve_in_thread(self) -> None:
        """The same in a thread with a loop of its own, until the process ends. Raises Failure."""
        begun: list[BaseException | None] = []
        listening = threading.Event()

        async def serve() -> None:
            try:
                await self.start()
            except BaseException as error:
                begun.append(error)
                return
            finally:
                listening.set()
            await asyncio.Event().wait()

        threading.Thread(target=lambda: asyncio.run(serve()), name="busline health", daemon=True).start()
        listening.wait()
        if begun and begun[0] is not None:
            raise begun[0]

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= MAX_CLIENTS:
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._response(head.decode("latin-1")))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that is slow, gone, or none; it is not ours to complain of
        finally:
            self._clients -= 1
            writer.close()

    def _response(self, request: str) -> bytes:
        line, *headers = request.split("\r\n")
        method, _, rest = line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            answer: Answer = HTTPStatus.METHOD_NOT_ALLOWED, TEXT, b"only GET and HEAD\n"
        else:
            answer = self._answer(path, _header(headers, "accept"))
        return _rendered(answer, with_body=method != "HEAD")

    def _answer(self, path: str, accept: str) -> Answer:
        pages: dict[str, Callable[[], Answer]] = {
            "/livez": self._live,
            "/readyz": self._ready,
            "/metrics": lambda: self._metrics(accept),
        }
        page = pages.get(path)
        return page() if page is not None else (HTTPStatus.NOT_FOUND, TEXT, f"{', '.join(pages)}\n".encode())

    def _live(self) -> Answer:
        silence = self._board.silence
        if self._supervised or silence < GIVEN_UP:
            return HTTPStatus.OK, JSON, orjson.dumps({"live": True})
        why = f"the event loop has not turned for {silence:.0f} s"
        return HTTPStatus.SERVICE_UNAVAILABLE, JSON, orjson.dumps({"live": False, "reasons": [why]})

    def _ready(self) -> Answer:
        troubles = self._board.troubles
        status = HTTPStatus.SERVICE_UNAVAILABLE if troubles else HTTPStatus.OK
        return status, JSON, orjson.dumps({"ready": not troubles, "reasons": troubles})

    def _metrics(self, accept: str) -> Answer:
        try:
            from busline.integrations.prometheus import exposed
        except ConfigurationError as error:
            return HTTPStatus.NOT_IMPLEMENTED, TEXT, f"{error}\n".encode()
        body, content_type = exposed(self._board.families(), accept, as_prometheus(self._board.app_metrics()))
        return HTTPStatus.OK, content_type, body


def _header(headers: list[str], name: str) -> str:
    pairs = (header.partition(":") for header in headers)
    return next((value.strip() for key, _, value in pairs if key.strip().lower() == name), "")


def _rendered(answer: Answer, *, with_body: bool) -> bytes:
    status, content_type, body = answer
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (body if with_body else b"")
