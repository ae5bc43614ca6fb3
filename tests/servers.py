"""Servers that the tests start for themselves: their own ports, their own folders, stopped by pid."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
CTL = "/usr/lib/rabbitmq/bin/rabbitmqctl"
START_TIMEOUT = 90.0
"""Seconds that a node may take to start on a busy machine."""


class Rabbit:
    """A private RabbitMQ node. It may be killed, stopped, frozen and started again, with its data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port, self._distribution, self._epmd_port = free_ports(3)
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As guest, who may do everything."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def _environment(self) -> dict[str, str]:
        folder = self._folder
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"busline{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
        }

    def start(self) -> None:
        """Until its port answers and it takes commands."""
        if self._epmd is None:
            # Started here, or the node starts one as a daemon that nobody would stop.
            self._epmd = subprocess.Popen(["epmd", "-port", str(self._epmd_port)], env=self._environment)
        with (self._folder / "out.txt").open("ab") as out:
            self._server = subprocess.Popen(
                [SERVER], env=self._environment, stdout=out, stderr=out, start_new_session=True
            )
        until = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if time.monotonic() > until or self._server.poll() is not None:
                raise RuntimeError(f"RabbitMQ did not start:\n{(self._folder / 'out.txt').read_text()[-3000:]}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        """Does it greet a client? The port alone is open some time before."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as probe:
                probe.settimeout(1.0)
                probe.sendall(b"AMQP\x00\x00\x09\x01")
                return probe.recv(1) == b"\x01"
        except OSError:
            return False

    def signal(self, number: int) -> None:
        """To the node, by its pid."""
        os.kill(int((self._folder / "pid").read_text()), number)

    def kill(self) -> None:
        """As if its machine had lost power."""
        assert self._server is not None
        self.signal(signal.SIGKILL)
        self._server.wait(20)
        self._server = None

    def ctl(self, *arguments: str) -> str:
        """`rabbitmqctl`, which takes about two seconds."""
        done = subprocess.run(
            [CTL, "-q", *arguments], env=self._environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        """For good."""
        if self._server is not None:
            self.signal(signal.SIGCONT)
            self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(20)


def start_rabbit() -> Rabbit:
    """A new node. Skips the test where there is no RabbitMQ and it cannot be installed; fails instead in CI."""
    if not os.path.exists(SERVER) and not _install():
        reason = "rabbitmq-server is missing and could not be installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    rabbit = Rabbit(Path(tempfile.mkdtemp(prefix="busline-rabbit-")))
    try:
        rabbit.start()
    except BaseException:
        rabbit.stop()
        raise
    return rabbit


def remove(rabbit: Rabbit) -> None:
    """Stop it and delete its folder."""
    rabbit.stop()
    shutil.rmtree(rabbit._folder, ignore_errors=True)


def _install() -> bool:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "rabbitmq-server"]):
        if subprocess.run(command, env=environment, capture_output=True, check=False).returncode != 0:
            return False
    return os.path.exists(SERVER)


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
