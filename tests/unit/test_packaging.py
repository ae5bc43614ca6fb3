"""What is built and installed is all that is needed, and nothing more. Needs the network, for pip."""

import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from email.message import Message
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TIMEOUT = 300
FORBIDDEN = {"celery", "kombu"}

pytestmark = pytest.mark.timeout(TIMEOUT)


def run(*command: str | Path, cwd: Path, environment: dict[str, str] | None = None) -> str:
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment or dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is the project's, so that the checkout stays as it was."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "_busline_pytestplugin.py"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for path in (ROOT / "busline").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            target = source / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh environment with busline in it, and no extra."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    run(*pip, "--constraint", constraints, f"busline @ {wheel.as_uri()}", cwd=folder.parent)
    return folder / "bin"


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_the_package_its_data_and_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"busline/__init__.py", "busline/py.typed", "busline/demo/airports.csv"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    strangers = {name for name in names if not name.startswith(("busline/", "busline-"))}
    assert strangers == {"_busline_pytestplugin.py"}
    assert metadata(wheel)["License-Expression"] == "MIT"


def test_few_things_are_needed_at_run_time(wheel: Path) -> None:
    wanted = [re.match(r"[\w-]+", line).group() for line in metadata(wheel).get_all("Requires-Dist") or ()]  # type: ignore[union-attr]  # every requirement begins with a name
    assert FORBIDDEN.isdisjoint(wanted)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.split(r"\W", need)[0] for need in project["dependencies"]} <= {
        "anyio", "orjson", "pydantic", "rich", "typer"
    }  # fmt: skip


def needed(requirements: Iterable[str], extra: str) -> Iterator[Requirement]:
    """Those of them that apply here, for this extra."""
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def test_everything_together_needs_neither_celery_nor_kombu(wheel: Path) -> None:
    """What pip would install into an empty environment: all that is asked for by what is asked for, in the versions
    that are installed here, which are those of constraints.txt."""
    waiting, followed = [Requirement("busline[all]")], set[tuple[str, str]]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for each in {(name, extra) for extra in ("", *requirement.extras)} - followed:
            followed.add(each)
            asked = metadata(wheel).get_all("Requires-Dist") if name == "busline" else distribution(name).requires
            waiting += needed(asked or (), each[1])
    found = {name for name, _ in followed}
    assert {"busline", "aio-pika", "redis", "fastapi", "aiohttp", "pamqp", "starlette"} <= found
    assert FORBIDDEN.isdisjoint(found)


def test_the_installed_wheel_runs_its_demo_far_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BUSLINE_"))}
    shown = run(installed / "busline", "--version", cwd=tmp_path, environment=environment)
    assert re.fullmatch(r"busline \d+\.\d+\.\d+\S*\n", shown)
    where = run(installed / "python", "-c", "import busline; print(busline.__file__)", cwd=tmp_path)
    assert where.startswith(str(installed.parent))
    shown = run(installed / "busline", "demo", cwd=tmp_path, environment=environment)
    assert "3,376 of 3,376" in shown


def test_versions_are_pinned_plainly() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins == sorted(pins, key=lambda pin: pin.partition("==")[0].lower())
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[\w.]+", pin) for pin in pins), "name==version and nothing else"


def test_what_is_pinned_runs_on_the_oldest_python_that_busline_names() -> None:
    """Debian 12 has 3.11.2: a release that asks for a later one cannot be installed there, and nothing else can."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    asked = {each.name: each.metadata.get("Requires-Python") for each in distributions()}
    refused = {name for name, wanted in asked.items() if wanted and oldest not in SpecifierSet(wanted)}
    assert not refused
