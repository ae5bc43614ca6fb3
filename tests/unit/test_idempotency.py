"""What makes two messages the same one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busline import Bus, ConfigurationError, Context, Idempotency, JobNotFound, orphans
from busline.idempotency import MAX_KEY_BYTES, KeyMissing, fingerprint, key_of, scoped
from busline.message import Message, ToQueue, ToTopic
from busline.parcels import Parcel, pack, unpack
from busline.stores.memory import MemoryStore, MemoryVault
from busline.testing.scenes import eventually
from busline.testing.stored import abandon
from busline.transports.memory import MemoryBroker, MemoryTransport
from busline.wire import Envelope, new_id

numbers = count()
ENVELOPE = Envelope("id", 1.0)


@pytest.mark.parametrize(
    ("key", "envelope", "expected"),
    [
        (None, ENVELOPE, "id"),
        (None, Envelope("id", 1.0, key="sender's"), "sender's"),
        (None, Envelope("id", 1.0, key=""), "id"),
        ("order.id", Envelope("id", 1.0, key="sender's"), "7"),
        ("name", ENVELOPE, "ü"),
        ("flags", ENVELOPE, '["a","b"]'),
        (lambda payload: payload["order"]["id"] + 1, ENVELOPE, "8"),
    ],
)
def test_a_key_is_found(key: str | Callable[..., Any] | None, envelope: Envelope, expected: str) -> None:
    payload = {"order": {"id": 7}, "name": "ü", "flags": ["a", "b"]}
    body = b'{"order": {"id": 7}, "name": "\xc3\xbc", "flags": ["a", "b"]}'
    assert key_of(Idempotency(key=key), envelope, body, lambda: {"payload": payload}) == expected


@pytest.mark.parametrize("key", ["other", "order.id.deeper", lambda payload: None, lambda payload: 1 / 0, lambda: 1])
def test_a_message_without_the_key_says_so(key: str | Callable[..., Any]) -> None:
    with pytest.raises(KeyMissing, match="idempotency key"):
        key_of(Idempotency(key=key), ENVELOPE, b'{"order": {"id": 7}}', lambda: {"payload": {}})


@pytest.mark.parametrize(
    "wrong",
    [{"key": ""}, {"key": 7}, {"lease": 0.0}, {"ttl": 0.0}, {"on_conflict": "hope"}, {"orphans": "forget"}],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Idempotency(**wrong)


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=2000))
def test_scopes_are_never_mixed_up_and_fit_a_store(queue: str, topic: str, key: str) -> None:
    full = scoped(queue, topic, key)
    assert len(full.encode()) <= MAX_KEY_BYTES
    assert full != scoped(queue + "/", topic, key)
    assert full != scoped(queue, topic + "/", key)
    assert scoped("a/b", "c", "d") != scoped("a", "b/c", "d")


def test_a_fingerprint_knows_what_is_said_and_not_how() -> None:
    assert fingerprint("t", b'{"a": 1, "b": [2]}') == fingerprint("t", b'{"b":[2],"a":1}')
    assert len({fingerprint(*each) for each in (("t", b"1"), ("u", b"1"), ("t", b"2"), ("t", b"{"), ("t", b""))}) == 5


def test_messages_survive_a_store() -> None:
    full = Message("t", b"\x00\xff", "{}", {"k": "ü"}, "c", "inbox", 3, 1.5, 60.0, expendable=True)
    parcels = [
        Parcel(full, ToQueue("q"), "fallback", {"ttl": 1.0}),
        Parcel(Message("t", b""), ToTopic("t")),
        Parcel(full),
    ]
    assert unpack(pack(*parcels)) == parcels
    assert pack() == b""
    assert unpack(b"") == []


class Plain:
    """A transport without a store of its own."""

    def __init__(self) -> None:
        self._transport = MemoryTransport(MemoryBroker())

    def __getattr__(self, name: str) -> Any:
        if name == "store_url":
            raise AttributeError(name)
        return getattr(self._transport, name)


async def test_asking_for_idempotency_without_a_store_is_refused_at_startup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUSLINE_STORE", raising=False)
    bus = Bus(Plain(), service="svc")  # type: ignore[arg-type]  # a Transport in all that is asked of it

    @bus.handler("work", idempotency=Idempotency(key="id"))
    async def work(order: dict[str, int]) -> None:
        """Nothing to do."""

    with pytest.raises(ConfigurationError, match=r"work \(work\) needs a store.*BUSLINE_STORE"):
        async with bus.worker():
            pass
    async with bus:
        with pytest.raises(ConfigurationError, match="BUSLINE_STORE"):
            await bus.send("work", track=True)
        with pytest.raises(ConfigurationError, match="BUSLINE_STORE"):
            await bus.job("some id").status()
    monkeypatch.setenv("BUSLINE_STORE", f"memory://unit-{next(numbers)}")
    async with bus.worker():
        job = await bus.send("work", {"id": 1}, track=True)
        assert await job.result(10) is None


async def test_a_key_function_gets_what_the_payload_fills_and_not_the_context() -> None:
    bus = Bus(f"memory://unit-{next(numbers)}", service="svc")
    ran: list[int] = []

    @bus.handler("work", idempotency=Idempotency(key=lambda number, text: number))
    async def work(number: int, ctx: Context, text: str) -> str:
        ran.append(number)
        return text

    async with bus.worker():
        for _ in range(2):
            assert await bus.call("work", {"number": 1, "text": "x"}, timeout=10) == "x"
    assert ran == [1]


async def test_orphans_of_a_service_that_is_gone_hide_none_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look takes so many, the oldest first; nobody ends those of the other service."""
    monkeypatch.setattr(orphans, "LIMIT", 2)
    monkeypatch.setattr(orphans, "PERIOD", 0.05)
    broker, vault = MemoryBroker(), MemoryVault()
    bus = Bus(MemoryTransport(broker), service="shop/1", store=MemoryStore(vault))

    @bus.handler("shop.sell", ack="early")
    async def sell(order: str) -> None:
        raise AssertionError("an orphan does not run")

    store = MemoryStore(vault)
    await store.open()
    for queue in ("gone", "gone", "gone", "shop/1"):
        id = new_id()
        await abandon(store, queue, Message("shop.sell", b'"x"', Envelope(id, 1.0, key="").encode()), id, lease=0.1)
    async with bus.worker():
        await eventually(lambda: bus.stats.orphans == 1)
        assert [each.key.partition("/")[0] for each in await store.orphans(9)] == ["gone"] * 3


async def test_a_worker_sweeps_what_has_expired_from_the_store_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BUSLINE_STORE", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.setattr(orphans, "PERIOD", 0.02)
    monkeypatch.setattr(orphans, "SWEEP_PERIOD", 0.0)
    bus = Bus(MemoryTransport(MemoryBroker()), service="shop", result_ttl=0.1)

    @bus.handler("shop.sell")
    async def sell(order: str) -> None:
        """Nothing to do."""

    def kept() -> int:
        with closing(sqlite3.connect(tmp_path / "store.db")) as db:
            return int(db.execute("SELECT count(*) FROM busline_claim").fetchone()[0])

    async with bus.worker():
        job = await bus.send("shop.sell", "x", track=True)
        await eventually(lambda: bus.stats.handled == 1)
        await eventually(lambda: kept() == 0)
        with pytest.raises(JobNotFound):
            await job.status()
