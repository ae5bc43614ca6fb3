"""One trace from the caller's span through handler, nested call, retry and reply; W3C headers on the wire."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from busline import Bus, Context, Retry
from busline.errors import ConfigurationError, NoHandler, RemoteError
from busline.integrations.otel import OpenTelemetryTraces, set_up_provider
from busline.testing.scenes import eventually


class Traced:
    """A bus whose spans are kept in memory."""

    def __init__(self, name: str) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("the app")
        self.bus = Bus(f"memory://{name}", service="w")
        self.traces = OpenTelemetryTraces(self.provider)
        self.bus.instrument(self.traces)

    @property
    def spans(self) -> list[ReadableSpan]:
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def parent_of(self, span: ReadableSpan) -> str:
        """Its name."""
        assert span.parent is not None
        (parent,) = [each for each in self.spans if each.context.span_id == span.parent.span_id]
        return parent.name


@pytest.fixture
def traced(request: pytest.FixtureRequest) -> Iterator[Traced]:
    traced = Traced(request.node.name)
    yield traced
    assert not traced.traces._contexts, "every message was settled"
    traced.provider.shutdown()


async def test_call_handler_nested_call_retry_and_reply_are_one_trace(traced: Traced) -> None:
    bus = traced.bus
    headers: list[dict[str, str]] = []

    @bus.handler("outer", retry=Retry(delays=[0.01]))
    async def outer(number: int, ctx: Context) -> int:
        headers.append(dict(ctx.headers))
        with traced.tracer.start_as_current_span("the handler's own"):
            doubled = await bus.call("inner", number, returns=int)
        if ctx.attempt == 1:
            raise OSError("not yet")
        await ctx.send("job", doubled)
        return doubled

    @bus.handler("inner")
    async def inner(number: int) -> int:
        return number * 2

    @bus.handler("job")
    def job(number: int) -> None: ...

    async with bus.worker():
        with traced.tracer.start_as_current_span("request"):
            assert await bus.call("outer", 21, headers={"mine": "too"}) == 42
        await eventually(lambda: traced.named("process job"))

    assert len({span.context.trace_id for span in traced.spans}) == 1
    first, second = traced.named("process outer")
    (call,) = traced.named("call outer")
    assert [traced.parent_of(span) for span in (call, first, second)] == ["request", "call outer", "call outer"]
    assert [traced.parent_of(span) for span in traced.named("call inner")] == ["the handler's own"] * 2
    assert {traced.parent_of(span) for span in traced.named("the handler's own")} == {"process outer"}
    assert {traced.parent_of(span) for span in traced.named("process inner")} == {"call inner"}
    assert traced.parent_of(traced.named("send job")[0]) == "process outer"
    assert traced.parent_of(traced.named("process job")[0]) == "send job"
    replies = traced.named("reply (anonymous)")
    assert sorted(map(traced.parent_of, replies)) == ["process inner", "process inner", "process outer"]
    answer = next(reply for reply in replies if traced.parent_of(reply) == "process outer")
    assert [link.context.span_id for link in call.links] == [answer.context.span_id]

    assert (first.attributes["busline.outcome"], second.attributes["busline.outcome"]) == ("retried", "succeeded")
    assert (first.status.status_code, second.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert first.attributes["error.type"] == "OSError"
    assert [header["mine"] for header in headers] == ["too", "too"]
    trace_id = f"{call.context.trace_id:032x}"
    assert all(re.fullmatch(f"00-{trace_id}-[0-9a-f]{{16}}-0[13]", header["traceparent"]) for header in headers)


async def test_spans_follow_the_conventions_for_messaging(traced: Traced) -> None:
    bus = traced.bus

    @bus.handler("add")
    async def add(number: int) -> int:
        return number + 1

    @bus.subscriber("user.*")
    async def on_user() -> None: ...

    async with bus.worker():
        await bus.call("add", 1)
        await bus.publish("user.created")
        await eventually(lambda: traced.named("process user.*"))
    kinds = {span.name: span.kind for span in traced.spans}
    assert kinds == {
        "call add": SpanKind.PRODUCER,
        "process add": SpanKind.CONSUMER,
        "reply (anonymous)": SpanKind.PRODUCER,
        "publish user.created": SpanKind.PRODUCER,
        "process user.*": SpanKind.CONSUMER,
    }
    (call,), (process,) = traced.named("call add"), traced.named("process add")
    identifier = call.attributes["messaging.message.id"]
    assert dict(call.attributes) == {
        "messaging.system": "memory",
        "messaging.operation.type": "send",
        "messaging.operation.name": "call",
        "messaging.destination.name": "add",
        "messaging.message.id": identifier,
        "messaging.message.conversation_id": identifier,
        "messaging.message.body.size": 1,
    }
    assert process.attributes["messaging.message.id"] == identifier
    assert process.attributes["messaging.operation.type"] == "process"
    assert process.attributes["messaging.destination.subscription.name"] == "w"
    assert traced.named("process user.*")[0].attributes["messaging.destination.template"] == "user.*"


async def test_failures_are_told_where_they_are_seen(traced: Traced) -> None:
    bus = traced.bus

    @bus.handler("fail")
    async def fail() -> None:
        raise ValueError("out of paper")

    @bus.handler("strict")
    async def strict(number: int) -> None: ...

    async with bus.worker():
        with pytest.raises(RemoteError):
            await bus.call("fail")
        with pytest.raises(NoHandler):
            await bus.call("nobody")
        with pytest.raises(RemoteError):
            await bus.call("strict", "no number")
        await bus.send("strict", "no number")
        await eventually(lambda: len(traced.named("process strict")) == 1)
    errors = [(span.name, span.attributes.get("error.type")) for span in traced.spans]
    assert ("call fail", "ValueError") in errors
    assert ("process fail", "ValueError") in errors
    assert ("call nobody", "NoHandler") in errors
    assert ("call strict", "busline.invalid") in errors
    assert ("process strict", "invalid") in errors
    assert all(span.status.status_code is StatusCode.ERROR for span in traced.spans if "error.type" in span.attributes)
    told = " ".join(str(span.to_json()) for span in traced.spans)
    assert "no number" not in told


async def test_a_span_around_the_workers_start_is_nobodys_parent(traced: Traced) -> None:
    """What has no trace when it arrives begins one."""
    stranger = Bus(traced.bus.url)
    ran: list[int] = []

    @traced.bus.handler("job")
    async def job(number: int) -> None:
        ran.append(number)

    with traced.tracer.start_as_current_span("startup"):
        async with traced.bus.worker():
            async with stranger:
                await stranger.send("job", 1)
            await eventually(lambda: traced.named("process job"))
    assert traced.named("process job")[0].parent is None
    assert ran == [1]


async def test_without_a_provider_nothing_is_added_to_a_message() -> None:
    bus = Bus("memory://no-provider", service="w")
    bus.instrument(OpenTelemetryTraces())
    seen: list[dict[str, str]] = []

    @bus.handler("look")
    async def look(ctx: Context) -> None:
        seen.append(dict(ctx.headers))

    async with bus.worker():
        await bus.call("look")
    assert seen == [{}]


def test_a_missing_library_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "busline.integrations.otel")
    with pytest.raises(ConfigurationError, match=r"pip install 'busline\[otel\]'"):
        import busline.integrations.otel  # noqa: F401


def test_an_exporter_that_is_not_installed_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigurationError, match="'smoke'"):
        set_up_provider({"OTEL_TRACES_EXPORTER": "smoke"})
