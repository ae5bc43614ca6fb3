"""Servers that the tests start for themselves: their own ports, their own folders, stopped by pid."""

from __future__ import annotations

import json
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
VHOSTS = 20
"""Virtual hosts that are made at once, as each `rabbitmqctl` takes two seconds."""
START_TIMEOUT = 90.0
"""Seconds that a node may take to start on a busy machine."""


class Rabbit:
    """A private RabbitMQ node. It may be killed, stopped, frozen and started again, with its data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port, self.tls_port, self._distribution, self._epmd_port = free_ports(4)
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._unused: list[str] = []
        self._vhosts = 0

    @property
    def url(self) -> str:
        """As guest, who may do everything."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def ca(self) -> Path:
        """The certificate authority of its certificate, which is for localhost alone."""
        return self._folder / "ca.pem"

    def configure(self) -> None:
        """Make certificates, and listen with them too."""
        make_certificates(self._folder)
        (self._folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
            f"ssl_options.cacertfile = {self.ca}\n"
            f"ssl_options.certfile = {self._folder / 'server.pem'}\n"
            f"ssl_options.keyfile = {self._folder / 'server.key'}\n"
        )

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

    def empty_url(self) -> str:
        """As guest, in a virtual host that nobody has used: a broker of one's own, as far as queues go."""
        if not self._unused:
            self._unused = [f"empty{self._vhosts + number}" for number in range(VHOSTS)]
            self._vhosts += VHOSTS
            rights = {"user": "guest", "configure": ".*", "write": ".*", "read": ".*"}
            definitions = {
                "vhosts": [{"name": name} for name in self._unused],
                "permissions": [{"vhost": name, **rights} for name in self._unused],
            }
            (self._folder / "vhosts.json").write_text(json.dumps(definitions))
            self.ctl("import_definitions", str(self._folder / "vhosts.json"))
        return self.url + self._unused.pop()

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
        rabbit.configure()
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


def make_certificates(folder: Path) -> None:
    """`ca.pem`, and `server.pem` with `server.key` for localhost, made by openssl."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30")
    openssl("req", "-x509", *new_key, "-subj", "/CN=busline test CA", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", "-new", *new_key[:-2], "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    signed_by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "names")
    openssl("x509", "-req", "-in", "server.csr", *signed_by, "-out", "server.pem")
    (folder / "server.key").chmod(0o600)


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
