"""What the documents name as a proof exists, and what they promise to answer is answered."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from .session import ROOT

PROOF = re.compile(r"`((?:tests|busline|examples)/[\w/]+\.py)::(\w+)`")
PROVEN = ("guarantees.md", "field-reports.md")


@cache
def functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("document", PROVEN)
def test_every_proof_that_a_document_names_exists(document: str) -> None:
    proofs = PROOF.findall((ROOT / "docs" / document).read_text())
    assert len(proofs) > 20
    missing = [f"{path}::{name}" for path, name in proofs if name not in functions(path)]
    assert not missing


@pytest.mark.parametrize("document", PROVEN)
def test_every_row_of_a_table_names_a_proof(document: str) -> None:
    rows = [line for line in (ROOT / "docs" / document).read_text().splitlines() if line.startswith("| ")]
    unproven = [row for row in rows if not PROOF.search(row) and not row.endswith("| proof |")]
    assert not unproven


def test_every_check_that_is_named_runs_on_every_transport() -> None:
    named = {name for d in PROVEN for path, name in PROOF.findall((ROOT / "docs" / d).read_text()) if "checks_" in path}
    assert all(name.startswith("check_") for name in named), "a check of the suite, not one of its helpers"


def test_each_symptom_has_a_heading() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    text = " / ".join(headings).lower()
    symptoms = ("pending for ever", "at random", "returns none", "one worker but not with four", "executed twice")
    for symptom in (*symptoms, "lost after a crash", "stuck in the queue", "high memory", "already claimed"):
        assert symptom in text, symptom


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = {str(path.relative_to(ROOT / "docs")) for path in Path(ROOT / "docs").glob("**/*.md")}
    assert not {page for page in pages if f" {page}" not in navigation}


CELERY_WORDS = """
task_acks_late acks_late task_reject_on_worker_lost reject_on_worker_lost worker_prefetch_multiplier
prefetch-multiplier task_track_started track_started task_max_retries max_retries task_retry_backoff
task_retry_jitter default_retry_delay self.retry countdown retry_delays task_time_limit time_limit
task_soft_time_limit soft_time_limit SoftTimeLimitExceeded rate_limit task_annotations
worker_max_tasks_per_child max-tasks-per-child --concurrency -Q --loglevel task_always_eager
task_eager_propagates worker_send_task_events task_send_sent_event visibility_timeout polling_interval
broker_transport_options CELERY_BROKER_URL CELERY_RESULT_BACKEND rpc:// broker_pool_limit broker_heartbeat
broker_connection_retry send_task apply_async delay( shared_task bind=True result.get() result.ready()
result.status inspect|ping inspect|active purge_queue list_bindings priority= queue= conditional_update
message|TTL x-max-priority dead|letter exchange routing|key task_default_queue
"""
"""What the five field reports configure or call; `|` stands for a space."""


@pytest.mark.parametrize("word", CELERY_WORDS.split())
def test_every_celery_setting_and_call_of_the_reports_has_its_counterpart(word: str) -> None:
    text = (ROOT / "docs/from-celery.md").read_text().lower()
    assert word.replace("|", " ").lower() in text
