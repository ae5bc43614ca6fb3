"""Keys: who gets them, and what they say afterwards."""

from __future__ import annotations

import asyncio

from busline.errors import ClaimLost, ConfigurationError, StoreUnavailable
from busline.stores.base import Claimed, Completed, Failed, InProgress, Mismatch, Store
from busline.testing.steps import prompt
from busline.testing.store_harness import StoreHarness
from busline.testing.store_steps import (
    BRIEF,
    FP,
    LONG,
    SHORT,
    all_of,
    claim,
    client,
    clients,
    end,
    line_of,
    refused,
    rival,
    take,
)

ALL_BYTES = bytes(range(256))
HOSTILE = [
    *(
        "a",
        "A",
        "a ",
        " a",
        "a/b",
        "a:b",
        "a\x00b",
        "\x00",
        "a\nb",
        "%",
        "_",
        "*",
        "?",
        "[a]",
        "{a}",
        "${a}",
        "#a",
        ":a",
    ),
    *("'; DROP TABLE busline_claim; --", '"', "\\", "é", "e\u0301", "😀", "\u202e", "\ufeff", "\uffff", "\x7f"),
    *("x" * 1024, "x" * 1023, "é" * 512, "nil", "None", "0"),
]


async def zombie_is_refused(store: Store, claimed: Claimed) -> None:
    """Nothing that the claim asks for is done."""
    await refused(ClaimLost, store.extend(claimed, lease=LONG))
    await refused(ClaimLost, store.release(claimed))
    await refused(ClaimLost, store.fail(claimed, b"zombie", ttl=LONG))
    error = await refused(ClaimLost, store.complete(claimed, b"zombie", b"", ttl=LONG))
    assert error.key == claimed.key


async def check_opening_many_at_once_and_closing_twice_is_fine(h: StoreHarness) -> None:
    """Whatever is missing is made once, by whoever comes first; before and after, the store is unavailable."""
    stores = [h.store() for _ in range(4)]
    await refused(StoreUnavailable, stores[0].read("key"))
    await all_of([store.open for store in stores])
    await prompt(stores[0].open())
    claimed = await take(stores[0], "key")
    for store in stores[1:]:
        assert await prompt(store.read("key")) is not None
        await prompt(store.aclose())
    await prompt(stores[0].complete(claimed, b"", b"", ttl=LONG))
    await prompt(stores[0].aclose())
    await prompt(stores[0].aclose())
    await refused(StoreUnavailable, stores[0].read("key"))


async def check_one_of_sixteen_claimants_wins(h: StoreHarness) -> None:
    """Of any number of tasks that ask for a key at once, one gets it and the others learn for how long."""
    async with clients(h, 4) as stores:
        for number in range(5):
            key = f"contested-{number}"
            results = await asyncio.gather(*(claim(stores[each % 4], key) for each in range(16)))
            won = [result for result in results if isinstance(result, Claimed)]
            assert len(won) == 1, f"{len(won)} won"
            assert all(0 < result.seconds <= LONG for result in results if isinstance(result, InProgress))
            assert sum(isinstance(result, InProgress) for result in results) == 15


async def check_one_winner_among_two_processes(h: StoreHarness) -> str | None:
    """16 tasks in two processes ask for the same keys: each is given once."""
    if not h.url:
        return "processes"
    processes = [await rival(h.url, "race", "raced-", str(h.contested), "8") for _ in range(2)]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
        won: list[int] = []
        for process in processes:
            numbers = await line_of(process, within=60.0 + 0.3 * h.contested)
            assert isinstance(numbers, list)
            won += numbers
    finally:
        for process in processes:
            await end(process)
    assert sorted(won) == list(range(h.contested))
    return None


async def check_what_a_killed_process_held_comes_free(h: StoreHarness) -> str | None:
    """A SIGKILL after the claim: the key is to be had when the lease has ended. After `complete`: it is done."""
    if not h.url:
        return "processes"
    for deed in (("hold", "held", "1.0"), ("finish", "finished")):
        process = await rival(h.url, *deed)
        try:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            assert await line_of(process) is True
        finally:
            await end(process)
    async with client(h) as store:
        assert await claim(store, "finished", fingerprint="") == Completed(b"finished", b"outgoing")
        async with asyncio.timeout(30):
            while not isinstance(found := await claim(store, "held", fingerprint=""), Claimed):
                assert isinstance(found, InProgress)
                await h.pass_time(found.seconds)
        assert (found.fence, found.attempt) == (2, 2)
    return None


async def check_a_key_whose_lease_has_ended_is_taken_over(h: StoreHarness) -> None:
    """By whoever asks next: another token, a higher fence, one attempt more."""
    async with clients(h, 2) as (one, other):
        first = await take(one, "key", lease=SHORT)
        assert (first.key, first.fence, first.attempt, first.cancel_requested) == ("key", 1, 1, False)
        await h.pass_time(2 * SHORT)
        second = await take(other, "key")
        assert (second.fence, second.attempt) == (2, 2)
        assert second.token != first.token


async def check_a_zombie_can_do_nothing(h: StoreHarness) -> None:
    """Once a claim has been taken over, its former owner's words have no effect; the new owner's have."""
    async with clients(h, 2) as (one, other):
        first = await take(one, "key", lease=SHORT)
        await h.pass_time(2 * SHORT)
        second = await take(other, "key")
        await zombie_is_refused(one, first)
        assert isinstance(await claim(one, "key"), InProgress)
        await prompt(other.complete(second, b"true", b"", ttl=LONG))
        await zombie_is_refused(one, first)
        assert await claim(one, "key") == Completed(b"true", b"")


async def check_a_zombie_of_a_deleted_record_can_do_nothing(h: StoreHarness) -> None:
    """Also where the record's time was over and a new one counts its fences from the beginning again."""
    async with clients(h, 2) as (one, other):
        first = await take(one, "key", lease=SHORT, ttl=SHORT)
        await h.pass_time(2 * SHORT)
        await zombie_is_refused(one, first)
        await prompt(other.sweep(100))
        second = await take(other, "key")
        assert second.attempt == 1
        await zombie_is_refused(one, first)
        await prompt(other.release(second))
        await zombie_is_refused(one, first)


async def check_a_lease_that_ended_untaken_is_still_in_force(h: StoreHarness) -> None:
    """Nobody else has run it: what was done counts."""
    async with client(h) as store:
        claimed = await take(store, "key", lease=SHORT)
        await h.pass_time(2 * SHORT)
        assert await prompt(store.extend(claimed, lease=SHORT)) is False
        await h.pass_time(2 * SHORT)
        await prompt(store.complete(claimed, b"done", b"", ttl=LONG))
        assert await claim(store, "key") == Completed(b"done", b"")


async def check_an_extended_claim_is_kept(h: StoreHarness) -> None:
    """For as long as it was extended, and not only for its first lease, whatever its ttl was."""
    async with clients(h, 2) as (one, other):
        claimed = await take(one, "key", lease=BRIEF, ttl=BRIEF)
        await prompt(one.extend(claimed, lease=LONG))
        await h.pass_time(BRIEF + SHORT)
        result = await claim(other, "key")
        assert isinstance(result, InProgress)
        assert LONG - 60 < result.seconds <= LONG
        await prompt(one.complete(claimed, b"", b"", ttl=LONG))


async def check_a_held_claim_outlives_its_ttl(h: StoreHarness) -> None:
    """A record lives as long as its lease at least."""
    async with client(h) as store:
        claimed = await take(store, "key", lease=LONG, ttl=SHORT)
        await h.pass_time(2 * SHORT)
        assert isinstance(await claim(store, "key"), InProgress)
        await prompt(store.complete(claimed, b"", b"", ttl=LONG))


async def check_a_result_is_answered_byte_for_byte(h: StoreHarness) -> None:
    """With what its handler sent, to everybody who asks, whatever the bytes are."""
    async with clients(h, 2) as (one, other):
        for key, result, outgoing in (
            ("all", ALL_BYTES, ALL_BYTES[::-1]),
            ("none", b"", b""),
            ("big", ALL_BYTES * 512, b""),
        ):
            await prompt(one.complete(await take(one, key), result, outgoing, ttl=LONG))
            for store in (one, other):
                assert await claim(store, key) == Completed(result, outgoing)
            found = await prompt(other.read(key))
            assert found is not None
            assert (found.state, found.result, found.error) == ("COMPLETED", result, b"")
            assert (found.key, found.fingerprint, found.attempt, found.lease_until) == (key, FP, 1, 0.0)


async def check_a_final_failure_is_answered(h: StoreHarness) -> None:
    """Byte for byte, and whether it was a cancellation."""
    async with client(h) as store:
        for cancelled in (False, True):
            key = f"cancelled-{cancelled}"
            await prompt(store.fail(await take(store, key), ALL_BYTES, ttl=LONG, cancelled=cancelled))
            assert await claim(store, key) == Failed(ALL_BYTES, cancelled)
            found = await prompt(store.read(key))
            assert found is not None
            assert (found.state, found.error) == ("CANCELLED" if cancelled else "FAILED", ALL_BYTES)


async def check_what_is_settled_cannot_be_settled_again(h: StoreHarness) -> None:
    """Neither completed twice, nor failed after it was completed, and so on; a released claim can do nothing."""
    async with client(h) as store:
        done = await take(store, "done")
        await prompt(store.complete(done, b"first", b"", ttl=LONG))
        await zombie_is_refused(store, done)
        assert await claim(store, "done") == Completed(b"first", b"")
        failed = await take(store, "failed")
        await prompt(store.fail(failed, b"first", ttl=LONG))
        await zombie_is_refused(store, failed)
        assert await claim(store, "failed") == Failed(b"first")
        released = await take(store, "released")
        await prompt(store.release(released))
        await zombie_is_refused(store, released)
        again = await take(store, "released")
        await zombie_is_refused(store, released)
        await prompt(store.complete(again, b"", b"", ttl=LONG))


async def check_another_payload_is_a_mismatch(h: StoreHarness) -> None:
    """In every state, and nothing about the record changes."""
    async with client(h) as store:
        claimed = await take(store, "key", lease=SHORT)

        async def mismatch() -> None:
            before = await prompt(store.read("key"))
            assert await claim(store, "key", fingerprint="other") == Mismatch()
            assert await claim(store, "key", fingerprint="other", replaces="a") == Mismatch()
            assert await prompt(store.read("key")) == before

        await mismatch()
        await h.pass_time(2 * SHORT)
        await mismatch()
        await prompt(store.release(claimed))
        await mismatch()
        await prompt(store.complete(await take(store, "key"), b"done", b"", ttl=LONG))
        await mismatch()


async def check_a_release_keeps_the_attempts(h: StoreHarness) -> None:
    """It may be tried again at once, and the count goes on."""
    async with clients(h, 2) as (one, other):
        for attempt in (1, 2, 3):
            claimed = await take(one if attempt % 2 else other, "key")
            assert (claimed.fence, claimed.attempt) == (attempt, attempt)
            await prompt(one.release(claimed))
            found = await prompt(other.read("key"))
            assert found is not None
            assert (found.state, found.attempt, found.lease_until) == ("PENDING", attempt, 0.0)


async def check_a_record_is_gone_after_its_ttl(h: StoreHarness) -> None:
    """Whether it was deleted or not: done, failed and released ones; the next claim is a first one."""
    async with client(h) as store:
        await prompt(store.complete(await take(store, "done"), b"", b"", ttl=SHORT))
        await prompt(store.fail(await take(store, "failed"), b"", ttl=SHORT))
        await prompt(store.release(await take(store, "released", lease=BRIEF, ttl=BRIEF)))
        await h.pass_time(BRIEF + SHORT)
        for key in ("done", "failed", "released"):
            assert await prompt(store.read(key)) is None
            assert await prompt(store.reopen(key)) is False
            assert (await take(store, key)).attempt == 1
            assert isinstance(await claim(store, key, fingerprint=FP), InProgress)


async def check_a_result_lives_for_its_own_ttl(h: StoreHarness) -> None:
    """Not for that of the claim."""
    async with client(h) as store:
        await prompt(store.complete(await take(store, "key", lease=BRIEF, ttl=BRIEF), b"kept", b"", ttl=LONG))
        await h.pass_time(BRIEF + SHORT)
        assert await claim(store, "key") == Completed(b"kept", b"")


async def check_reopening_a_failure_makes_it_a_first_attempt(h: StoreHarness) -> None:
    """Failed and cancelled ones, and no others; another payload stays a mismatch."""
    async with client(h) as store:
        assert await prompt(store.reopen("unknown")) is False
        claimed = await take(store, "key")
        assert await prompt(store.reopen("key")) is False
        await prompt(store.fail(claimed, b"error", ttl=LONG))
        assert await prompt(store.reopen("key")) is True
        assert await prompt(store.reopen("key")) is False
        assert await claim(store, "key", fingerprint="other") == Mismatch()
        again = await take(store, "key")
        assert again.attempt == 1
        assert again.fence > claimed.fence
        await zombie_is_refused(store, claimed)
        await prompt(store.complete(again, b"", b"", ttl=LONG))
        assert await prompt(store.reopen("key")) is False


async def check_any_text_may_be_a_key(h: StoreHarness) -> None:
    """And no two of them are the same."""
    async with client(h) as store:
        held = {key: await take(store, key, job=key) for key in HOSTILE}
        assert all(claimed.attempt == 1 for claimed in held.values())
        for key, claimed in held.items():
            await prompt(store.complete(claimed, key.encode(), b"", ttl=LONG))
        for key in HOSTILE:
            assert await claim(store, key) == Completed(key.encode(), b"")


async def check_what_is_no_key_is_refused(h: StoreHarness) -> None:
    """Text that UTF-8 cannot carry, and more than 1,024 bytes."""
    async with client(h) as store:
        for key in ("\ud800", "x" * 1025, "é" * 513):
            try:
                await claim(store, key)
            except ConfigurationError:
                continue
            raise AssertionError(f"{key[:10]!r}… was to be refused")


async def check_a_claim_deletes_nothing_of_its_neighbours(h: StoreHarness) -> None:
    """Sweeping takes what is over, at most as many as it may, and nothing else."""
    async with client(h) as store:
        for number in range(6):
            await prompt(store.complete(await take(store, f"old-{number}"), b"", b"", ttl=SHORT))
        await prompt(store.complete(await take(store, "kept"), b"kept", b"", ttl=LONG))
        held = await take(store, "held")
        await h.pass_time(2 * SHORT)
        assert await prompt(store.sweep(4)) <= 4
        assert await prompt(store.sweep(100)) <= 6
        assert await prompt(store.sweep(100)) == 0
        assert await claim(store, "kept") == Completed(b"kept", b"")
        await prompt(store.extend(held, lease=LONG))
