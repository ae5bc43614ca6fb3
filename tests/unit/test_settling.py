"""Carrying out effects against a broker that fails at each of them: the first that fails stops the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from anyio import CapacityLimiter

from busline import Bus, Context
from busline.errors import (
    BuslineError,
    ConfigurationError,
    ConnectionLost,
    LeaseLost,
    MessageTooLarge,
    OutcomeUnknown,
    QueueFull,
    QueueNotFound,
    TransportClosed,
)
from busline.events import Events
from busline.message import Delivery, Destination, Limits, Message, QueueSpec, ToQueue
from busline.options import Options, Queue
from busline.outcome import (
    ACK,
    DeadLetter,
    Drop,
    Effect,
    Fault,
    OnFailure,
    Pause,
    Release,
    Reply,
    Resend,
    Terms,
    dead_letter,
    later,
)
from busline.registry import Declaration, ErrorRegistry, Plan
from busline.services import Services, Settings
from busline.settling import RELEASE_AFTER_TROUBLE, RELEASE_IF_TOO_LARGE, Settlement
from busline.telemetry import Telemetry
from busline.testing.clock import VirtualClock
from busline.wheel import Wheel
from busline.wire import Envelope, decode_envelope, decode_error, reply_status, reply_to
from busline.work import Work

NOW = 1_000_000_000.0
FAULT = Fault("failed", "OSError", "m" * 1500, {}, "t" * 5000)
LIMITS = Limits(
    max_delay=1e9,
    max_release_delay=1e9,
    lease=None,
    max_lease=1e9,
    priorities=10,
    max_bytes=10**6,
    max_batch=1,
    counts_deliveries=True,
    counts_releases=False,
    fanout=True,
    ordered=True,
)


class Broker:
    """Transport and consumer in one; fails at what it was told to, and takes up to `max_bytes`."""

    where = "here"
    shared_clock = True

    def __init__(self) -> None:
        self.did: list[str] = []
        self.sent: list[tuple[Destination, Message]] = []
        self.replies: list[Message] = []
        self.errors: dict[str, BuslineError] = {}
        self.max_bytes = 10**6
        self.caller_is_there = True
        self.delays: list[float] = []

    def _do(self, what: str, message: Message | None = None) -> None:
        self.did.append(what)
        if what in self.errors:
            raise self.errors[what]
        if message is not None and (size := len(message.body) + len(message.meta)) > self.max_bytes:
            raise MessageTooLarge(size, self.max_bytes)

    async def send(self, to: Destination, message: Message) -> None:
        self._do("bury" if to == ToQueue("svc.dead") else "send", message)
        self.sent.append((to, message))

    async def publish(self, topic: str, message: Message) -> bool:
        return False

    async def reply(self, address: str, message: Message) -> bool:
        assert address == "inbox"
        self._do("reply", message)
        self.replies.append(message)
        return self.caller_is_there

    async def ack(self, *deliveries: Delivery, confirm: bool = False) -> None:
        self._do("ack")

    async def release(self, *deliveries: Delivery, delay: float = 0.0) -> None:
        self._do("release")
        self.delays.append(delay)


class Scene:
    """One settlement, the broker beneath it, and one message."""

    def __init__(
        self, on_failure: Callable[..., Any] | None = None, queue: Queue | None = None, **message: Any
    ) -> None:
        async def work(payload: object) -> None: ...

        self.broker: Any = Broker()
        self.telemetry = Telemetry()
        self.clock = VirtualClock(NOW)
        self.bus = Bus("memory://never-opened", service="svc", clock=self.clock)
        declaration = Declaration("work", work, Options(on_failure=on_failure, queue=queue))
        (self.plan,) = Plan([declaration], service="svc", retry=None, instance="i").queues.values()
        self.paused: list[float] = []
        self.settlement = Settlement(self.plan, Terms(), self._services(), self._pause)
        self.settlement.limits = LIMITS
        given: dict[str, Any] = {"reply_to": "inbox", "correlation_id": "c", **message}
        self.envelope = Envelope("i", NOW - 1)
        self.delivery = Delivery(
            Message("work", given.pop("body", b"{}"), self.envelope.encode(), **given), "svc", None
        )

    def _services(self) -> Services:
        return Services(
            bus=self.bus,
            transport=self.broker,
            clock=self.clock,
            errors=ErrorRegistry(),
            telemetry=self.telemetry,
            events=Events(self.broker, self.clock),
            settings=Settings(10**6, 20, 10.0, 5.0),
            alarms=Wheel(self.clock, lambda alarm: alarm()),
            threads=CapacityLimiter(1),
            notices=Wheel(self.clock, lambda delivery: None),
            on_stuck=lambda what: None,
        )

    async def _pause(self, seconds: float) -> None:
        self.broker.did.append("pause")
        self.paused.append(seconds)

    @property
    def letter(self) -> DeadLetter:
        return DeadLetter(dead_letter(self.delivery, self.envelope, FAULT, Terms(), NOW), FAULT)

    @property
    def again(self) -> Resend:
        return Resend(later(self.delivery, self.envelope.next_attempt(NOW + 4), delay=4.0, now=NOW))

    @property
    def reply(self) -> Reply:
        return Reply(reply_to(self.delivery.message, "ok", b'"result"'))

    async def carry_out(self, *effects: Effect) -> list[str]:
        await self.settlement.carry_out(effects, self.delivery, self.envelope, self.broker)
        return list(self.broker.did)


# -- in order, and no further than the first that fails ---------------------------------------------------------------


async def test_every_effect_is_carried_out_in_order() -> None:
    scene = Scene()
    assert await scene.carry_out(scene.reply, scene.letter, scene.again, Pause(600.0), Drop(), ACK) == [
        *("reply", "bury", "send", "pause", "ack")
    ]
    assert [to for to, _ in scene.broker.sent] == [ToQueue("svc.dead"), ToQueue("svc")]
    assert scene.paused == [600.0]
    stats = scene.telemetry.stats
    assert (stats.dead_lettered, stats.expired_calls, stats.released) == (1, 1, 0)


@pytest.mark.parametrize("fails", ["reply", "bury", "send", "ack"])
@pytest.mark.parametrize(
    "error",
    [
        ConnectionLost("away"),
        OutcomeUnknown("perhaps"),
        QueueFull("svc", 5),
        QueueNotFound("svc"),
        TransportClosed("closed"),
        ConfigurationError("a priority that the queue does not know"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_the_first_that_fails_stops_the_rest_and_the_message_is_offered_again(
    fails: str, error: BuslineError, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    scene.broker.errors[fails] = error
    order = ["reply", "bury", "send", "ack"]
    expected = [*order[: order.index(fails) + 1], "release"]
    assert await scene.carry_out(scene.reply, scene.letter, scene.again, ACK) == expected
    assert scene.broker.delays == [RELEASE_AFTER_TROUBLE]
    assert "will be delivered again" in caplog.text


@pytest.mark.parametrize("fails", ["reply", "bury", "send", "ack"])
async def test_a_message_that_is_no_longer_ours_is_left_alone(fails: str) -> None:
    scene = Scene()
    scene.broker.errors[fails] = LeaseLost("gone")
    did = await scene.carry_out(scene.reply, scene.letter, scene.again, ACK)
    assert did[-1] == fails
    assert scene.telemetry.stats.leases_lost == 1


async def test_where_not_even_giving_back_works_the_lease_is_left_to_end(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.broker.errors = {"ack": ConnectionLost("away"), "release": ConnectionLost("still away")}
    assert await scene.carry_out(ACK) == ["ack", "release"]
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


async def test_a_queue_that_cannot_delay_is_given_the_message_back_at_once() -> None:
    for limits in (replace(LIMITS, max_release_delay=0.0), None):
        scene = Scene()
        scene.settlement.limits = limits
        scene.broker.errors["ack"] = ConnectionLost("away")
        await scene.carry_out(ACK)
        assert scene.broker.delays == [0.0]


@pytest.mark.parametrize(("longest", "did"), [(60.0, ["release"]), (59.9, ["send", "ack"])])
async def test_a_release_beyond_what_the_queue_can_is_a_copy(longest: float, did: list[str]) -> None:
    scene = Scene()
    scene.settlement.limits = replace(LIMITS, max_release_delay=longest)
    assert await scene.carry_out(Release(60.0)) == did
    assert scene.telemetry.stats.released == 1
    if did == ["send", "ack"]:
        ((to, copy),) = scene.broker.sent
        assert (to, copy.delay, decode_envelope(copy, NOW).attempt) == (ToQueue("svc"), 60.0, 1)


# -- replies ----------------------------------------------------------------------------------------------------------


async def test_a_caller_that_is_gone_is_counted() -> None:
    scene = Scene()
    scene.broker.caller_is_there = False
    assert await scene.carry_out(scene.reply, ACK) == ["reply", "ack"]
    assert scene.telemetry.stats.replies_to_nobody == 1


async def test_a_result_that_does_not_fit_is_an_error_that_says_so() -> None:
    scene = Scene()
    scene.broker.max_bytes = 500
    too_large = Reply(reply_to(scene.delivery.message, "ok", b'"' + b"x" * 500 + b'"'))
    assert await scene.carry_out(too_large, ACK) == ["reply", "reply", "ack"]
    (reply,) = scene.broker.replies
    assert (reply_status(reply), reply.correlation_id) == ("error", "c")
    kind, _, details = decode_error(reply.body)
    assert (kind, details["limit"]) == ("busline.too_large", 500)


# -- what is close to the broker's limit ------------------------------------------------------------------------------


def story(message: Message) -> dict[str, Any]:
    return decode_envelope(message, NOW).failure or {}


@pytest.mark.parametrize(
    ("room", "told"),
    [
        (10_000, {"traceback", "message", "reason", "attempts"}),
        (5_000, {"message", "reason", "attempts"}),
        (1_000, {"reason", "attempts"}),
        (80, set()),
    ],
)
async def test_a_dead_letter_is_kept_with_as_much_of_its_story_as_fits(room: int, told: set[str]) -> None:
    body = b"x" * 1000
    scene = Scene(body=body)
    scene.broker.max_bytes = len(body) + room
    did = await scene.carry_out(scene.letter, ACK)
    assert (did[-1], "release" in did) == ("ack", False)
    ((to, kept),) = scene.broker.sent
    assert (to, kept.body, kept.reply_to) == (ToQueue("svc.dead"), body, None)
    assert {"traceback", "message", "reason", "attempts"} & set(story(kept)) == told
    assert decode_envelope(kept, NOW).id == "i"
    assert scene.telemetry.stats.dead_lettered == 1


async def test_what_came_without_metadata_is_kept_without() -> None:
    """From another client of the broker, its body as large as the broker takes."""
    scene = Scene(body=b"x" * 1000)
    scene.delivery.message.meta = ""
    scene.broker.max_bytes = 1000
    assert (await scene.carry_out(scene.letter, ACK))[-1] == "ack"
    ((_, kept),) = scene.broker.sent
    assert (kept.meta, kept.body) == ("", b"x" * 1000)


async def test_what_fits_nowhere_stays_where_it_is_and_is_looked_at_seldom(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(body=b"x" * 1000)
    scene.broker.max_bytes = 999
    did = await scene.carry_out(scene.letter, ACK)
    assert (did[-1], "ack" in did) == ("release", False)
    assert scene.broker.delays == [RELEASE_IF_TOO_LARGE]
    assert "ERROR" in {record.levelname for record in caplog.records}


async def test_a_broker_that_goes_away_while_a_letter_is_shortened_gets_it_later() -> None:
    scene = Scene(body=b"x" * 1000)
    scene.broker.max_bytes = 2000
    original = scene.broker.send
    tries = 0

    async def send(to: Destination, message: Message) -> None:
        nonlocal tries
        tries += 1
        if tries == 2:
            raise ConnectionLost("away")
        await original(to, message)

    scene.broker.send = send
    assert (await scene.carry_out(scene.letter, ACK))[-1] == "release"
    assert scene.broker.delays == [RELEASE_AFTER_TROUBLE]


@pytest.mark.parametrize("call", [True, False])
async def test_a_next_attempt_that_does_not_fit_is_the_end(call: bool) -> None:
    """It says a little more than this one, which just fitted; without an end it would run again and again."""
    told: list[BaseException] = []

    async def tell(error: Exception) -> None:
        told.append(error)

    scene = Scene(tell, body=b"x" * 1000, **({} if call else {"reply_to": None}))
    scene.broker.max_bytes = 1000 + len(scene.delivery.message.meta)
    did = await scene.carry_out(scene.again, ACK)
    assert (did[0], did[-1], "release" in did) == ("send", "ack", False)
    assert [type(error) for error in told] == [MessageTooLarge]
    assert [to for to, _ in scene.broker.sent] == ([] if call else [ToQueue("svc.dead")])
    assert [decode_error(reply.body)[0] for reply in scene.broker.replies] == (["busline.too_large"] if call else [])


async def test_a_priority_that_the_queue_does_not_know_is_its_highest_when_it_is_sent_again() -> None:
    scene = Scene(priority=255)
    assert await scene.carry_out(scene.again, ACK) == ["send", "ack"]
    assert scene.broker.sent[0][1].priority == 10
    scene = Scene(priority=7)
    await scene.carry_out(scene.again, ACK)
    assert scene.broker.sent[0][1].priority == 7


async def test_an_ephemeral_queue_has_nowhere_to_keep_its_dead_letters() -> None:
    scene = Scene()
    scene.plan.spec = QueueSpec("svc.x", ephemeral=True)
    assert await scene.carry_out(scene.letter, ACK) == ["ack"]
    assert scene.telemetry.stats.dead_lettered == 1


# -- acking early -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "ours", "did"),
    [
        (None, True, ["ack"]),
        (LeaseLost("gone"), False, ["ack"]),
        (ConnectionLost("away"), False, ["ack", "release"]),
        (OutcomeUnknown("perhaps"), False, ["ack", "release"]),
    ],
)
async def test_what_was_not_surely_acked_does_not_run(error: BuslineError | None, ours: bool, did: list[str]) -> None:
    scene = Scene()
    if error is not None:
        scene.broker.errors["ack"] = error
    handler = scene.plan.handlers["work"]
    assert await scene.settlement.acked(Work(scene.delivery, scene.envelope, handler, scene.broker)) is ours
    assert scene.broker.did == did


# -- on_failure -------------------------------------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


TROUBLE: list[BaseException] = [
    KeyError("x"),
    Unprintable(),
    OSError("file-\udcff"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError(),
    BaseExceptionGroup("g", [SystemExit()]),
    ConnectionLost("its own"),
    LeaseLost("its own"),
]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
async def test_whatever_on_failure_raises_the_message_is_kept(
    error: BaseException, plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def raises() -> None:
        raise error

    def raises_plainly() -> None:
        raise error

    scene = Scene(raises_plainly if plain else raises)
    did = await scene.carry_out(scene.reply, OnFailure(KeyError("y")), scene.letter, ACK)
    assert did == ["reply", "bury", "ack"]
    assert caplog.records[0].levelname == "ERROR"
    assert "on_failure of work failed" in caplog.records[0].getMessage()
    caplog.records[0].getMessage().encode()


async def test_on_failure_gets_what_it_asks_for() -> None:
    got: list[object] = []

    def tell(payload: dict[str, int], error: KeyError, ctx: Context) -> None:
        got.extend([payload, error, ctx.id, ctx.attempt])

    scene = Scene(tell, body=b'{"a": 1}')
    error = KeyError("y")
    await scene.carry_out(OnFailure(error), ACK)
    assert got == [{"a": 1}, error, "i", 1]


@pytest.mark.parametrize("body", [b"no json", b'"text"'])
async def test_on_failure_is_not_called_with_a_payload_that_does_not_fit(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def tell(payload: int) -> None:
        raise AssertionError

    scene = Scene(tell, body=body)
    assert await scene.carry_out(OnFailure(KeyError("y")), scene.letter, ACK) == ["bury", "ack"]
    assert "was not called" in caplog.text


async def test_on_failure_of_a_plain_function_that_returns_a_coroutine_is_awaited() -> None:
    done = []

    async def tell() -> None:
        await asyncio.sleep(0)
        done.append(1)

    await Scene(lambda: tell()).carry_out(OnFailure(KeyError("y")), ACK)
    assert done == [1]


async def test_a_worker_that_leaves_ends_on_failure_and_nothing_follows(caplog: pytest.LogCaptureFixture) -> None:
    begun = asyncio.Event()

    async def tell() -> None:
        begun.set()
        await asyncio.sleep(3600)

    scene = Scene(tell)
    task = asyncio.create_task(scene.carry_out(OnFailure(KeyError("y")), scene.letter, ACK), name="slot")
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scene.broker.did == []
    assert caplog.records == []


async def test_a_message_without_on_failure_or_handler_needs_none() -> None:
    scene = Scene()
    assert await scene.carry_out(OnFailure(KeyError("y")), ACK) == ["ack"]
    scene.plan.handlers.clear()
    assert await scene.carry_out(OnFailure(KeyError("y")), ACK) == ["ack", "ack"]
