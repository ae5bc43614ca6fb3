"""A private emulator of SQS, SNS and DynamoDB, in a process of its own; real HTTP, no Docker.

Its lies, which no test may build upon: a receipt handle of somebody who has lost his lease is an error in every
request; a message of a FIFO queue can be deleted with one; attributes do not count as bytes; and nothing survives its
end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from tests.servers import free_ports

START_TIMEOUT = 60.0
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
"""For whoever talks to it, as environment variables: botocore's usual chain, and nothing of this machine's."""


class Ministack:
    """May be killed, frozen and started again, empty then."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="busline-ministack-"))
        (self.port,) = free_ports(1)
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """For `endpoint_url=`."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Until it answers."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.port),
            "SERVICES": "sqs,sns,dynamodb",
            "LOG_LEVEL": "ERROR",
        }
        with (self._folder / "out.txt").open("ab") as out:
            command = [sys.executable, "-m", "ministack.app"]
            self._server = subprocess.Popen(command, env=environment, stdout=out, stderr=out, cwd=self._folder)
        until = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if time.monotonic() > until or self._server.poll() is not None:
                raise RuntimeError(f"ministack did not start:\n{(self._folder / 'out.txt').read_text()[-3000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/_ministack/health", timeout=2.0) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def signal(self, number: int) -> None:
        """To the emulator, by its pid."""
        assert self._server is not None
        self._server.send_signal(number)

    def stop(self) -> None:
        """It forgets everything."""
        if self._server is not None:
            self._server.send_signal(signal.SIGCONT)
            self._server.kill()
            self._server.wait(20)
            self._server = None


def is_free(port: int) -> bool:
    """Does nobody listen there?"""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
