"""Messages that a claim keeps because the broker forgets them: who finds them, and who may send them again."""

from __future__ import annotations

import asyncio

from busline.stores.base import Claimed, Completed, Failed, InProgress, Orphan
from busline.testing.checks_store_claims import ALL_BYTES, zombie_is_refused
from busline.testing.steps import prompt
from busline.testing.store_harness import StoreHarness
from busline.testing.store_steps import BRIEF, FP, LONG, SHORT, claim, client, clients, orphan, take

NOTHING_KEPT = InProgress(0.0)


async def check_a_kept_message_becomes_an_orphan(h: StoreHarness) -> None:
    """Byte for byte, when the lease has ended: in the list, and for everybody who asks for the key."""
    async with clients(h, 2) as (one, other):
        await orphan(h, one, "key", "m1", ALL_BYTES)
        expected = Orphan("key", FP, "m1", ALL_BYTES, 1)
        assert list(await prompt(other.orphans(10))) == [expected]
        assert await claim(other, "key") == expected
        assert await claim(other, "key", message_id="m2", message=b"another") == expected


async def check_an_orphan_is_given_to_who_names_its_message(h: StoreHarness) -> None:
    """As one attempt more; whoever names another one gets nothing, and the former owner is a zombie."""
    async with clients(h, 2) as (one, other):
        zombie = await orphan(h, one, "key", "m1", b"message")
        assert await claim(other, "key", replaces="m2") == NOTHING_KEPT
        claimed = await take(other, "key", replaces="m1")
        assert (claimed.fence, claimed.attempt) == (2, 2)
        assert list(await prompt(one.orphans(10))) == []
        await zombie_is_refused(one, zombie)
        await prompt(other.release(claimed))
        assert await claim(one, "key", replaces="m1") == NOTHING_KEPT
        assert (await take(one, "key")).attempt == 3


async def check_of_many_that_replace_one_wins(h: StoreHarness) -> None:
    """The others learn that nothing is kept any more."""
    async with clients(h, 4) as stores:
        for number in range(5):
            await orphan(h, stores[0], f"key-{number}", "m1", b"message")
        for number in range(5):
            key = f"key-{number}"
            results = await asyncio.gather(*(claim(stores[each % 4], key, replaces="m1") for each in range(8)))
            assert sum(isinstance(result, Claimed) for result in results) == 1
            assert sum(result == NOTHING_KEPT for result in results) == 7


async def check_one_that_replaces_may_keep_the_message_on(h: StoreHarness) -> None:
    """It is his then: an orphan again when his lease has ended, too."""
    async with clients(h, 2) as (one, other):
        await orphan(h, one, "key", "m1", b"message")
        await take(other, "key", lease=SHORT, message_id="m1", message=b"message", replaces="m1")
        await h.pass_time(2 * SHORT)
        assert list(await prompt(one.orphans(10))) == [Orphan("key", FP, "m1", b"message", 2)]
        assert (await take(one, "key", replaces="m1")).attempt == 3


async def check_a_message_that_is_worked_on_is_no_orphan(h: StoreHarness) -> None:
    """Nobody can replace it, and all learn for how long."""
    async with clients(h, 2) as (one, other):
        claimed = await take(one, "key", lease=SHORT, message_id="m1", message=b"message")
        await prompt(one.extend(claimed, lease=LONG))
        await h.pass_time(2 * SHORT)
        assert list(await prompt(other.orphans(10))) == []
        for result in (await claim(other, "key"), await claim(other, "key", replaces="m1")):
            assert isinstance(result, InProgress)
            assert 0 < result.seconds <= LONG
        assert await claim(other, "key", replaces="m2") == NOTHING_KEPT
        await prompt(one.complete(claimed, b"", b"", ttl=LONG))


async def check_what_is_settled_keeps_no_message(h: StoreHarness) -> None:
    """Whoever would replace it learns what became of the key."""
    async with client(h) as store:
        held = {
            key: await take(store, key, lease=SHORT, message_id="m1", message=b"message")
            for key in ("done", "failed", "released")
        }
        await prompt(store.complete(held["done"], b"result", b"outgoing", ttl=LONG))
        await prompt(store.fail(held["failed"], b"error", ttl=LONG))
        await prompt(store.release(held["released"]))
        await h.pass_time(2 * SHORT)
        assert list(await prompt(store.orphans(10))) == []
        assert await claim(store, "done", replaces="m1") == Completed(b"result", b"outgoing")
        assert await claim(store, "failed", replaces="m1") == Failed(b"error")
        assert await claim(store, "released", replaces="m1") == NOTHING_KEPT
        assert await claim(store, "unknown", replaces="m1") == NOTHING_KEPT
        assert await prompt(store.read("unknown")) is None


async def check_a_claim_without_a_message_is_no_orphan(h: StoreHarness) -> None:
    """The broker has its message: whoever gets that again takes the key over."""
    async with client(h) as store:
        await take(store, "key", lease=SHORT, message_id="m1")
        await h.pass_time(2 * SHORT)
        assert list(await prompt(store.orphans(10))) == []
        assert await claim(store, "key", replaces="m1") == NOTHING_KEPT
        assert (await take(store, "key")).attempt == 2


async def check_a_kept_message_has_no_end(h: StoreHarness) -> None:
    """Nobody else has it: neither its ttl nor the sweeper takes it."""
    async with client(h) as store:
        claimed = await take(store, "key", lease=SHORT, ttl=SHORT, message_id="m1", message=b"message")
        await h.pass_time(2 * SHORT)
        await prompt(store.sweep(100))
        expected = Orphan("key", FP, "m1", b"message", 1)
        assert await claim(store, "key") == expected
        assert list(await prompt(store.orphans(10))) == [expected]
        await prompt(store.complete(claimed, b"late", b"", ttl=LONG))
        assert await claim(store, "key") == Completed(b"late", b"")


async def check_orphans_of_other_scopes_hide_none(h: StoreHarness) -> None:
    """However many they are, and however long they have been there: they may belong to a service that is not there."""
    async with client(h) as store:
        for key in ("other/a/1", "other/a/2", "other-too/a/1", "mine/a/1", "no scope"):
            await take(store, key, lease=SHORT, message_id="m", message=b"message")
        await h.pass_time(2 * SHORT)

        async def found(limit: int, *scopes: str) -> list[str]:
            return sorted(each.key for each in await prompt(store.orphans(limit, scopes=scopes)))

        assert await found(1, "mine") == ["mine/a/1"]
        assert await found(3, "other", "mine", "nobody's") == ["mine/a/1", "other/a/1", "other/a/2"]
        assert await found(2, "other", "mine") == ["other/a/1", "other/a/2"]
        assert await found(10, "nobody's", "mine/a") == []
        assert len(await found(10)) == 5


async def check_orphans_come_longest_ended_first(h: StoreHarness) -> None:
    """And as many as were asked for."""
    async with client(h) as store:
        for number, lease in ((3, BRIEF), (1, SHORT), (2, 1.5 * SHORT)):
            await take(store, f"key-{number}", lease=lease, message_id="m", message=b"message")
        await h.pass_time(BRIEF + SHORT)
        assert [each.key for each in await prompt(store.orphans(10))] == ["key-1", "key-2", "key-3"]
        assert [each.key for each in await prompt(store.orphans(2))] == ["key-1", "key-2"]
