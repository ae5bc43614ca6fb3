"""The AI server of a field report, with the worker as it is started in production, 25 times as fast.

There users waited 60 s for a retry, long answers were cut off after 30 s, tasks failed at once while the server was
down, and every failed attempt left an apology in the conversation.
"""

import asyncio
import json
import time
from itertools import pairwise

import pytest
from process.commands import Folder, Running

from busline import Bus, RemoteError

APP = """
import asyncio, os, time
from pathlib import Path
from busline import Bus, Check, Context, Retry

HERE = Path(__file__).parent
bus = Bus("sqlite:///bus.db", service="chat")

def note(*words):
    file = os.open(HERE / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (" ".join(map(str, words)) + "\\n").encode())
    os.close(file)

async def model_server_is_up():
    return (HERE / "up").exists()

async def apologise(error: Exception, question: dict):
    note("saved", question["session"], "I'm sorry, I'm having trouble responding right now.")

@bus.handler("ai.generate", retry=Retry(delays=[0.2, 0.6, 1.2], jitter=False), concurrency=1,
    requires=[Check(model_server_is_up, period=0.1)], soft_time_limit=9.6, time_limit=12, on_failure=apologise)
async def generate(session: str, ctx: Context, takes: float = 0.0, fails: int = 0) -> str:
    note("asked", session, ctx.attempt, time.time())
    await asyncio.sleep(takes)
    if ctx.attempt <= fails:
        raise ConnectionError("the model server hung up")
    note("saved", session, "an answer")
    return f"an answer to {session}"
"""


@pytest.fixture
def chat(folder: Folder) -> Folder:
    """A conversation whose model server is up."""
    folder.write("app", APP)
    (folder.path / "up").touch()
    return folder


def serve(folder: Folder) -> Running:
    worker = folder.worker("app:bus", "--max-messages-per-process", "100")
    worker.until_ready()
    return worker


def asked(folder: Folder, session: str) -> list[float]:
    """When the model was asked for an answer."""
    return [float(note.split()[3]) for note in folder.notes if note.startswith(f"asked {session} ")]


def saved(folder: Folder, session: str) -> list[str]:
    """What stands in the conversation."""
    return [note.split(maxsplit=2)[2] for note in folder.notes if note.startswith(f"saved {session} ")]


def test_retries_come_after_5_15_and_30_s_and_only_the_last_failure_is_told(chat: Folder) -> None:
    worker = serve(chat)
    chat.send(("ai.generate", {"session": "s1", "fails": 9}))
    worker.until_logged("retried", 3)
    assert saved(chat, "s1") == []
    worker.until_logged("dead_lettered")
    instants = asked(chat, "s1")
    for wanted, (earlier, later) in zip([0.2, 0.6, 1.2], pairwise(instants), strict=True):
        assert wanted <= later - earlier < wanted + 1
    assert saved(chat, "s1") == ["I'm sorry, I'm having trouble responding right now."]
    (letter,) = json.loads(chat.run("dlq", "list", "chat.ai.generate", "--json").stdout)
    assert (letter["type"], letter["attempts"]) == ("ConnectionError", 4)


async def test_long_answers_and_answers_after_retries_reach_who_waits(chat: Folder) -> None:
    await asyncio.to_thread(serve, chat)
    async with Bus(f"sqlite:///{chat.path}/bus.db") as bus:
        began = time.monotonic()
        long = {"session": "s2", "takes": 2.5}  # where 30 s were not enough for 60
        assert await bus.call("ai.generate", long, timeout=20, returns=str) == "an answer to s2"
        assert time.monotonic() - began >= 2.5
        shaky = {"session": "s3", "fails": 2}
        assert await bus.call("ai.generate", shaky, timeout=20, returns=str) == "an answer to s3"
        with pytest.raises(RemoteError, match="hung up"):
            # The third retry would come after the caller's deadline, so he learns it at once.
            await bus.call("ai.generate", {"session": "s4", "fails": 9}, timeout=1.8)
    assert [saved(chat, session) for session in ("s2", "s3")] == [["an answer"], ["an answer"]]
    assert len(asked(chat, "s4")) == 3


def test_while_the_model_server_is_down_questions_wait_and_burn_no_attempt(chat: Folder) -> None:
    worker = serve(chat)
    (chat.path / "up").unlink()
    worker.until_logged("paused")
    chat.send(("ai.generate", {"session": "s5"}), ("ai.generate", {"session": "s6"}))
    time.sleep(0.5)  # nothing must happen, which has no sign
    assert chat.notes == []
    (chat.path / "up").touch()
    chat.until_notes(4)
    assert [note.split()[:3] for note in chat.notes if note.startswith("asked")] == [
        ["asked", "s5", "1"],
        ["asked", "s6", "1"],
    ]
    assert worker.logged("retried") == 0
