"""examples/compose.yaml, as far as it can be checked without Docker: everything that it names is there."""

from __future__ import annotations

import re
import shlex
import tomllib
from typing import Any

import pytest
import yaml

from .running import EXAMPLES

COMPOSE = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXTRAS = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OURS = [name for name, service in SERVICES.items() if "volumes" in service]
PORTS = {"rabbitmq": {5672}, "postgres": {5432}, "ai-model": {8100}, "aws": {4566}}
HEALTH_GATE = "ai-model"
"""Need not be waited for."""


def needed(service: dict[str, Any]) -> set[str]:
    """What it waits for, and what that waits for."""
    direct = set(service.get("depends_on", ()))
    return direct.union(*(needed(SERVICES[other]) for other in direct))


def test_services_depend_on_services_that_start_with_them_and_tell_when_they_are_well() -> None:
    assert len(OURS) == 9
    for name, service in SERVICES.items():
        assert re.fullmatch(r"[a-z]+:[\w.-]+", service["image"]), f"{name} has an image without a version"
        for other in needed(service):
            assert set(service["profiles"]) <= set(SERVICES[other]["profiles"]), f"{name} would wait for {other}"
        if isinstance(service.get("depends_on"), dict):
            for other, how in service["depends_on"].items():
                assert how == {"condition": "service_healthy"}
                assert SERVICES[other]["healthcheck"]
        else:
            assert service.get("restart", "on-failure") == "on-failure", f"{name} gives up if it comes first"


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_what_is_in_its_folder_with_what_it_installs(name: str) -> None:
    service = SERVICES[name]
    source, _, target = service["volumes"][0].partition(":")
    folder = EXAMPLES / source
    assert target == service["working_dir"]
    shell, option, script = shlex.split(service["command"])
    assert (shell, option) == ("sh", "-c")
    install, _, run = script.partition(" && exec ")
    extras = set(re.search(r"busline\[([\w,]+)\]", install).group(1).split(","))  # type: ignore[union-attr]  # must be
    assert extras <= set(EXTRAS)
    match shlex.split(run):
        case ["python", file, *_]:
            module = folder / file
        case ["busline", "worker", target, *_]:
            module = folder / f"{target.partition(':')[0]}.py"
            assert f"\n{target.partition(':')[2]} = Bus(" in module.read_text()
        case ["uvicorn", target, *_]:
            module = folder / f"{target.partition(':')[0]}.py"
            assert f"\n{target.partition(':')[2]} = FastAPI(" in module.read_text()
            assert "uvicorn" in shlex.split(install)
        case other:
            raise AssertionError(f"{name} runs {other}")
    source_text = module.read_text() + (folder / "app.py").read_text()
    for library, extra in (("fastapi", "fastapi"), ("aiohttp", "aiohttp"), ("asyncpg", "postgres"), ("sqs://", "sqs")):
        used = any(sign in source_text for sign in (f"import {library}", f"from {library} ", f'"{library}'))
        assert used <= (extra in extras)
    assert ("UploadFile" in source_text) <= ("python-multipart" in install)


@pytest.mark.parametrize("name", OURS)
def test_addresses_in_the_environment_are_those_of_services_that_are_waited_for(name: str) -> None:
    addresses = {
        variable: value
        for variable, value in SERVICES[name].get("environment", {}).items()
        if variable.endswith("_URL")
    }
    for variable, value in addresses.items():
        host, port = re.fullmatch(r"\w+://(?:[\w:]+@)?([\w-]+)(?::(\d+))?(?:/.*)?", value).groups()  # type: ignore[union-attr]  # a URL
        assert host in SERVICES, f"{variable} of {name} leads nowhere"
        assert port is None or int(port) in PORTS[host]
        assert host in needed(SERVICES[name]) | {HEALTH_GATE}
        if variable == "DATABASE_URL":
            assert f":{SERVICES['postgres']['environment']['POSTGRES_PASSWORD']}@" in value
