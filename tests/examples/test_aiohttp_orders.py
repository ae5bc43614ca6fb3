"""examples/aiohttp_orders, as its README says and on RabbitMQ."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.servers import Rabbit

from .running import Example


@pytest.mark.parametrize("broker", ["sqlite", "rabbitmq"])
def test_orders_are_taken_refused_and_listed(
    broker: str, example: Callable[..., Example], request: pytest.FixtureRequest
) -> None:
    environment = {}
    if broker == "rabbitmq":
        rabbit: Rabbit = request.getfixturevalue("rabbit")
        environment["BUSLINE_URL"] = rabbit.empty_url()
    orders = example("aiohttp_orders", **environment)
    worker = orders.worker(processes=2)
    site, client = orders.site("python", "web_app.py", "PORT", shows="Running on")
    assert client.get("/orders").json() == []
    created = [client.post("/orders", json={"sku": "tea", "qty": qty}) for qty in (1, 2, 3)]
    assert [response.status_code for response in created] == [201] * 3
    assert client.post("/orders", json={"sku": "tea", "qty": 0}).status_code == 422
    sold_out = client.post("/orders", json={"sku": "unicorn", "qty": 1})
    assert (sold_out.status_code, sold_out.text) == (409, "we have no unicorn\n")
    assert client.get("/orders").json() == [response.json() for response in created]

    # While no worker is there, a request waits; one that comes in time answers it.
    worker.stop()
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(client.get("/orders").status_code))
    asking.start()
    orders.worker()
    asking.join(60)
    assert answers in ([200], [504])
    assert client.get("/orders").status_code == 200
    site.stop()
    assert "Traceback" not in site.output
