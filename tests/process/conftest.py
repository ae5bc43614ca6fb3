from collections.abc import Iterator
from pathlib import Path

import pytest

from process.commands import Folder

APP = """
import asyncio, os, time
from pathlib import Path
from busline import Bus

HERE = Path(__file__).parent
bus = Bus("sqlite:///bus.db", service="work")

def note(text):
    file = os.open(HERE / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{text}\\n".encode())
    os.close(file)

@bus.handler("hold")
async def hold(name: str):
    note(f"begin {name}")
    note(f"process {os.getpid()}")
    while not (HERE / "gate").exists():
        await asyncio.sleep(0.01)
    note(f"end {name}")

@bus.handler("block")
async def block():
    note("begin block")
    time.sleep(600)

@bus.handler("stuck")
def stuck():
    note("begin stuck")
    time.sleep(600)

@bus.handler("disconnect")
async def disconnect():
    await bus.transport.aclose()

@bus.handler("add")
async def add(a: int, b: int = 0) -> int:
    return a + b

@bus.handler("fail")
async def fail():
    raise ValueError("out of paper\\nand ink")

@bus.subscriber("user.*")
async def on_user(name: str):
    note(f"user {name}")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A folder with `app.py`, whose bus has a handler for every situation."""
    folder = Folder(tmp_path)
    folder.write("app", APP)
    yield folder
    folder.end()
