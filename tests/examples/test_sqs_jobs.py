"""examples/sqs_jobs on an emulator of SQS and DynamoDB."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tests.ministack import Ministack

from .running import Example


def test_each_job_is_sent_twice_answered_twice_and_takes_effect_once(
    ministack: Ministack, example: Callable[..., Example]
) -> None:
    jobs = example("sqs_jobs", AWS_ENDPOINT_URL=ministack.endpoint, SECONDS_OF_WORK="0.2")
    jobs.worker(processes=2)
    assert jobs.run("python", "start.py") == "20 results of 10 jobs\n"
    effects = Counter((jobs.folder / "effects.txt").read_text().split())
    assert effects == Counter(f"job-{number}" for number in range(10))
