"""A transport from another package is found by its URL scheme."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from busline import Bus, ConfigurationError
from busline.transports import from_url

THIRD_PARTY = '''
from busline.transports.memory import MemoryBroker, MemoryTransport

BROKER = MemoryBroker()


class TinyTransport(MemoryTransport):
    """A third party's transport: it has the contract's methods and a scheme of its own."""

    def __init__(self, url):
        super().__init__(BROKER)
        self.url = url

    @property
    def where(self):
        return f"tiny broker at {self.url}"
'''


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package installed in `tmp_path`, as pip would leave it."""
    (tmp_path / "tiny_transport.py").write_text(THIRD_PARTY)
    info = tmp_path / "tiny_transport-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-transport\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[busline.transports]\ntiny = tiny_transport:TinyTransport\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tiny_transport", raising=False)


async def test_a_third_partys_transport_is_found_by_its_scheme(tiny: None) -> None:
    bus = Bus("tiny://somewhere", service="plugged")

    @bus.handler("plugged.ping")
    async def ping() -> str:
        return "pong"

    async with bus.worker():
        assert bus.transport.where == "tiny broker at tiny://somewhere"
        assert await bus.call("plugged.ping") == "pong"


def test_an_unknown_scheme_names_those_that_are_installed(tiny: None) -> None:
    with pytest.raises(ConfigurationError, match=r"carrier-pigeon://; installed are .*memory, .*sqlite, sqs, tiny"):
        from_url("carrier-pigeon://roof")


def test_what_is_no_url_is_told_with_an_example() -> None:
    with pytest.raises(ConfigurationError, match="write for example sqlite:///"):
        from_url("busline.db")
