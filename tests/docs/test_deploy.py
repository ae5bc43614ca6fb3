"""The service files of docs/deploy are what they say: read by the programs they are for where those can be had."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from busline.cli.app import app
from busline.cli.exits import Exit
from busline.cli.leaving import patience
from busline.cli.supervisor import FATAL, KILL_MARGIN
from tests.servers import install

from .session import ROOT

DEPLOY = ROOT / "docs" / "deploy"
LONGEST = patience(25.0) + KILL_MARGIN
"""Seconds that a worker with the default --shutdown-timeout takes to leave, at most."""


def variables() -> set[str]:
    """What `busline worker` reads from its environment."""
    group: Any = typer.main.get_command(app)
    options = [*group.params, *group.commands["worker"].params]
    return {str(each.envvar) for each in options if each.envvar} | {"BUSLINE_URL"}


def kubernetes() -> Mapping[str, Any]:
    (deployment,) = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    assert isinstance(deployment, dict)
    return deployment


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case, as its documents say
    parser.read_string((DEPLOY / "busline-worker.service").read_text())
    return parser


def test_every_variable_that_is_set_is_one_that_the_worker_reads() -> None:
    for path in [*DEPLOY.iterdir(), ROOT / "docs" / "deployment.md", ROOT / "docs" / "cli.md"]:
        named = set(re.findall(r"BUSLINE_[A-Z_]+", path.read_text()))
        assert named <= variables(), path.name


def test_kubernetes_probes_health_and_leaves_time_to_leave() -> None:
    pod = kubernetes()["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= LONGEST
    (container,) = pod["containers"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    (port,) = (port["containerPort"] for port in container["ports"] if port["name"] == "health")
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert environment["BUSLINE_HEALTH_PORT"] == str(port)
    assert environment["BUSLINE_HEALTH_HOST"] == "0.0.0.0"
    assert container["command"][:2] == ["busline", "worker"]


def test_supervisor_stops_the_parent_first_and_leaves_time_to_leave() -> None:
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=(";",))
    parser.read(DEPLOY / "supervisor.ini")
    program = parser["program:orders-worker"]
    assert program["stopsignal"] == "TERM"
    assert not program.getboolean("stopasgroup")
    assert program.getboolean("killasgroup")
    assert program.getint("stopwaitsecs") >= LONGEST


def test_docker_runs_the_worker_itself_and_asks_it() -> None:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    steps = dict(line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#"))
    assert json.loads(steps["CMD"])[:2] == ["busline", "worker"]
    assert "busline inspect ping --worker" in steps["HEALTHCHECK"]
    assert float(re.search(r"--stop-timeout (\d+)", text)[1]) >= LONGEST  # type: ignore[index]  # else it fails


def test_systemd_does_not_repeat_what_cannot_get_better_and_leaves_time_to_leave() -> None:
    service = unit()["Service"]
    assert {Exit(int(code)) for code in service["RestartPreventExitStatus"].split()} == FATAL
    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) >= LONGEST


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = _systemd_analyze()
    text = (DEPLOY / "busline-worker.service").read_text()
    installed = text.replace("/srv/orders/.venv/bin/busline", str(Path(sys.executable).parent / "busline"))
    assert installed != text
    copy = tmp_path / "orders-worker.service"
    copy.write_text(installed)
    run = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, check=False, timeout=60)
    complaints = [line for line in run.stderr.splitlines() if copy.name in line]
    assert (run.returncode, complaints) == (0, []), run.stderr
    copy.write_text(installed.replace("KillMode=mixed", "KillMode=gently"))
    run = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, check=False, timeout=60)
    assert "gently" in run.stderr  # so it does read the file


def _systemd_analyze() -> str:
    if shutil.which("systemd-analyze") is None:
        install("systemd")
    found = shutil.which("systemd-analyze")
    if found is None:
        reason = "systemd-analyze is missing and could not be installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found
