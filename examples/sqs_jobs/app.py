"""Jobs over SQS, with DynamoDB for their state. What took pages of settings is the idempotency key.

SQS delivers some messages twice, and a worker may die with one. Each job has a key, its `job_id`: however often it is
delivered or sent, one worker claims it by a conditional write, and later ones get the result that is there.
"""

import asyncio
import os
from pathlib import Path

from pydantic import BaseModel

from busline import Bus, Context, Idempotency, Retry

ENDPOINT = os.environ.get("AWS_ENDPOINT_URL")  # an emulator; none for AWS itself
OPTION = f"&endpoint_url={ENDPOINT}" if ENDPOINT else ""
REGION = os.environ.get("AWS_REGION", "us-east-1")
SECONDS = float(os.environ.get("SECONDS_OF_WORK", "0.5"))

bus = Bus(
    f"sqs://{REGION}?prefix=jobs-&wait=2{OPTION}",
    service="problems",
    store=f"dynamodb://{REGION}?table=busline-jobs{OPTION}",
)


class Extract(BaseModel):
    job_id: str
    text: str


def take_effect(job: Extract) -> None:
    with Path("effects.txt").open("a") as effects:
        effects.write(f"{job.job_id}\n")


@bus.handler(
    "problem.extract",
    idempotency=Idempotency(key="job_id", lease=10, ttl=86400),
    retry=Retry(max_retries=3, first=2.0),
    soft_time_limit=1680,
    time_limit=1800,  # the lease on the message is renewed until then, so there is no visibility timeout to tune
)
async def extract(job: Extract, ctx: Context) -> dict[str, str]:
    await ctx.progress(0, 1, "reading")
    await asyncio.sleep(SECONDS)
    take_effect(job)
    return {"job_id": job.job_id, "problem": job.text.upper()}
