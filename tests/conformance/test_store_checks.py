"""The checks of stores themselves: a broken store is caught by the check that is meant for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from busline.errors import StoreError
from busline.stores import memory
from busline.stores.memory import MemoryVault
from busline.testing import steps
from busline.testing.store_conformance import all_checks, name

from .stores import VirtualMemoryHarness

CHECKS = {name(check): check for check in all_checks()}
_Record = memory._Record
_refusal, _claim, _end = memory._refusal, MemoryVault.claim, MemoryVault.end
_held, _reopen, _add, _changed = MemoryVault.held, MemoryVault.reopen, MemoryVault.add_job, MemoryVault.changed


def _whoever_asks(self, claim):
    return self.record(claim.key)


def _by_fence_alone(self, claim):
    record = self.record(claim.key)
    return record if record is not None and record.fence == claim.fence else _held(self, claim)


def _counts_anew(self, claim):
    record = self.held(claim)
    record.let_go("PENDING")
    record.attempt = 0


def _forgets(self, claim):
    del self._records[self.held(claim).key]


def _overwrites(self, key, fingerprint, **more):
    if (record := self.record(key)) is not None:
        record.fingerprint = fingerprint
    return _claim(self, key, fingerprint, **more)


def _lets_two_in(record, replaces, now):
    refused = _refusal(record, replaces, now)
    return None if isinstance(refused, memory.InProgress) else refused


def _gives_orphans_away(record, replaces, now):
    refused = _refusal(record, replaces, now)
    return None if isinstance(refused, memory.Orphan) else refused


def _replaces_anything(record, replaces, now):
    return _refusal(record, record.message_id if replaces else "", now)


def _keeps_the_message(self, state):
    self.state, self.token, self.lease_until = state, "", 0.0


def _forgets_what_was_sent(self, claim, state, ttl, **result):
    _end(self, claim, state, ttl, **{**result, "outgoing": b""})


def _keeps_the_wish(self, key):
    jobs = dict(self._jobs)
    done = _reopen(self, key)
    self._jobs.update(jobs)
    return done


def _adds_anyway(self, job, ttl, unique, unique_for):
    return _add(self, job, ttl, "", 0.0)


def _replaces_jobs(self, job, ttl, unique, unique_for):
    self._jobs.pop(job.id, None)
    return _add(self, job, ttl, unique, unique_for)


def _waits_blindly(self, job, claim, timeout):
    now = self.job(job.id) or job
    return _changed(self, now, self.read(now.claim), timeout)


def _sweeps_all(self, limit):
    number = len(self._records)
    self._records.clear()
    return number


def _never_over(self, now):
    return True


def _over_with_its_ttl(self, now):
    return self.expires_at > now


def _extends_for_nothing(self, claim, lease):
    return self.is_cancelled(self.held(claim))


CLAIMS, ORPHANS, JOBS = "store_claims", "store_orphans", "store_jobs"
MUTANTS: list[tuple[str, object, str, object]] = [
    (f"{CLAIMS}.one_of_sixteen_claimants_wins", memory, "_refusal", _lets_two_in),
    (f"{CLAIMS}.a_zombie_can_do_nothing", MemoryVault, "held", _whoever_asks),
    (f"{CLAIMS}.a_zombie_of_a_deleted_record_can_do_nothing", MemoryVault, "held", _by_fence_alone),
    (f"{CLAIMS}.what_is_settled_cannot_be_settled_again", MemoryVault, "held", _by_fence_alone),
    (f"{CLAIMS}.an_extended_claim_is_kept", MemoryVault, "extend", _extends_for_nothing),
    (f"{CLAIMS}.a_result_is_answered_byte_for_byte", MemoryVault, "end", _forgets_what_was_sent),
    (f"{CLAIMS}.a_final_failure_is_answered", MemoryVault, "end", lambda *a, **r: _end(*a, **{**r, "error": b""})),
    (f"{CLAIMS}.another_payload_is_a_mismatch", MemoryVault, "claim", _overwrites),
    (f"{CLAIMS}.a_release_keeps_the_attempts", MemoryVault, "release", _counts_anew),
    (f"{CLAIMS}.a_release_keeps_the_attempts", MemoryVault, "release", _forgets),
    (f"{CLAIMS}.a_record_is_gone_after_its_ttl", _Record, "exists", _never_over),
    (f"{CLAIMS}.reopening_a_failure_makes_it_a_first_attempt", MemoryVault, "reopen", lambda self, key: True),
    (f"{CLAIMS}.what_is_no_key_is_refused", memory, "check_text", lambda *_: None),
    (f"{CLAIMS}.a_claim_deletes_nothing_of_its_neighbours", MemoryVault, "sweep", _sweeps_all),
    (f"{ORPHANS}.a_kept_message_becomes_an_orphan", memory, "_refusal", _gives_orphans_away),
    (f"{ORPHANS}.an_orphan_is_given_to_who_names_its_message", memory, "_refusal", _replaces_anything),
    (f"{ORPHANS}.of_many_that_replace_one_wins", memory, "_refusal", _lets_two_in),
    (f"{ORPHANS}.what_is_settled_keeps_no_message", _Record, "let_go", _keeps_the_message),
    (f"{ORPHANS}.a_kept_message_has_no_end", _Record, "exists", _over_with_its_ttl),
    (f"{ORPHANS}.orphans_come_longest_ended_first", MemoryVault, "orphans", lambda self, limit, scopes: []),
    (f"{ORPHANS}.orphans_of_other_scopes_hide_none", memory, "in_scopes", lambda key, scopes: True),
    (f"{JOBS}.a_job_is_gone_after_its_ttl", MemoryVault, "job", lambda self, id: self._jobs.get(id)),
    (f"{JOBS}.adding_a_job_again_changes_nothing", MemoryVault, "add_job", _replaces_jobs),
    (f"{JOBS}.jobs_are_listed_latest_first", MemoryVault, "jobs", lambda self, n, topic: [*self._jobs.values()][:n]),
    (f"{JOBS}.a_job_points_to_its_claim", MemoryVault, "_point", lambda *_: None),
    (f"{JOBS}.a_wish_to_cancel_reaches_who_works_on_it", MemoryVault, "is_cancelled", lambda *_: False),
    (f"{JOBS}.reopening_forgets_the_wish_to_cancel", MemoryVault, "reopen", _keeps_the_wish),
    (f"{JOBS}.one_of_many_unique_jobs_is_added", MemoryVault, "add_job", _adds_anyway),
    (f"{JOBS}.a_unique_name_comes_free", MemoryVault, "drop_job", lambda *_: None),
    (f"{JOBS}.who_waits_is_woken", MemoryVault, "_wake", lambda *_: None),
    (f"{JOBS}.who_waits_is_woken", MemoryVault, "_tell", lambda *_: None),
    (f"{JOBS}.who_comes_late_does_not_wait", MemoryVault, "changed", _waits_blindly),
]


@pytest.mark.parametrize(("check", "owner", "attribute", "broken"), MUTANTS, ids=[f"{m[0]}-{m[2]}" for m in MUTANTS])
async def test_a_broken_store_is_caught(
    check: str, owner: object, attribute: str, broken: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    await CHECKS[check](VirtualMemoryHarness())
    monkeypatch.setattr(steps, "PROMPT", 0.3)
    monkeypatch.setattr(owner, attribute, broken)
    with pytest.raises((AssertionError, TimeoutError, StoreError, KeyError)):
        await CHECKS[check](VirtualMemoryHarness())


def test_the_mutants_are_of_checks_that_exist() -> None:
    assert {check for check, *_ in MUTANTS} <= set(CHECKS)
