"""OpenTelemetry traces: `bus.instrument(OpenTelemetryTraces())`, or `busline worker --otel`.

Spans follow the semantic conventions for messaging. One trace leads from the caller's span through its call, the
handler, what that calls and sends in turn, its retries, and the reply. The context travels as the W3C's headers
`traceparent` and `tracestate` (or as whatever propagators are configured) among the message's own headers. Payloads
are in no span.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from busline.errors import CodecError, ConfigurationError
from busline.message import Delivery, Message
from busline.observing import Kind, Observed, Observer, Outcome
from busline.registry import Handler
from busline.wire import Envelope, decode_error, reply_status

try:
    from opentelemetry import context, propagate, trace
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider
except ImportError as missing:
    raise ConfigurationError("traces need opentelemetry-api: pip install 'busline[otel]'") from missing

SYSTEMS = {"amqp": "rabbitmq", "amqps": "rabbitmq", "sqs": "aws_sqs"}
"""`messaging.system` by the scheme of the bus's URL; others are called as their scheme."""
VERBS: dict[Kind, str] = {"call": "call", "job": "send", "event": "publish"}
OTLP = ("otlp_proto_http", "otlp_proto_grpc")
"""The entry points that OTEL_TRACES_EXPORTER=otlp stands for; the first that is installed."""


class OpenTelemetryTraces(Observer):
    """Makes a span of each departure, each attempt and each reply of one bus.

    `provider` is the tracer provider; by default the global one, as it is when the first span begins.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer: Tracer = trace.get_tracer("busline", tracer_provider=provider)
        self._common: dict[str, Any] = {}
        self._contexts: dict[Delivery, context.Context] = {}
        """Of the attempts whose messages are not settled yet."""

    def instrumented(self, bus: Observed) -> None:
        scheme = bus.url.partition(":")[0]
        self._common = {"messaging.system": SYSTEMS.get(scheme, scheme or "busline")}

    # -- the sender's side --------------------------------------------------------------------------------------

    def sending(self, kind: Kind, message: Message, envelope: Envelope, queue: str | None) -> Span:
        attributes = self._attributes("send", VERBS[kind], message, envelope)
        if queue is not None:
            attributes["messaging.destination.subscription.name"] = queue
        span = self._tracer.start_span(f"{VERBS[kind]} {message.topic}", kind=SpanKind.PRODUCER, attributes=attributes)
        _inject(span, message)
        return span

    def sent(self, began: Span, error: BaseException | None) -> None:
        _end(began, error)

    def calling(self, message: Message, envelope: Envelope, queue: str | None) -> Span:
        return self.sending("call", message, envelope, queue)

    def called(self, began: Span, reply: Message | None, error: BaseException | None) -> None:
        if reply is not None:
            replied = trace.get_current_span(propagate.extract(reply.headers, context=context.Context()))
            if replied.get_span_context().is_valid:
                began.add_link(replied.get_span_context())
            if (wrong := _error_in(reply)) is not None:
                _fail(began, wrong)
        _end(began, error)

    # -- the worker's side --------------------------------------------------------------------------------------

    def starting(self, delivery: Delivery, envelope: Envelope, handler: Handler) -> Span:
        span, its_context = self._processing(delivery, envelope, handler.declaration.topic)
        self._contexts[delivery] = its_context
        context.attach(its_context)  # never detached: the handler's context variables end with it
        return span

    def ended(self, began: Span, outcome: Outcome, error: BaseException | None) -> None:
        began.set_attribute("busline.outcome", outcome)
        _end(began, error)

    def dead_lettered(self, delivery: Delivery, envelope: Envelope, reason: str, queue: str) -> None:
        if delivery not in self._contexts:
            self._refuse(delivery, envelope, reason)

    def dropped(self, delivery: Delivery, envelope: Envelope) -> None:
        self._refuse(delivery, envelope, "expired")

    def _refuse(self, delivery: Delivery, envelope: Envelope, reason: str) -> None:
        """The message ends here without an attempt."""
        span, _ = self._processing(delivery, envelope, delivery.message.topic)
        _fail(span, reason)
        span.end()

    def _processing(self, delivery: Delivery, envelope: Envelope, pattern: str) -> tuple[Span, context.Context]:
        message = delivery.message
        # Not the context of this task, in which the span may be current in which the worker was started.
        sender = propagate.extract(message.headers, context=context.Context())
        attributes = self._attributes("process", "process", message, envelope)
        attributes["messaging.destination.subscription.name"] = delivery.queue
        attributes["busline.attempt"] = envelope.attempt
        if pattern != message.topic:
            attributes["messaging.destination.template"] = pattern
        span = self._tracer.start_span(
            f"process {pattern}", context=sender, kind=SpanKind.CONSUMER, attributes=attributes
        )
        return span, trace.set_span_in_context(span, sender)

    def replying(self, delivery: Delivery, reply: Message) -> Span:
        attributes = {
            **self._common,
            "messaging.operation.type": "send",
            "messaging.operation.name": "reply",
            "messaging.destination.temporary": True,
            "messaging.destination.anonymous": True,
            "messaging.message.body.size": len(reply.body),
        }
        parent = self._contexts.get(delivery)
        if parent is None:  # it was answered without an attempt
            parent = propagate.extract(delivery.message.headers, context=context.Context())
        span = self._tracer.start_span(
            "reply (anonymous)", context=parent, kind=SpanKind.PRODUCER, attributes=attributes
        )
        _inject(span, reply)
        return span

    def replied(self, began: Span, *, delivered: bool) -> None:
        if not delivered:
            _fail(began, "caller_gone")
        began.end()

    def settled(self, delivery: Delivery) -> None:
        self._contexts.pop(delivery, None)

    def _attributes(self, kind: str, verb: str, message: Message, envelope: Envelope) -> dict[str, Any]:
        return {
            **self._common,
            "messaging.operation.type": kind,
            "messaging.operation.name": verb,
            "messaging.destination.name": message.topic,
            "messaging.message.id": envelope.id,
            "messaging.message.conversation_id": envelope.correlation_id or envelope.id,
            "messaging.message.body.size": len(message.body),
        }


def _inject(span: Span, message: Message) -> None:
    carrier: dict[str, str] = dict(message.headers)
    propagate.inject(carrier, context=trace.set_span_in_context(span))
    message.headers = carrier


def _error_in(reply: Message) -> str | None:
    try:
        return None if reply_status(reply) == "ok" else decode_error(reply.body)[0]
    except CodecError:
        return "CodecError"


def _fail(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _end(span: Span, error: BaseException | None) -> None:
    if error is not None:
        span.record_exception(error)
        _fail(span, type(error).__name__)
    span.end()


def set_up_provider(environment: Mapping[str, str] = os.environ) -> None:
    """Make a global tracer provider from the OTEL_* variables, unless the app has made one.

    OTEL_TRACES_EXPORTER names the exporter (default: otlp, over HTTP), OTEL_SERVICE_NAME the service, and so on: the
    SDK reads them. Raises ConfigurationError if the SDK or the exporter is not installed.
    """
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    try:
        from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as missing:
        raise ConfigurationError(
            "--otel needs opentelemetry-sdk and an exporter: pip install opentelemetry-sdk "
            "opentelemetry-exporter-otlp; or set up a tracer provider in the app itself"
        ) from missing
    provider = SdkTracerProvider()
    for name in environment.get("OTEL_TRACES_EXPORTER", "otlp").split(","):
        if name.strip() != "none":
            provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip())))
    trace.set_tracer_provider(provider)


def _exporter(name: str) -> Any:
    for wanted in OTLP if name == "otlp" else (name,):
        for entry in entry_points(group="opentelemetry_traces_exporter", name=wanted):
            return entry.load()()
    raise ConfigurationError(
        f"the exporter {name!r} of OTEL_TRACES_EXPORTER is not installed; otlp, for example, is in "
        "opentelemetry-exporter-otlp"
    )
