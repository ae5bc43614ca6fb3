"""The service between a web application and a model server that is slow, and away at times.

What a worker does about that stands beside the handler: it asks only while the server is healthy, tries again after 5,
15 and 30 seconds, gives a long answer the time it takes, and tells the user of a failure once, when it is final.
"""

import os
import sqlite3
from contextlib import closing

from aiohttp import ClientError, ClientSession, ClientTimeout
from pydantic import BaseModel

from busline import Bus, Check, Context, Queue, Retry

SCALE = float(os.environ.get("TIME_SCALE", "1"))
"""What all times are multiplied with, so that a test need not wait for minutes."""
MODEL_URL = os.environ.get("MODEL_URL", "http://localhost:8100")
TABLE = "conversations.db"
APOLOGY = "I'm sorry, I'm having trouble responding right now. Please try again later."

bus = Bus(service="chat")


class Question(BaseModel):
    session: str
    text: str


def save(id: str, session: str, text: str, *, is_from_user: bool) -> None:
    """Once for each id, however often it is said."""
    with closing(sqlite3.connect(TABLE, timeout=10)) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS messages (id TEXT PRIMARY KEY, session, text, is_from_user)")
        db.execute("INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?)", (id, session, text, is_from_user))


def conversation(session: str) -> list[str]:
    with closing(sqlite3.connect(TABLE, timeout=10)) as db:
        if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'messages'").fetchone():
            return []
        rows = db.execute("SELECT text FROM messages WHERE session = ? ORDER BY rowid", (session,))
        return [text for (text,) in rows]


async def model_server_is_up() -> bool:
    """The gate: while it is closed, questions wait at the broker and burn no attempt."""
    async with (
        ClientSession(timeout=ClientTimeout(10)) as client,
        client.get(f"{MODEL_URL}/health") as answer,
    ):
        return answer.status == 200


def apologise(question: Question, error: Exception, ctx: Context) -> None:
    """Called on the final failure only."""
    save(f"{ctx.id}/apology", question.session, APOLOGY, is_from_user=False)


@bus.handler(
    "ai.generate",
    queue=Queue("ai"),
    concurrency=4,
    requires=[Check(model_server_is_up, period=5 * SCALE)],
    retry=Retry(delays=[5 * SCALE, 15 * SCALE, 30 * SCALE], when=(ClientError, TimeoutError)),
    soft_time_limit=240 * SCALE,
    time_limit=300 * SCALE,
    on_failure=apologise,
)
async def generate(question: Question, ctx: Context) -> str:
    async with (
        ClientSession(timeout=ClientTimeout(90 * SCALE), raise_for_status=True) as client,
        client.post(f"{MODEL_URL}/generate", json={"prompt": question.text}) as answer,
    ):
        text = str((await answer.json())["text"])
    save(f"{ctx.id}/answer", question.session, text, is_from_user=False)
    return text
