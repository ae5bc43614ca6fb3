"""The site is built from the documents without a warning and without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .session import ROOT


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "site/reference/index.html").read_text()
    assert "busline.errors.CallTimeout" in reference
    assert "idempotency_key" in reference
    control = (tmp_path / "site/control/index.html").read_text()
    assert "```" not in control, "a block of code that is shown as text"
