"""Jobs: what is known of a tracked message, and how others learn of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from busline.stores.base import ClaimRecord, JobRecord, Mismatch, Store
from busline.testing.checks_store_claims import ALL_BYTES, HOSTILE
from busline.testing.steps import prompt, started
from busline.testing.store_harness import StoreHarness
from busline.testing.store_steps import BRIEF, LONG, SHORT, add, claim, client, clients, found, record, take


async def check_a_job_is_read_as_it_was_added(h: StoreHarness) -> None:
    """By everybody, whatever its id and its message are, until its ttl is over."""
    async with clients(h, 2) as (one, other):
        for id in HOSTILE:
            job = replace(record(id, message=ALL_BYTES), progress=ALL_BYTES)
            added = await prompt(one.add_job(job, ttl=LONG))
            assert replace(added, expires_at=0.0) == job
            assert added.expires_at > LONG
            assert await found(other, id) == added
        assert await prompt(other.job("unknown")) is None


async def check_a_job_is_gone_after_its_ttl(h: StoreHarness) -> None:
    """Also from the list, and for whoever asks that it be cancelled; its id may be used again."""
    async with client(h) as store:
        await add(store, "old", ttl=SHORT)
        await add(store, "young")
        await h.pass_time(2 * SHORT)
        assert await prompt(store.job("old")) is None
        assert await prompt(store.request_cancel("old")) is None
        assert [job.id for job in await prompt(store.jobs(10))] == ["young"]
        assert (await add(store, "old")).id == "old"
        await prompt(store.sweep(100))
        assert {job.id for job in await prompt(store.jobs(10))} == {"young", "old"}


async def check_adding_a_job_again_changes_nothing(h: StoreHarness) -> None:
    """A send that is repeated does not take back what its handler has said."""
    async with client(h) as store:
        first = await add(store, "job")
        await prompt(store.set_progress("job", b"half"))
        assert await add(store, "job") == replace(first, progress=b"half")
        assert (await found(store, "job")).progress == b"half"


async def check_jobs_are_listed_latest_first(h: StoreHarness) -> None:
    """As many as were asked for, of one topic or of all."""
    async with client(h) as store:
        for sent_at, id, topic in ((3.0, "c", "x"), (1.0, "a", "x"), (4.0, "d", "y"), (2.0, "b", "y")):
            await prompt(store.add_job(record(id, topic=topic, sent_at=1e9 + sent_at), ttl=LONG))
        assert [job.id for job in await prompt(store.jobs(10))] == ["d", "c", "b", "a"]
        assert [job.id for job in await prompt(store.jobs(3))] == ["d", "c", "b"]
        assert [job.id for job in await prompt(store.jobs(10, topic="x"))] == ["c", "a"]
        assert [job.id for job in await prompt(store.jobs(1, topic="y"))] == ["d"]
        assert list(await prompt(store.jobs(10, topic="z"))) == []


async def check_progress_is_kept_over_the_attempts(h: StoreHarness) -> None:
    """So that a later one can go on where it stopped; of an unknown job it is silently dropped."""
    async with clients(h, 2) as (one, other):
        await add(one, "job")
        claimed = await take(one, "key", job="job")
        await prompt(one.set_progress("job", ALL_BYTES))
        await prompt(one.release(claimed))
        await take(other, "key", job="job")
        assert (await found(other, "job")).progress == ALL_BYTES
        await prompt(other.set_progress("unknown", b"x"))
        assert await prompt(other.job("unknown")) is None


async def check_a_job_points_to_its_claim(h: StoreHarness) -> None:
    """From the first time that it is named in a claim, whatever came of that; but not for another payload."""
    async with client(h) as store:
        for id in ("taken", "waits", "done", "late", "mismatch"):
            await add(store, id)
        claimed = await take(store, "key", job="taken")
        await claim(store, "key", job="waits")
        await prompt(store.complete(claimed, b"", b"", ttl=LONG))
        await claim(store, "key", job="done")
        await claim(store, "nothing", job="late", replaces="m1")
        assert await claim(store, "key", job="mismatch", fingerprint="other") == Mismatch()
        pointers = {job.id: job.claim for job in await prompt(store.jobs(10))}
        assert pointers == {"taken": "key", "waits": "key", "done": "key", "late": "nothing", "mismatch": ""}
        await claim(store, "key", job="unknown")
        assert await prompt(store.job("unknown")) is None


async def check_a_wish_to_cancel_reaches_who_works_on_it(h: StoreHarness) -> None:
    """Whoever extends the claim learns of it, and so does the next who takes it."""
    async with clients(h, 2) as (one, other):
        await add(one, "job")
        claimed = await take(one, "key", job="job")
        assert not claimed.cancel_requested
        assert await prompt(one.extend(claimed, lease=LONG)) is False
        asked = await prompt(other.request_cancel("job"))
        assert asked is not None
        assert asked.cancel_requested
        assert (await found(one, "job")).cancel_requested
        assert await prompt(one.extend(claimed, lease=LONG)) is True
        await prompt(one.release(claimed))
        assert (await take(other, "key", job="job")).cancel_requested
        assert await prompt(other.request_cancel("unknown")) is None


async def check_a_job_that_was_cancelled_early_is_not_run(h: StoreHarness) -> None:
    """The first claim tells it, too; and another key's does not."""
    async with client(h) as store:
        await add(store, "job")
        await add(store, "other")
        await prompt(store.request_cancel("job"))
        assert (await take(store, "key", job="job")).cancel_requested
        assert not (await take(store, "another", job="other")).cancel_requested


async def check_a_wish_to_cancel_ends_with_its_job(h: StoreHarness) -> None:
    """What comes later under the same key is not cancelled for it."""
    async with client(h) as store:
        await add(store, "old", ttl=BRIEF)
        await prompt(store.request_cancel("old"))
        claimed = await take(store, "key", job="old")
        assert claimed.cancel_requested
        await prompt(store.fail(claimed, b"", ttl=SHORT, cancelled=True))
        await h.pass_time(BRIEF + SHORT)
        await add(store, "new")
        again = await take(store, "key", job="new")
        assert not again.cancel_requested
        assert await prompt(store.extend(again, lease=LONG)) is False


async def check_reopening_forgets_the_wish_to_cancel(h: StoreHarness) -> None:
    """Or what is tried again by hand would be cancelled again."""
    async with client(h) as store:
        await add(store, "job")
        await prompt(store.request_cancel("job"))
        claimed = await take(store, "key", job="job")
        await prompt(store.fail(claimed, b"", ttl=LONG, cancelled=True))
        assert await prompt(store.reopen("key")) is True
        assert not (await found(store, "job")).cancel_requested
        again = await take(store, "key", job="job")
        assert not again.cancel_requested
        assert await prompt(store.extend(again, lease=LONG)) is False


async def check_one_of_many_unique_jobs_is_added(h: StoreHarness) -> None:
    """The others are told which one it is; nothing is kept of them."""
    async with clients(h, 4) as stores:
        results = await asyncio.gather(
            *(add(stores[each % 4], f"job-{each}", unique="import", unique_for=LONG) for each in range(16))
        )
        assert len({job.id for job in results}) == 1
        id = results[0].id
        assert [job.id for job in await prompt(stores[0].jobs(20))] == [id]
        assert (await add(stores[0], "another", unique="export", unique_for=LONG)).id == "another"
        assert (await add(stores[1], id, unique="import", unique_for=LONG)).id == id


async def check_a_unique_name_comes_free(h: StoreHarness) -> None:
    """After its time, with its job's own end, and when its job is dropped."""
    async with client(h) as store:
        assert (await add(store, "a", unique="timed", unique_for=SHORT)).id == "a"
        assert (await add(store, "b", unique="ended", unique_for=LONG, ttl=SHORT)).id == "b"
        assert (await add(store, "c", unique="dropped", unique_for=LONG)).id == "c"
        assert (await add(store, "x", unique="dropped", unique_for=LONG)).id == "c"
        await prompt(store.drop_job("c"))
        await prompt(store.drop_job("c"))
        assert await prompt(store.job("c")) is None
        assert (await add(store, "d", unique="dropped", unique_for=LONG)).id == "d"
        await h.pass_time(2 * SHORT)
        assert (await add(store, "e", unique="timed", unique_for=LONG)).id == "e"
        assert (await add(store, "f", unique="ended", unique_for=LONG)).id == "f"
        assert {job.id for job in await prompt(store.jobs(10))} == {"a", "d", "e", "f"}


async def check_dropping_an_old_job_leaves_its_successor_the_name(h: StoreHarness) -> None:
    """A name that has passed on to another job is no longer the first one's to free."""
    async with client(h) as store:
        await add(store, "first", unique="name", unique_for=SHORT)
        await h.pass_time(2 * SHORT)
        await add(store, "second", unique="name", unique_for=LONG)
        await prompt(store.drop_job("first"))
        assert (await add(store, "third", unique="name", unique_for=LONG)).id == "second"


async def _wakes(h: StoreHarness, waiter: Store, id: str, act: object) -> None:
    """Somebody who waits for the job is woken by what `act` does."""
    job, claimed = await _seen(waiter, id)
    async with started(waiter.changed(job, claimed, LONG)) as waiting:
        await h.pass_time(SHORT)
        assert not waiting.done(), "nothing had changed"
        await act()  # type: ignore[operator]  # a coroutine function
        await prompt(_until_done(h, waiting))


async def _until_done(h: StoreHarness, task: asyncio.Task[None]) -> None:
    while not task.done():
        await h.pass_time(SHORT)
    await task


async def _seen(store: Store, id: str) -> tuple[JobRecord, ClaimRecord | None]:
    job = await found(store, id)
    return job, await prompt(store.read(job.claim)) if job.claim else None


async def check_who_waits_is_woken(h: StoreHarness) -> None:
    """By every change that people see, made by another client."""
    async with clients(h, 2) as (waiter, worker):
        await add(worker, "job")
        held = []

        async def begin() -> None:
            held.append(await take(worker, "key", job="job"))

        await _wakes(h, waiter, "job", begin)
        await _wakes(h, waiter, "job", lambda: worker.set_progress("job", b"half"))
        await _wakes(h, waiter, "job", lambda: worker.release(held[-1]))
        await _wakes(h, waiter, "job", begin)
        await _wakes(h, waiter, "job", lambda: worker.request_cancel("job"))
        await _wakes(h, waiter, "job", lambda: worker.fail(held[-1], b"", ttl=LONG, cancelled=True))
        await _wakes(h, waiter, "job", lambda: worker.reopen("key"))
        await _wakes(h, waiter, "job", begin)
        await _wakes(h, waiter, "job", lambda: worker.complete(held[-1], b"", b"", ttl=LONG))
        await _wakes(h, waiter, "job", lambda: worker.drop_job("job"))


async def check_many_may_wait_at_once(h: StoreHarness) -> None:
    """For one job and for many; each is woken, and whoever stops waiting disturbs nobody."""
    async with clients(h, 2) as (waiter, worker):
        jobs = [await add(worker, f"job-{each % 5}") for each in range(20)]
        leaving = asyncio.create_task(waiter.changed(jobs[0], None, LONG))
        waiting = [asyncio.create_task(waiter.changed(job, None, LONG)) for job in jobs]
        await h.pass_time(SHORT)
        leaving.cancel()
        await asyncio.wait([leaving])
        for each in range(5):
            await worker.set_progress(f"job-{each}", b"1")
        for task in waiting:
            await prompt(_until_done(h, task))


async def check_who_comes_late_does_not_wait(h: StoreHarness) -> None:
    """What has changed since it was read is told at once; what has not, not before the time given is over."""
    async with clients(h, 2) as (waiter, worker):
        job = await add(worker, "job")
        claimed = await take(worker, "key", job="job")
        await prompt(waiter.changed(job, None, LONG))
        job, seen = await _seen(waiter, "job")
        await prompt(worker.complete(claimed, b"", b"", ttl=LONG))
        await prompt(waiter.changed(job, seen, LONG))
        job, seen = await _seen(waiter, "job")
        async with started(waiter.changed(job, seen, 3 * SHORT)) as waiting:
            await prompt(_until_done(h, waiting))
