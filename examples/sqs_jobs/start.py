"""Sends each of some jobs twice, as a client that is unsure does, and waits for the results."""

import asyncio

from app import Extract, bus

JOBS = 10


async def main() -> None:
    async with bus:
        jobs = [
            await bus.send("problem.extract", Extract(job_id=f"job-{number}", text=f"text {number}"), track=True)
            for number in range(JOBS)
            for _ in range(2)
        ]
        results = [await job.result(timeout=60) for job in jobs]
    print(f"{len(results)} results of {len({result['job_id'] for result in results})} jobs")


asyncio.run(main())
