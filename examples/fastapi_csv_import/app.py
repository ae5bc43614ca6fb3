"""The importing service: rows of an uploaded file become rows of a table in PostgreSQL, with progress, and once each.

Progress outlives the worker: when one is killed, another goes on behind the last batch that was told.
"""

import asyncio
import csv
import os
from pathlib import Path

import asyncpg
from pydantic import BaseModel

from busline import Bus, Context, Queue, Retry, SoftTimeLimitExceeded

DATABASE = os.environ.get("DATABASE_URL", "postgresql://postgres@localhost/postgres")
PAUSE = float(os.environ.get("PAUSE", "0"))
"""Seconds of pretended work for each batch, so that there is something to watch."""
BATCH = 100
TABLE = "CREATE TABLE IF NOT EXISTS airport (iata text PRIMARY KEY, name text, city text, imported_by text)"

bus = Bus(service="imports", store=os.environ.get("STORE_URL", DATABASE))


class ImportCsv(BaseModel):
    path: Path


async def tell_the_user(job: ImportCsv, error: Exception) -> None:
    """On the final failure only; the file stays for whoever looks at the dead letter."""
    job.path.with_suffix(".failed").write_text(f"{type(error).__name__}: {error}\n")


@bus.handler(
    "import.csv",
    queue=Queue("import_queue", message_ttl=7200, max_priority=10, dead_letter="failed_tasks"),
    retry=Retry(max_retries=3, first=2.0, factor=2.0, jitter=True, unless=(KeyError, UnicodeDecodeError)),
    soft_time_limit=1600,  # RabbitMQ takes a message back 1800 s after it was handed out, unless told otherwise
    time_limit=1700,
    concurrency=2,
    on_failure=tell_the_user,
)
async def import_csv(job: ImportCsv, ctx: Context) -> dict[str, int]:
    with job.path.open(newline="", encoding="utf-8") as file:
        rows = [(row["iata"], row["name"], row["city"], str(os.getpid())) for row in csv.DictReader(file)]
    before = await ctx.last_progress()
    done = int(before.current) if before else 0
    connection = await asyncpg.connect(DATABASE)
    try:
        await connection.execute(TABLE)
        while done < len(rows):
            batch = rows[done : done + BATCH]
            await connection.executemany("INSERT INTO airport VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING", batch)
            done += len(batch)
            await ctx.progress(done, len(rows), "rows")
            await asyncio.sleep(PAUSE)
    except SoftTimeLimitExceeded:
        return {"rows": done, "of": len(rows)}  # what there is stays, and the user learns how much it is
    finally:
        await connection.close()
    return {"rows": done, "of": len(rows)}
