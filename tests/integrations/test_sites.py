"""What a FastAPI and an aiohttp application promise alike, behind uvicorn and aiohttp's own server."""

from __future__ import annotations

import asyncio

from process.commands import Folder, until

from .sites import Site, lines

UNAVAILABLE = "this cannot be done at the moment; nothing was begun"
TOO_LATE = "there was no answer in time; it may still be done"


def test_failed_calls_are_answered_as_by_a_gateway_and_told_to_the_operator_alone(site: Site) -> None:
    assert site.get("/own").json() == "hello"
    assert site.get("/call/double?number=21").json() == 42
    nobody = site.get("/call/nobody")
    assert (nobody.status_code, nobody.headers["Retry-After"]) == (503, "3")
    assert nobody.json() == {"detail": UNAVAILABLE}
    closed = site.get("/call/closed")
    assert (closed.status_code, closed.headers["Retry-After"]) == (503, "3")
    slow = site.get("/call/hang?timeout=0.1")
    assert (slow.status_code, slow.json()) == (504, {"detail": TOO_LATE})
    assert "Retry-After" not in slow.headers
    assert site.get("/call/fail").status_code == 500, "what a handler raises is a fault, not a state of the system"
    site.until_logged("GET /call/nobody answered with 503: NoHandler: nobody handles 'sums.nobody'")
    site.until_logged("GET /call/hang answered with 504: CallTimeout: call to 'sums.hang'")


def test_the_deadline_of_a_request_goes_with_its_calls(site: Site) -> None:
    assert 50 < site.get("/call/left?timeout=300").json() <= 60, "the application's own limit"
    assert site.get("/call/left", **{"X-Timeout": "6.5"}).json() <= 6.5
    assert 50 < site.get("/call/left", **{"X-Timeout": "600"}).json() <= 60, "nobody can ask for more"
    first, second = site.get("/twice/left").json()
    assert second < first, "what the first call took is lost to the second"
    assert site.get("/call/hang", **{"X-Timeout": "0.2"}).status_code == 504
    for wrong in ("soon", "-1", "nan", "inf", "0"):
        refused = site.get("/call/left", **{"X-Timeout": wrong})
        assert (refused.status_code, "X-Timeout" in refused.json()["detail"]) == (400, True)


def test_what_goes_on_after_the_answer_is_not_bound_by_its_deadline(site: Site, folder: Folder) -> None:
    assert site.get("/later", **{"X-Timeout": "0.9"}).json() == "accepted"
    folder.until_noted("after the answer")


async def test_requests_that_wait_keep_nobody_else_waiting(site: Site, folder: Folder) -> None:
    async with site.client() as client:
        held = [asyncio.create_task(client.get(f"/call/hold?number={number}")) for number in range(50)]
        await asyncio.to_thread(until, lambda: len(lines(folder, "held")) == 50, "all are held")
        paths = [f"/call/double?number={number}" for number in range(200)]
        answers = await asyncio.gather(*(client.get(path) for path in paths))
        assert [answer.json() for answer in answers] == [2 * number for number in range(200)]
        assert not any(task.done() for task in held)
        folder.open_gate()
        assert [(await task).json() for task in held] == [2 * number for number in range(50)]


async def test_a_shutdown_lets_the_requests_that_run_have_their_answers(site: Site, folder: Folder) -> None:
    async with site.client() as client:
        held = [asyncio.create_task(client.get(f"/call/hold?number={number}")) for number in range(30)]
        await asyncio.to_thread(until, lambda: len(lines(folder, "held")) == 30, "all are held")
        site.terminate()
        await asyncio.to_thread(until, lambda: not site.listens(), "it has stopped listening")
        assert not any(task.done() for task in held)
        folder.open_gate()
        assert [(await task).json() for task in held] == [2 * number for number in range(30)]
    assert await asyncio.to_thread(site.left_in_good_order), site.output
    assert "own ends" in site.output
    assert "Traceback" not in site.output
    assert "rror" not in site.output
