"""examples/ai_server, fifty times as fast: the wishes of the field report, one after the other."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import httpx
import pytest
from process.commands import until

from tests.servers import free_ports

from .running import Example, Started

SCALE = 0.02
APOLOGY = "I'm sorry, I'm having trouble responding right now. Please try again later."


class Chat:
    """The three programs."""

    def __init__(self, example: Example) -> None:
        self.example = example
        [self._model_port] = free_ports(1)
        example.environment["MODEL_URL"] = f"http://127.0.0.1:{self._model_port}"
        self.model = self.start_model()
        self.worker = example.worker()
        _, self.client = example.site("uvicorn", "web_app:app", "--port", "PORT", shows="startup complete")

    def start_model(self) -> Started:
        model, _ = self.example.site("python", "model_server.py", "PORT", port=self._model_port, shows="Running")
        return model

    def say(self, session: str, text: str) -> httpx.Response:
        return self.client.post(f"/sessions/{session}/messages", params={"text": text})

    def conversation(self, session: str) -> list[str]:
        return [str(message) for message in self.client.get(f"/sessions/{session}").json()]

    def until_told(self, session: str, *messages: str) -> None:
        until(lambda: self.conversation(session) == list(messages), f"{session}: {messages}", 60)


@pytest.fixture
def chat(example: Callable[..., Example]) -> Chat:
    return Chat(example("ai_server", TIME_SCALE=str(SCALE)))


def test_a_question_becomes_an_answer_also_a_long_one(chat: Chat) -> None:
    assert chat.say("s1", "tea").status_code == 202
    chat.until_told("s1", "tea", "Tea? That depends.")
    began = time.monotonic()
    assert chat.client.post("/ask", params={"text": "a long story"}).json() == "A long story? That depends."
    assert time.monotonic() - began >= 60 * SCALE


def test_a_model_that_fails_is_asked_again_after_5_15_and_30_s_and_the_user_told_once(chat: Chat) -> None:
    chat.say("s2", "broken")
    chat.worker.until_shown("dead_lettered")
    chat.until_told("s2", "broken", APOLOGY)
    told = [float(each) for each in re.findall(r"next in ([\d.]+) s", chat.worker.output)]
    assert len(told) == 3, chat.worker.output
    for delay, after in zip(told, (5, 15, 30), strict=True):  # jitter only lengthens a delay, and a tenth is shown
        assert after * SCALE - 0.06 < delay < 2 * after * SCALE + 0.06
    assert chat.conversation("s2") == ["broken", APOLOGY]


def test_questions_that_come_while_the_model_server_is_down_wait_for_it(chat: Chat) -> None:
    chat.model.kill()
    chat.worker.until_shown("paused")
    chat.say("s3", "tea")
    chat.say("s3", "milk")
    chat.start_model()
    until(lambda: len(chat.conversation("s3")) == 4, "both are answered", 60)
    assert sorted(chat.conversation("s3")[2:]) == ["Milk? That depends.", "Tea? That depends."]
    assert "retried" not in chat.worker.output
