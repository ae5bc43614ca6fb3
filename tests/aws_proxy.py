"""An HTTP proxy before an emulator of AWS that fails as the real one may: by action, as often as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web

Effect = Callable[["AwsProxy", web.Request, bytes], Awaitable[web.StreamResponse]]


@dataclass
class Rule:
    """Applies to an action, so many times."""

    action: str
    effect: Effect
    times: int


@dataclass
class AwsProxy:
    """Forwards to `target`; `actions` are those that came, in their order, and `rights` what IAM would have been asked:
    action and ARN."""

    target: str
    rules: list[Rule] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    rights: set[tuple[str, str]] = field(default_factory=set)
    port: int = 0

    async def __aenter__(self) -> AwsProxy:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    @property
    def endpoint(self) -> str:
        """For `endpoint_url=`."""
        return f"http://127.0.0.1:{self.port}"

    def fail(self, action: str, effect: Effect, times: int = 1) -> None:
        """The next so many requests of this action go wrong in this way."""
        self.rules.append(Rule(action, effect, times))

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        action = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        body = await request.read()
        if not action:
            action = next((part[7:] for part in body.decode().split("&") if part.startswith("Action=")), "")
        self.actions.append(action)
        self.rights.update(rights_of(action, json.loads(body) if "X-Amz-Target" in request.headers else parse_qs(body)))
        for rule in self.rules:
            if rule.action == action and rule.times > 0:
                rule.times -= 1
                return await rule.effect(self, request, body)
        return await self.forward(request, body)

    async def forward(self, request: web.Request, body: bytes) -> web.Response:
        """As if there were no proxy."""
        headers = {name: value for name, value in request.headers.items() if name.lower() != "content-length"}
        async with self._session.request(
            request.method, self.target + request.path_qs, headers=headers, data=body
        ) as got:
            kept = {"Content-Type": got.headers.get("Content-Type", "")}
            return web.Response(status=got.status, headers=kept, body=await got.read())


def rights_of(action: str, asked: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """What IAM asks for a request to SQS (JSON) or SNS (a form) in us-east-1."""
    if b"Action" in asked:
        (topic,) = asked.get(b"TopicArn") or [b"*"]  # it has no resource for a subscription
        if action == "CreateTopic":
            topic = b"arn:aws:sns:us-east-1:000000000000:" + asked[b"Name"][0]
        yield f"sns:{action.removesuffix('Batch')}", topic.decode()
    else:
        queue = asked.get("QueueName") or asked.get("QueueUrl", "").rpartition("/")[2]
        resource = f"arn:aws:sqs:us-east-1:000000000000:{queue}" if queue else "*"
        yield f"sqs:{action.removesuffix('Batch')}", resource
        if action == "CreateQueue" and asked.get("tags"):
            yield "sqs:TagQueue", resource


def refuse(code: str, status: int = 400, text: str = "as the test says") -> Effect:
    """Answer with an error, and carry nothing out."""

    async def effect(proxy: AwsProxy, request: web.Request, body: bytes) -> web.StreamResponse:
        if "X-Amz-Target" not in request.headers:  # SNS speaks XML
            error = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{text}</Message></Error>"
            return web.Response(status=status, text=f"<ErrorResponse>{error}</ErrorResponse>", content_type="text/xml")
        told = {"__type": f"com.amazonaws.sqs#{code}", "message": text}
        return web.Response(status=status, text=json.dumps(told), content_type="application/x-amz-json-1.0")

    return effect


async def cut_the_reply(proxy: AwsProxy, request: web.Request, body: bytes) -> web.StreamResponse:
    """Carry it out, and close the connection before the answer."""
    await proxy.forward(request, body)
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def swallow(proxy: AwsProxy, request: web.Request, body: bytes) -> web.StreamResponse:
    """Never answer."""
    await asyncio.sleep(3600)
    raise AssertionError


async def say_yes(proxy: AwsProxy, request: web.Request, body: bytes) -> web.StreamResponse:
    """A batch is said to have been carried out, and is not: what SQS says to receipt handles that are too old."""
    ids = [{"Id": entry["Id"]} for entry in json.loads(body)["Entries"]]
    return _answer({"Successful": ids, "Failed": []})


def fail_entries(*ids: str, code: str = "InternalError", sender: bool = False) -> Effect:
    """These entries of a batch fail, the others are carried out."""

    async def effect(proxy: AwsProxy, request: web.Request, body: bytes) -> web.StreamResponse:
        asked = json.loads(body)
        failed = [entry["Id"] for entry in asked["Entries"] if entry["Id"] in ids]
        asked["Entries"] = [entry for entry in asked["Entries"] if entry["Id"] not in ids]
        told: dict[str, Any] = {"Successful": []}
        if asked["Entries"]:
            got = await proxy.forward(request, json.dumps(asked).encode())
            assert isinstance(got.body, bytes)
            told = json.loads(got.body)
        told["Failed"] = [{"Id": each, "Code": code, "Message": "as told", "SenderFault": sender} for each in failed]
        return _answer(told)

    return effect


def _answer(told: dict[str, Any]) -> web.Response:
    return web.Response(text=json.dumps(told), content_type="application/x-amz-json-1.0")
