"""The web application: an upload becomes a job, and its progress a stream of events. `uvicorn web_app:app`"""

import uuid
from pathlib import Path

from anyio import to_thread
from app import ImportCsv, bus
from fastapi import FastAPI, UploadFile

from busline.integrations.fastapi import CurrentBus, JobEvents, install, job_events

UPLOADS = Path("uploads").absolute()

app = FastAPI(lifespan=bus.lifespan)
install(app)


def keep(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


@app.post("/imports", status_code=202)
async def upload(file: UploadFile, bus: CurrentBus) -> dict[str, str]:
    """The file goes where the workers find it; only its path travels."""
    path = UPLOADS / f"{uuid.uuid4()}.csv"
    await to_thread.run_sync(keep, path, await file.read())
    job = await bus.send("import.csv", ImportCsv(path=path), priority=5, track=True)
    return {"job_id": job.id}


@app.get("/imports/{job_id}/events", response_class=JobEvents)
async def events(job_id: str, bus: CurrentBus) -> JobEvents:
    return job_events(bus.job(job_id))


@app.delete("/imports/{job_id}")
async def cancel(job_id: str, bus: CurrentBus) -> bool:
    return await bus.job(job_id).cancel()
