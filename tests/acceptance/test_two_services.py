"""Two services and a caller that imports neither: a topic is all that it knows."""

import asyncio

import pytest
from process.commands import Folder

from busline import Bus

SERVICE = """
from busline import Bus

bus = Bus(service="{name}")

@bus.handler("rpc.{name}.{verb}")
async def {verb}(number: int) -> str:
    return f"{name} {{number}}"
"""


async def ask_both(place: Folder) -> None:
    async with Bus(place.url) as bus:
        for name in ("a", "b"):
            calls = (bus.call(f"rpc.{name}.ping", number, timeout=20) for number in range(100))
            assert await asyncio.gather(*calls) == [f"{name} {number}" for number in range(100)]


@pytest.fixture
def services(place: Folder) -> Folder:
    for module, name, verb in (("a", "a", "ping"), ("b", "b", "ping"), ("old_a", "a", "old")):
        place.write(module, SERVICE.format(name=name, verb=verb))
    return place


async def test_each_of_two_services_answers_every_call(services: Folder) -> None:
    for app in ("a:bus", "b:bus"):
        services.worker(app).until_ready()
    await ask_both(services)


@pytest.mark.parametrize(
    "order",
    [
        ("old_a:bus", "a:bus", "b:bus"),
        ("a:bus", "b:bus", "old_a:bus"),
    ],
    ids=["before", "after"],
)
async def test_a_sibling_that_lacks_the_topic_does_not_swallow_its_calls(
    services: Folder, order: tuple[str, ...]
) -> None:
    for app in order:
        services.worker(app).until_ready()
    await ask_both(services)
