"""The web application. `uvicorn web_app:app`"""

import uuid

from app import SCALE, Question, bus, conversation, save
from fastapi import FastAPI

from busline.integrations.fastapi import CurrentBus, install

app = FastAPI(lifespan=bus.lifespan)
install(app)


@app.post("/sessions/{session}/messages", status_code=202)
async def say(session: str, text: str, bus: CurrentBus) -> str:
    """Answers at once with the job's id; the answer appears in the conversation."""
    question = Question(session=session, text=text)
    save(str(uuid.uuid4()), session, text, is_from_user=True)
    job = await bus.send("ai.generate", question)
    return job.id


@app.get("/sessions/{session}")
def read(session: str) -> list[str]:
    return conversation(session)


@app.post("/ask")
async def ask(text: str, bus: CurrentBus) -> str:
    """Waits for the answer, however long that takes within two minutes."""
    question = Question(session="-", text=text)
    return await bus.call("ai.generate", question, timeout=120 * SCALE, returns=str)
