"""examples/fastapi_csv_import on RabbitMQ and PostgreSQL: a worker is killed in the middle of an import."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable

import asyncpg
import httpx
import pytest

from tests.servers import Rabbit
from tests.store_servers import Postgres

from .running import Example

ROWS = 1000


@pytest.fixture
async def database(postgres: Postgres) -> AsyncIterator[str]:
    """An empty one."""
    name = f"imports_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(postgres.url)
    await connection.execute(f"CREATE DATABASE {name}")
    yield postgres.url.rpartition("/")[0] + f"/{name}"
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


async def test_an_import_goes_on_where_a_killed_worker_stopped_and_its_progress_is_seen_all_along(
    database: str, rabbit: Rabbit, example: Callable[..., Example]
) -> None:
    imports = example("fastapi_csv_import", DATABASE_URL=database, BUSLINE_URL=rabbit.empty_url(), PAUSE="0.4")
    imports.worker(processes=2)
    _, client = imports.site("uvicorn", "web_app:app", "--port", "PORT", shows="startup complete")
    with (imports.folder / "airports.csv").open("rb") as file:
        accepted = client.post("/imports", files={"file": file})
    assert accepted.status_code == 202
    connection = await asyncpg.connect(database)
    async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as listener:
        seen, last, killed = await follow(listener, accepted.json()["job_id"], connection)
    assert last["result"] == {"rows": ROWS, "of": ROWS}
    assert last["attempts"] == 2
    assert seen == sorted(seen), "progress is not lost"
    rows = await connection.fetch("SELECT imported_by, count(*) AS number FROM airport GROUP BY imported_by")
    await connection.close()
    assert len(rows) == 2
    assert str(killed) in {row["imported_by"] for row in rows}
    assert sum(row["number"] for row in rows) == ROWS
    assert client.get("/imports/nobody/events").status_code == 404


async def follow(
    client: httpx.AsyncClient, job_id: str, connection: asyncpg.Connection
) -> tuple[list[float], dict[str, object], int]:
    """As a browser, connecting again; kill the process that imports when it has done something."""
    seen: list[float] = []
    killed = 0
    while True:
        async with client.stream("GET", f"/imports/{job_id}/events") as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                data = json.loads(line.removeprefix("data: "))
                if data["progress"] is not None:
                    seen.append(data["progress"]["current"])
                if seen and seen[-1] >= 300 and not killed:
                    killed = int(await connection.fetchval("SELECT imported_by FROM airport LIMIT 1"))
                    os.kill(killed, signal.SIGKILL)
                if data["state"] in ("SUCCESS", "FAILURE", "CANCELLED"):
                    return seen, data, killed
