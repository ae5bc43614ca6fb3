"""An app's own Prometheus metrics are on the worker's page, added up over its processes."""

import os
import re
import signal
import subprocess

import pytest

from busline.cli.exits import Exit
from process.commands import Folder, until
from process.probes import Probes
from tests.servers import need_promtool

APP = """
import os
from busline import Bus
from prometheus_client import Counter, Gauge, Histogram, Info, Summary

bus = Bus(service="shop")
SOLD = Counter("shop_items_sold", "Items.", ["kind"])
PRICE = Histogram("shop_price_euros", "Prices.", buckets=(1, 10))
TOOK = Summary("shop_packing_seconds", "Packing.")
OPEN = Gauge("shop_parcels_open", "Parcels.", multiprocess_mode="livesum")
BIGGEST = Gauge("shop_parcel_items", "The biggest parcel.", multiprocess_mode="max")
SHELF = Gauge("shop_shelf_items", "On the shelf of one process.")
Info("shop_build", "The build.").info({"version": "1.2"})
OPEN.set(3)

@bus.handler("sell")
async def sell(number: int) -> int:
    SOLD.labels("tea").inc(number)
    PRICE.observe(number)
    TOOK.observe(0.5)
    BIGGEST.set(max(number, 5))
    SHELF.set(number)
    return os.getpid()

@bus.handler("break")
async def break_gauge() -> None:
    OPEN.set_function(lambda: 1 / 0)
"""
SOLD = 'shop_items_sold_total{kind="tea"}'


@pytest.fixture
def shop(folder: Folder) -> Folder:
    folder.write("app", APP)
    return folder


def sell(shop: Folder, each: int, processes: set[int]) -> int:
    """Until each of these has sold something; returns how many sales there were."""
    sales, sold = 0, set()
    while sold != processes:
        sold.add(int(shop.run("call", "sell", str(each)).stdout))
        sales += 1
    return sales


def test_an_apps_own_metrics_are_added_up_over_the_processes(shop: Folder) -> None:
    promtool = need_promtool()
    worker = shop.worker("app:bus", "--processes", "2", "--health-port", "0")
    probes = Probes(worker)
    one, two = worker.until_ready(2)
    sales = sell(shop, 2, {one, two})
    probes.until_counted(SOLD, 2 * sales)
    told = probes.metrics()
    assert (told["shop_price_euros_count"], told["shop_price_euros_sum"]) == (sales, 2 * sales)
    assert (told['shop_price_euros_bucket{le="1.0"}'], told['shop_price_euros_bucket{le="10.0"}']) == (0, sales)
    assert (told["shop_packing_seconds_count"], told["shop_packing_seconds_sum"]) == (sales, sales / 2)
    assert (told["shop_parcels_open"], told["shop_parcel_items"]) == (6, 5)
    assert {told[f'shop_shelf_items{{pid="{pid}"}}'] for pid in (one, two)} == {2}
    assert told['shop_build_info{version="1.2"}'] == 1
    _, page = probes.ask("/metrics")
    checked = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    _, page = probes.ask("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert b"# TYPE shop_items_sold counter\n" in page

    os.kill(one, signal.SIGKILL)
    worker.until_ready(3)
    probes.until_ready()
    told = probes.metrics()
    assert told[SOLD] == told["shop_price_euros_sum"] == 2 * sales  # what the dead one had counted stays counted
    assert (told["shop_parcels_open"], told["shop_parcel_items"]) == (6, 5)
    assert f'shop_shelf_items{{pid="{one}"}}' not in told


def test_nothing_is_uncounted_by_processes_that_retire(shop: Folder) -> None:
    worker = shop.worker("app:bus", "--max-messages-per-process", "5", "--concurrency", "1", "--health-port", "0")
    probes = Probes(worker)
    worker.until_ready()
    shop.send(*(("sell", 2) for _ in range(23)))
    retired = 'busline_worker_process_ends_total{how="in order"}'
    until(lambda: probes.metrics().get(retired) == 4, "four have retired")
    probes.until_counted(SOLD, 46)
    probes.until_counted('busline_handler_duration_seconds_count{handler="sell",outcome="succeeded",queue="shop"}', 23)


def test_a_metric_that_cannot_be_read_is_told_once_and_leaves_the_others_alone(shop: Folder) -> None:
    worker = shop.worker("app:bus", "--processes", "0", "--health-port", "0")
    probes = Probes(worker)
    probes.until_ready()
    assert shop.run("call", "break").returncode == Exit.OK
    worker.until_logged("metric_unreadable")
    sell(shop, 2, {worker.process.pid})
    probes.until_counted(SOLD, 2)
    assert "shop_parcels_open" not in probes.metrics()
    assert worker.logged("metric_unreadable") == 1
    assert re.search(r"shop_parcels_open.*ZeroDivisionError", worker.err.read_text())


def test_thousands_of_samples_do_not_hold_up_what_is_told_of_health(shop: Folder) -> None:
    """They are more than the stream between a process and its parent takes at once."""
    shop.write("app", APP + "for number in range(20_000):\n    SOLD.labels(f'kind {number} of very many').inc()\n")
    probes = Probes(shop.worker("app:bus", "--health-port", "0"))
    probes.until_counted('shop_items_sold_total{kind="kind 19999 of very many"}', 1)
    for _ in range(100):
        assert probes.reasons == []


def test_without_its_extra_the_page_says_what_to_install_and_the_probes_go_on(folder: Folder) -> None:
    (folder.path / "prometheus_client.py").write_text("raise ImportError('as if it were not installed')")
    probes = Probes(folder.worker("app:bus", "--health-port", "0"))
    until(lambda: probes.reasons == [], "it is ready")
    status, page = probes.ask("/metrics")
    assert status == 501
    assert b"busline[prometheus]" in page
    assert probes.ask("/livez")[0] == 200
