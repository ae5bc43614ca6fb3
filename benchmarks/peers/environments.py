"""One virtual environment for each peer, at pinned versions, made when it is first needed."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).parent / ".environments"
PINS = {
    "aiormq": ["aiormq==7.2.4", "pamqp==4.0.1", "pydantic==2.14.3"],
    "aio-pika": ["aio-pika==10.2.1", "aiormq==7.2.4", "pydantic==2.14.3"],
    "faststream": ["faststream[rabbit]==0.7.8", "aio-pika==10.2.1", "aiormq==7.2.4", "pydantic==2.14.3"],
    "taskiq": ["taskiq==0.13.0", "taskiq-aio-pika==0.6.1", "taskiq-redis==1.2.4", "pydantic==2.14.3"],
    "celery": ["celery==5.7.0", "kombu==5.7.0", "pydantic==2.14.3"],
    "nats": ["nats-py==2.16.0", "pydantic==2.14.3"],
    "aiohttp": ["aiohttp==3.14.5", "pydantic==2.14.3"],
}
"""By name of the environment."""


def python_of(name: str) -> str:
    """The interpreter that has what the peer needs; busline's own for anything else."""
    if name not in PINS:
        return sys.executable
    folder = FOLDER / name
    stamp, wanted = folder / "pins.txt", "\n".join(PINS[name])
    python = folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {name}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS[name]], check=True)
        stamp.write_text(wanted)
    return str(python)
