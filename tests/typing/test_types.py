"""Two type checkers agree on what the public surface promises."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FILE = Path(__file__).parent / "bus_types.py"
ROOT = FILE.parents[2]
STRICT = {
    "typeCheckingMode": "strict",
    "pythonVersion": "3.11",
    "extraPaths": [str(ROOT)],
    "enableTypeIgnoreComments": False,  # those are mypy's
    "reportUnnecessaryTypeIgnoreComment": True,
    "reportUnusedFunction": False,
}


def run(*command: str) -> str:
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    ).stdout


def mypy(folder: Path) -> list[str]:
    """What it finds in the file of `folder`."""
    shown = run("mypy", "--strict", "--follow-imports", "silent", str(folder / FILE.name))
    assert "1 source file" in shown, shown
    return [line for line in shown.splitlines() if ": error:" in line]


def pyright(folder: Path) -> list[str]:
    """What it finds in the file of `folder`."""
    (folder / "pyrightconfig.json").write_text(json.dumps(STRICT))
    shown = run("pyright", "--project", str(folder), "--pythonpath", sys.executable, "--outputjson")
    report = json.loads(shown)
    assert report["summary"]["filesAnalyzed"] == 1, shown
    return [f"{found['range']['start']['line'] + 1}: {found['message']}" for found in report["generalDiagnostics"]]


each_checker = pytest.mark.parametrize("checker", [mypy, pyright])


@each_checker
def test_the_types_and_the_mistakes_are_seen(checker: Callable[[Path], list[str]], tmp_path: Path) -> None:
    (tmp_path / FILE.name).write_text(FILE.read_text())
    assert checker(tmp_path) == []


@each_checker
@pytest.mark.parametrize(
    ("truth", "lie"),
    [
        ("returns=int, timeout=1.0), int)", "returns=int, timeout=1.0), str)"),
        ('call(ORDERS_CREATE, CreateOrder(sku="tea")), Order)', 'call(ORDERS_CREATE, CreateOrder(sku="tea")), Job)'),
    ],
)
def test_a_wrong_type_is_found_out(checker: Callable[[Path], list[str]], truth: str, lie: str, tmp_path: Path) -> None:
    text = FILE.read_text()
    assert truth in text
    (tmp_path / FILE.name).write_text(text.replace(truth, lie))
    assert len(checker(tmp_path)) == text.count(truth)
