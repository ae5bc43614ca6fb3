from collections.abc import Iterator
from pathlib import Path

import pytest
from process.commands import Folder

from .sites import AIOHTTP, FASTAPI, SERVICE, Site


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """An empty folder for apps and a database."""
    folder = Folder(tmp_path)
    yield folder
    folder.end()


@pytest.fixture(params=["fastapi", "aiohttp"])
def site(request: pytest.FixtureRequest, folder: Folder) -> Iterator[Site]:
    """The same application in each framework, in front of a service with one worker process."""
    folder.write("service", SERVICE)
    folder.write("site_app", FASTAPI if request.param == "fastapi" else AIOHTTP)
    worker = folder.worker("service:bus", "--concurrency", "100")
    site = Site(folder, request.param, "site_app")
    try:
        worker.until_ready()
        site.until_up()
        yield site
    finally:
        site.end()
