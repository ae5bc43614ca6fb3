"""The transport contract. Drivers implement it, core is its only caller, `busline.testing` checks it.

The world of a driver is queues. A queue may own topics (calls and jobs go to the one owner) and may be bound to
patterns (events are copied to every bound queue). Everything else — retries, dead letters, idempotency, deadlines,
time limits — is composed by core from these verbs.

Rules that hold for every method:

* **Who retries**: core, never a driver. A driver reconnects by itself and brings its queues and consumers back, but
  an operation that failed is reported, not repeated.
* **Errors**: only those of `busline.errors` leave a driver. `TransportClosed` before `open()` and after `aclose()`;
  `ConnectionLost` when the broker is away; `OutcomeUnknown` when it may have accepted; `ConfigurationError` when it
  can never work. A bare `CancelledError` reaches only a task that was cancelled.
* **Concurrency**: every method may be called by several tasks at once.
* **Cancellation**: cancelling a caller may leave a message accepted or not, and nothing else half done.
* **Silence**: drivers do not log; they raise, or they tell in `health()`.
* **Tasks**: what a driver starts is named and has ended when `aclose()` returns.
* **Strings**: any UTF-8 in topics, queue names and headers survives; a driver escapes what its broker cannot take.

A queue that cannot do what is asked of it says so in its `Limits`, and core refuses at startup.
"""

# A method of a Protocol is its docstring; pyright would have it return something all the same.
# pyright: reportReturnType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

from busline.message import Delivery, Destination, Health, Limits, Message, QueueSpec, QueueStats
from busline.structs import value


class Consumer(Protocol):
    """This process's share of one queue. Pulled, not pushed: what core does not ask for stays at the broker."""

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        """Wait for at least one message; return at most `max_messages`, leased to us.

        Called by several slots at once; each waiting call is a demand for its number, and the broker never leases
        more to this process than the sum of these demands plus `prefetch - 1` per slot. Cancelling it loses nothing:
        a message that had already been fetched for it is given to another call, or back to the broker at once.
        Raises `TransportClosed` once the consumer is closed, and `QueueNotFound` if the queue is gone for good.
        """

    async def resize(self, slots: int) -> Sequence[Delivery]:
        """Change how many messages may be out at once; 0 pauses, and calls of `receive` simply wait.

        Returns what the broker had delivered and nobody had received, for core to release. Deliveries already
        received are untouched.
        """

    async def ack(self, *deliveries: Delivery, confirm: bool = False) -> None:
        """The messages are done with; the broker forgets them.

        Returns once the driver has taken charge of telling the broker, which may be some milliseconds before it is
        told, together with others: a crash in between redelivers, as a lost connection does. A second ack is
        silent. With `confirm=True` it returns only when the broker has forgotten them, and raises `LeaseLost` if
        one was no longer ours.
        """

    async def release(self, *deliveries: Delivery, delay: float = 0.0) -> None:
        """Give back; not a failure. Deliverable again after `delay` seconds (≤ `Limits.max_release_delay`).

        Without a delay it keeps its place in the queue where the broker has places. Silent if no longer ours.
        """

    async def extend(self, *deliveries: Delivery, lease: float) -> Sequence[Delivery]:
        """Keep the messages ours for `lease` seconds from now; return those that are no longer ours.

        Called only if `Limits.lease` is not None. On success `Delivery.leased_until` is moved.
        """

    async def aclose(self) -> None:
        """Stop consuming. Whatever is still unsettled goes back to the broker at once. Idempotent."""


class Inbox(Protocol):
    """Where replies to this process's calls arrive, and the way by which its calls leave."""

    @property
    def address(self) -> str:
        """What travels as `Message.reply_to`; meaningful to every other client of the same broker."""

    async def send(self, to: Destination, message: Message) -> None:
        """Send one call; the driver sets its `reply_to`. Raises as `Transport.send`.

        A call lives as long as its caller, so it need not survive a power cut as a job must; it does survive the
        death of any process but the caller's.
        """

    async def aclose(self) -> None:
        """Replies that arrive later are dropped. Idempotent."""


class Transport(Protocol):
    """One client of one broker. The constructor only stores; `open` connects."""

    @property
    def where(self) -> str:
        """The broker in words for people, without secrets: absolute path, host and vhost, region."""

    @property
    def shared_clock(self) -> bool:
        """All clients live on one machine, so deadlines need no allowance for clocks that disagree."""

    async def open(self) -> None:
        """Connect. Idempotent. Raises `ConfigurationError` (address, rights) or `ConnectionLost`."""

    async def attach(self, queue: QueueSpec, *, create: bool = True) -> Limits:
        """Declare or verify the queue, add its topics to those it owns, and record its patterns as exactly those of
        `queue`.

        Idempotent. What is sent or published to one of them after this returned reaches the queue. A topic that a
        queue of another service owns raises `ConfigurationError` where the broker can tell; a topic that another
        queue of the same service owned moves here. A topic is otherwise never taken from a queue: an older worker
        that attaches after a newer one must not cut the newer one's topics off. `create=False` changes nothing and
        raises `QueueNotFound` if there is no such queue. Returns what THIS queue can do.

        `max_length` and `max_priority` hold for clients that never attached, too, to the message where
        `Limits.exact_bounds`; other ones replace them and cost no message. A `passive` queue must exist and stays
        what it is: what `queue` says beyond its name must be so already, else `ConfigurationError`.
        """

    async def detach(self, queue: str, *, delete: bool = False) -> None:
        """Forget the queue in this process (it is not declared again after a reconnect); `delete=True` removes it
        at the broker with its messages, topics and patterns. Unknown queues are silent."""

    async def send(self, to: Destination, *messages: Message) -> None:
        """Hand over messages; return once the broker is responsible for all of them, durably.

        `ToTopic` to a topic nobody owns raises `NoHandler`, `ToQueue` to a missing queue `QueueNotFound`; then
        nothing was stored. `MessageTooLarge` is raised before any I/O. Blocks at most until the broker answers.

        `QueueFull` if more than `max_length` messages would wait (ready or delayed) then, and `ConfigurationError` if
        a priority is above the queue's; then nothing of this call was stored. Only sending is refused: what is
        released, moved there by hand, or comes back from a lease that ended may exceed the bound. See also
        `Limits.exact_bounds`.
        """

    async def publish(self, topic: str, *messages: Message) -> bool:
        """One durable copy per queue whose pattern matches `topic` at the moment of acceptance.

        None is fine; then False is returned, so that core can stop publishing what nobody wants to hear.
        Raises `QueueFull` if one of these queues is full, and then none has got a copy: a bound asks for backpressure,
        and an event must not be lost in silence for one subscriber only. A priority that a subscriber's queue does
        not know counts there as the highest that it knows, since who publishes cannot know each of them.
        """

    async def consume(self, queue: str, *, slots: int, prefetch: int = 1) -> Consumer:
        """Begin to consume a queue that was attached, with at most `slots` × `prefetch` messages out at once."""

    async def open_inbox(self, on_reply: Callable[[Message], None], on_lost: Callable[[], None]) -> Inbox:
        """Begin to receive replies. Both callbacks are plain, quick functions called in the event loop.

        `on_reply` gets each reply once. `on_lost` says that replies to calls now in flight can no longer arrive;
        the inbox itself comes back, perhaps under another address. One per transport.
        """

    async def reply(self, address: str, message: Message) -> bool:
        """Send a reply; False if the caller is known to be gone, which some brokers never know. At most once, never
        kept, never raises for an address that leads nowhere. Raises `MessageTooLarge` before any I/O."""

    def health(self) -> Health:
        """Now, from memory, without I/O."""

    async def aclose(self) -> None:
        """Disconnect: consumers and inbox are closed, unsettled messages go back. Idempotent, safe when never
        opened, works while other tasks wait in `receive` (they get `TransportClosed`)."""


@value
class Remark:
    """What a broker has otherwise than a queue is declared, for `busline doctor`."""

    code: Literal["queue_differs", "queue_refused", "redrive", "rights_missing"]
    """It works on with what is there; attaching would be refused; the broker moves messages away before core does;
    something is not permitted."""
    text: str
    severity: Literal["error", "warning"] | None = None
    """If it is another than the code's: what is missing may be lived with."""


@runtime_checkable
class Examinable(Protocol):
    """What a transport offers whose brokers hold properties that cannot be edited; optional."""

    async def examine(self, queue: QueueSpec, max_deliveries: int) -> Sequence[Remark]:
        """Compare a queue that exists with `queue`, changing nothing. `max_deliveries`: starts after which core gives
        a message up. Raises `QueueNotFound`."""


@runtime_checkable
class Inspectable(Protocol):
    """What a transport offers to people who look after it; optional."""

    async def stats(self) -> Sequence[QueueStats]:
        """Every queue, by name; those that this transport attached where the broker lists no queues."""

    async def peek(self, queue: str, limit: int) -> Sequence[Message]:
        """Up to `limit` messages that wait in the queue, delayed ones included where `stats` tells of them, first to
        be delivered first; nothing is leased or changed. Raises `QueueNotFound`."""

    async def purge(self, queue: str) -> int:
        """Delete the messages that wait; leased ones stay. Returns how many. Raises `QueueNotFound`."""

    async def move(self, source: str, to: str, limit: int) -> int:
        """Move up to `limit` waiting messages to another queue, unchanged; returns how many. Raises
        `QueueNotFound`."""


@runtime_checkable
class HasStore(Protocol):
    """A transport beside which there is a store for idempotency keys and jobs that needs no server; optional."""

    @property
    def store_url(self) -> str:
        """The store that a bus on this transport uses if it was given none."""
