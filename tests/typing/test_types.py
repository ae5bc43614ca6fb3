"""Two type checkers agree on what the public surface promises."""

import os
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parent / "bus_types.py"
ROOT = FILE.parents[2]


def run(*command: str) -> None:
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_mypy_sees_the_types_and_the_mistakes() -> None:
    run("mypy", "--strict", "--follow-imports", "silent", str(FILE))


def test_pyright_sees_the_types_and_the_mistakes(tmp_path: Path) -> None:
    config = tmp_path / "pyrightconfig.json"
    config.write_text(
        f'{{"include": ["{FILE}"], "extraPaths": ["{ROOT}"], "typeCheckingMode": "strict", "pythonVersion": "3.11",'
        ' "reportUnnecessaryTypeIgnoreComment": true, "enableTypeIgnoreComments": false,'
        ' "reportUnusedCoroutine": false, "reportUnusedExpression": false, "reportUnusedFunction": false}'
    )
    run("pyright", "--project", str(config), "--pythonpath", sys.executable)
