"""What a queue was told to be: how long, how high, whose. Told to the broker, so it holds for every client."""

from __future__ import annotations

from dataclasses import replace

from busline.errors import ConfigurationError, NoHandler, QueueFull, QueueNotFound
from busline.message import Message, QueueSpec, ToQueue, ToTopic
from busline.testing.harness import Harness
from busline.testing.steps import QUIET, SERVICE, client, drain, eventually, line, nothing_comes, prompt, raises
from busline.transports.base import Transport


async def _is_refused(transport: Transport, spec: QueueSpec) -> bool:
    """Does the broker say that it knows no such option?"""
    try:
        await prompt(transport.attach(spec))
    except ConfigurationError:
        return True
    return False


async def _bounds_are_not_exact(h: Harness) -> str | None:
    """The name of what the transport lacks to keep a bound to the message; None if it can."""
    async with client(h) as transport:
        spec = QueueSpec(h.unique("bounded"), SERVICE, max_length=1)
        if await _is_refused(transport, spec):
            return "max_length"
        limits = await transport.attach(spec)
        await transport.detach(spec.name, delete=True)
        return None if limits.exact_bounds else "exact_bounds"


async def _other_bounds_hold_or_are_refused(h: Harness) -> str:
    async with line(h, max_length=5) as one, client(h) as other:
        if await _is_refused(other, replace(one.spec, max_length=50)):
            assert await other.attach(one.spec) == one.limits
            return "exact_bounds"
        accepted, error = await _fill(other, one.queue, 200)
        assert accepted >= 50
        assert error.max_length == 50
        await other.attach(replace(one.spec, max_length=None))
        await other.send(ToQueue(one.queue), *[Message("a.topic", b"more")] * 100)
        return "exact_bounds"


async def _fill(transport: Transport, queue: str, most: int) -> tuple[int, QueueFull]:
    """Send until it is refused; how many were accepted, and the refusal."""
    for accepted in range(most):
        try:
            await transport.send(ToQueue(queue), Message("a.topic", b"%d" % accepted))
        except QueueFull as error:
            return accepted, error
    raise AssertionError(f"{most} messages were accepted, and none refused")


async def check_a_bound_slows_senders_down(h: Harness) -> str | None:
    """About `max_length` messages fit, whoever sends or calls; none of them is lost, what is given back is not refused,
    and a queue that was emptied takes messages again."""
    if await _bounds_are_not_exact(h) == "max_length":
        return "max_length"
    async with line(h, max_length=5, slots=32) as one, client(h) as stranger:
        await stranger.send(ToQueue(one.queue), Message("a.topic", b"held"))
        held = await one.hold()
        accepted, error = await _fill(stranger, one.queue, 20)
        assert accepted >= 5
        assert (error.queue, error.max_length) == (one.queue, 5)
        inbox = await stranger.open_inbox(lambda _: None, lambda: None)
        await raises(QueueFull, inbox.send(ToQueue(one.queue), Message("a.topic", b"call")))
        await one.consumer.release(*held)
        bodies = [b"%d" % number for number in range(accepted)]
        assert await drain(h, one.consumer, accepted + 1) == sorted([b"held", *bodies])

        async def has_room() -> bool:
            try:
                await stranger.send(ToQueue(one.queue), Message("a.topic", b"again"))
            except QueueFull:
                return False
            return True

        await eventually(h, has_room)
        assert await drain(h, one.consumer, 1) == [b"again"]
        return None


async def check_a_full_queue_refuses(h: Harness) -> str | None:
    """A send beyond `max_length` raises `QueueFull` and stores nothing, whoever sends; a message taken makes room."""
    if refused := await _bounds_are_not_exact(h):
        return refused
    async with line(h, max_length=3) as one:
        async with client(h) as sender:
            await sender.send(ToQueue(one.queue), Message("a.topic", b"1"), Message("a.topic", b"2"))
            two = (Message("a.topic", b"never"), Message("a.topic", b"ever"))
            error = await raises(QueueFull, sender.send(ToQueue(one.queue), *two))
            assert (error.queue, error.max_length) == (one.queue, 3)
            await sender.send(ToQueue(one.queue), Message("a.topic", b"3"))
            await raises(QueueFull, sender.send(ToQueue(one.queue), two[0]))
            await one.consumer.ack(*(held := await one.take()))
            await sender.send(ToQueue(one.queue), Message("a.topic", b"4"))
        left = sorted({b"1", b"2", b"3", b"4"} - {held[0].message.body})
        assert await drain(h, one.consumer, 3) == left
        return None


async def check_a_batch_larger_than_the_queue_is_refused_whole(h: Harness) -> str | None:
    """However the driver cuts it: nothing of a batch that does not fit is stored, and one that fits is."""
    if refused := await _bounds_are_not_exact(h):
        return refused
    async with line(h, slots=64) as one:
        most = min(one.limits.max_batch, 1000) + 1
        await one.transport.attach(replace(one.spec, max_length=most))
        await raises(QueueFull, one.send(*[b"%d" % number for number in range(most + 1)]))
        await nothing_comes(h, one.consumer)
        await one.send(*[b"%d" % number for number in range(most)])
        await raises(QueueFull, one.send(b"one more"))
        return None


async def check_delayed_messages_fill_a_queue(h: Harness) -> str | None:
    """`max_length` counts what waits, for whatever reason; what is leased does not wait."""
    if refused := await _bounds_are_not_exact(h):
        return refused
    async with line(h, max_length=2) as one:
        if one.limits.max_delay == 0:
            return "max_delay"
        await one.send(b"late", delay=min(60.0, one.limits.max_delay))
        await one.send(b"1")
        await raises(QueueFull, one.send(b"2"))
        await one.hold()
        await one.send(b"2")
        await raises(QueueFull, one.send(b"3", delay=0.01))
        return None


async def check_what_comes_back_may_exceed(h: Harness) -> str | None:
    """A message that is given back is never refused, however full the queue is; sends are, until it has emptied."""
    if refused := await _bounds_are_not_exact(h):
        return refused
    async with line(h, max_length=1) as one:
        await one.send(b"1")
        held = await one.hold()
        await one.send(b"2")
        await one.consumer.release(*held)
        await raises(QueueFull, one.send(b"3"))
        await one.consumer.ack(*await one.take())
        await raises(QueueFull, one.send(b"3"))
        await one.consumer.ack(*await one.take())
        await one.send(b"3")
        assert await drain(h, one.consumer, 1) == [b"3"]
        return None


async def check_expired_messages_make_room(h: Harness) -> str | None:
    """An expendable message whose `ttl` has passed fills no queue."""
    if refused := await _bounds_are_not_exact(h):
        return refused
    async with line(h, max_length=1) as one:
        await one.send(b"1", ttl=0.2, expendable=True)
        await raises(QueueFull, one.send(b"2"))
        await h.pass_time(0.2 + QUIET)
        await one.send(b"2")
        assert await drain(h, one.consumer, 1) == [b"2"]
        return None


async def check_a_full_subscriber_refuses_the_event(h: Harness) -> str | None:
    """`publish` raises `QueueFull` if one of the bound queues is full, and then no queue has got a copy."""
    topic = h.unique("user.made")
    if refused := await _bounds_are_not_exact(h):
        return refused
    async with line(h, max_length=1) as one, line(h) as other:
        if not one.limits.fanout:
            return "fanout"
        await one.transport.attach(replace(one.spec, patterns=frozenset({topic})))
        await other.transport.attach(replace(other.spec, patterns=frozenset({topic})))
        await one.transport.publish(topic, Message(topic, b"1"))
        error = await raises(QueueFull, other.transport.publish(topic, Message(topic, b"2")))
        assert error.queue == one.queue
        assert await drain(h, other.consumer, 1) == await drain(h, one.consumer, 1) == [b"1"]
        return None


async def check_a_call_to_a_full_queue_is_told(h: Harness) -> str | None:
    """`Inbox.send` raises `QueueFull` as `Transport.send` does."""
    if refused := await _bounds_are_not_exact(h):
        return refused
    async with line(h, max_length=1) as one, client(h) as caller:
        inbox = await caller.open_inbox(lambda _: None, lambda: None)
        await inbox.send(ToQueue(one.queue), Message("a.topic", b"1"))
        assert (await raises(QueueFull, inbox.send(ToQueue(one.queue), Message("a.topic", b"2")))).max_length == 1
        return None


async def check_options_may_be_edited_later(h: Harness) -> str | None:
    """Attaching again with other options changes them, for all clients, and never costs a message.

    A broker that cannot edit them refuses the other bound, and the queue works on with its own.
    """
    if refused := await _bounds_are_not_exact(h):
        return refused if refused == "max_length" else await _other_bounds_hold_or_are_refused(h)
    async with line(h, max_length=1) as one, client(h) as other:
        await one.send(b"1")
        await raises(QueueFull, one.send(b"2"))
        await other.attach(replace(one.spec, max_length=2))
        await one.send(b"2")
        await raises(QueueFull, one.send(b"3"))
        await one.transport.attach(replace(one.spec, max_length=None))
        await one.send(b"3")
        await other.attach(replace(one.spec, max_length=1))
        await raises(QueueFull, one.send(b"4"))
        assert await drain(h, one.consumer, 3) == [b"1", b"2", b"3"]
        return None


async def check_senseless_bounds_are_refused(h: Harness) -> None:
    """A `max_length` below 1 and a `max_priority` below 0 are refused, and the queue stays what it was."""
    async with line(h) as one:
        for spec in (replace(one.spec, max_length=0), replace(one.spec, max_priority=-1)):
            await raises(ConfigurationError, one.transport.attach(spec))
        await one.send(b"1", b"2")
        assert await drain(h, one.consumer, 2) == [b"1", b"2"]


async def check_a_highest_priority_is_kept(h: Harness) -> str | None:
    """`Limits.priorities` is the queue's `max_priority`; a higher priority is a `ConfigurationError` at `send`."""
    async with line(h) as one:
        spec = QueueSpec(h.unique("priorities"), SERVICE, max_priority=3)
        if one.limits.priorities == 0 and await _is_refused(one.transport, spec):
            return "priorities"
        assert (await one.transport.attach(spec)).priorities == 3
        message = Message("a.topic", b"1", priority=4)
        await raises(ConfigurationError, one.transport.send(ToQueue(spec.name), message))
        inbox = await one.transport.open_inbox(lambda _: None, lambda: None)
        await raises(ConfigurationError, inbox.send(ToQueue(spec.name), message))
        await one.transport.send(ToQueue(spec.name), replace(message, priority=3))
        consumer = await one.transport.consume(spec.name, slots=1)
        assert await drain(h, consumer, 1) == [b"1"]
        return None


async def check_more_priorities_than_there_are_are_refused(h: Harness) -> None:
    """`max_priority` above what the broker offers is a `ConfigurationError` at `attach`, and no queue is made."""
    async with client(h) as transport:
        spec = QueueSpec(h.unique("priorities"), SERVICE, max_priority=256)
        await raises(ConfigurationError, transport.attach(spec))
        await raises(QueueNotFound, transport.attach(replace(spec, max_priority=None), create=False))


async def check_an_event_of_too_high_a_priority_arrives(h: Harness) -> str | None:
    """Who publishes cannot know what each subscriber's queue was told: there the highest known is as good."""
    topic = h.unique("user.made")
    async with line(h) as one:
        if not one.limits.fanout:
            return "fanout"
        if one.limits.priorities < 2:
            return "priorities"
        spec = QueueSpec(h.unique("priorities"), SERVICE, patterns=frozenset({topic}), max_priority=1)
        await one.transport.attach(spec)
        assert await one.transport.publish(topic, Message(topic, b"1", priority=one.limits.priorities))
        assert await drain(h, await one.transport.consume(spec.name, slots=1), 1) == [b"1"]
        return None


async def check_a_passive_queue_is_used_and_not_changed(h: Harness) -> None:
    """It must exist; its topics stay where they are, and one that it was not given is a `ConfigurationError`."""
    topic = h.unique("orders.create")
    async with line(h, topics=frozenset({topic})) as owner, client(h) as guest:
        missing = QueueSpec(h.unique("missing"), "guests", passive=True)
        assert (await raises(QueueNotFound, guest.attach(missing))).queue == missing.name
        await raises(QueueNotFound, guest.send(ToQueue(missing.name), Message("a.topic", b"1")))
        passive = QueueSpec(owner.queue, "guests", passive=True)
        assert await guest.attach(passive) == owner.limits
        stranger = h.unique("orders.other")
        await raises(ConfigurationError, guest.attach(replace(passive, topics=frozenset({stranger}))))
        await raises(NoHandler, guest.send(ToTopic(stranger), Message(stranger, b"1")))
        await owner.transport.send(ToTopic(topic), Message(topic, b"1"))
        assert await drain(h, await guest.consume(owner.queue, slots=1), 1) == [b"1"]


async def check_a_kind_is_honoured_or_refused(h: Harness) -> str | None:
    """`QueueSpec.kind` is RabbitMQ's: elsewhere it is a `ConfigurationError` that says so, never ignored."""
    async with client(h) as transport:
        spec = QueueSpec(h.unique("classic"), SERVICE, kind="classic")
        try:
            await prompt(transport.attach(spec))
        except ConfigurationError as error:
            assert "RabbitMQ" in str(error)  # noqa: PT017  # free of pytest
            await raises(QueueNotFound, transport.attach(replace(spec, kind=None), create=False))
            return "kind"
        await transport.detach(spec.name, delete=True)
        return None
