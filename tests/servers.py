"""Servers that the tests start for themselves: their own ports, their own folders, stopped by pid."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
CTL = "/usr/lib/rabbitmq/bin/rabbitmqctl"
VHOSTS = 40
"""Virtual hosts that are made at once: with the node they cost half a second together, later two seconds at least."""
START_TIMEOUT = 90.0
"""Seconds that a node may take to start on a busy machine."""


class Rabbit:
    """A private RabbitMQ node. It may be killed, stopped, frozen and started again, with its data."""

    def __init__(self, folder: Path, vhosts: int = VHOSTS) -> None:
        self._folder = folder
        self._vhosts = vhosts
        ports = folder / "ports"
        if not ports.exists():
            ports.write_text(json.dumps(free_ports(4)))
        self.port, self.tls_port, self._distribution, self._epmd_port = json.loads(ports.read_text())
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self.vhost = "/"

    @property
    def url(self) -> str:
        """Of its virtual host, as guest, who may do everything."""
        return self._server_url + self.vhost.removeprefix("/")

    @property
    def limited_url(self) -> str:
        """As somebody who may read and write everything, and declare nothing."""
        return self.url.replace("guest:guest", "limited:guest")

    @property
    def _server_url(self) -> str:
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
            f"load_definitions = {self._folder / 'start.json'}\n"
        )
        salt = os.urandom(4)
        guest = {
            "name": "guest",
            "password_hash": base64.b64encode(salt + hashlib.sha256(salt + b"guest").digest()).decode(),
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": "administrator",
        }
        limited = {**guest, "name": "limited", "tags": ""}
        self._define("start.json", ["/", *self._more_vhosts()], users=[guest, limited])

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
            [CTL, "-q", *arguments], env=self._environment, capture_output=True, text=True, timeout=110, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def empty_url(self) -> str:
        """As guest, in a virtual host that nobody has used: a broker of one's own, as far as queues go."""
        return self._server_url + self.take_vhost()

    def take_vhost(self) -> str:
        """The name of a virtual host that nobody has used. Processes that share the node get different ones."""
        with locked(self._folder / "vhosts.lock"):
            if not (unused := self._read("unused", [])):
                unused = self._more_vhosts()
                self._define("more.json", unused)
                self.ctl("import_definitions", str(self._folder / "more.json"))
            name = unused.pop()
            (self._folder / "unused").write_text(json.dumps(unused))
        return name

    def _more_vhosts(self) -> list[str]:
        made = self._read("made", 0)
        names = [f"empty{made + number}" for number in range(self._vhosts)]
        (self._folder / "made").write_text(json.dumps(made + self._vhosts))
        (self._folder / "unused").write_text(json.dumps(names))
        return names

    def _read(self, name: str, default: Any) -> Any:
        file = self._folder / name
        return json.loads(file.read_text()) if file.exists() else default

    def _define(self, name: str, vhosts: list[str], **more: object) -> None:
        guest = {"user": "guest", "configure": ".*", "write": ".*", "read": ".*"}
        limited = {**guest, "user": "limited", "configure": "^$"}
        definitions = {
            "vhosts": [{"name": each} for each in vhosts],
            "permissions": [{"vhost": each, **rights} for each in vhosts for rights in (guest, limited)],
            **more,
        }
        (self._folder / name).write_text(json.dumps(definitions))

    def stop(self) -> None:
        """For good."""
        if self._server is not None:
            self.signal(signal.SIGCONT)
            self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(20)
            self._epmd = None


def start_rabbit() -> Rabbit:
    """A new node. Skips the test where there is no RabbitMQ and it cannot be installed; fails instead in CI."""
    _need_rabbit()
    rabbit = Rabbit(_new_folder(), vhosts=4)  # each of them makes a start longer
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


@contextmanager
def shared_rabbit(meeting_point: Path) -> Iterator[Rabbit]:
    """The one node of all processes that meet in this folder; the first starts it, and it ends with the last.

    A process uses the node while it holds a lock on the file `users` beside it, which goes with the process, however
    it ends; a keeper, which is the node's parent, waits until nobody holds one.
    """
    with locked(meeting_point / "rabbit.lock"):
        place = meeting_point / "rabbit"
        users = _join(Path(place.read_text())) if place.exists() else None
        if users is None:
            _need_rabbit()
            folder = _new_folder()
            (folder / "users").touch()
            users = _join(folder)
            assert users is not None
            _start_keeper(folder)
            place.write_text(str(folder))
        folder = Path(place.read_text())
    try:
        yield Rabbit(folder)
    finally:
        # Unlocked and not only closed: a process forked meanwhile has the file open, too.
        fcntl.flock(users, fcntl.LOCK_UN)
        os.close(users)


def _join(folder: Path) -> int | None:
    """The file that is locked; None if the node is on its way out."""
    try:
        users = os.open(folder / "users", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(users)
        return None
    return users


def _start_keeper(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.servers", str(folder)]
    root = Path(__file__).parents[1]
    with (folder / "keeper.txt").open("wb") as out:
        keeper = subprocess.Popen(command, cwd=root, stdout=out, stderr=out, start_new_session=True)
    until = time.monotonic() + START_TIMEOUT + 10
    while not (folder / "started").exists():
        if time.monotonic() > until or keeper.poll() is not None:
            raise RuntimeError(f"RabbitMQ did not start:\n{(folder / 'keeper.txt').read_text()[-3000:]}")
        time.sleep(0.1)
    keeper.returncode = 0  # it outlives whoever started it, on purpose


def keep(folder: Path) -> None:
    """Run a node for as long as somebody uses it."""
    rabbit = Rabbit(folder)
    try:
        rabbit.configure()
        rabbit.start()
        (folder / "started").touch()
        with (folder / "users").open("rb") as users:
            fcntl.flock(users, fcntl.LOCK_EX)
            remove(rabbit)
    finally:
        rabbit.stop()


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Alone among all processes."""
    with file.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _new_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="busline-rabbit-"))


def _need_rabbit() -> None:
    _need(SERVER, "rabbitmq-server")


def need_promtool() -> str:
    """The path of Prometheus's own checker; skips the test where there is none, fails in CI."""
    return shutil.which("promtool") or _need("/usr/bin/promtool", "prometheus")


def _need(path: str, package: str) -> str:
    if not os.path.exists(path) and not (install(package) and os.path.exists(path)):
        reason = f"{package} is missing and could not be installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def install(package: str) -> bool:
    """By Debian's packages, where that may be done; one at a time, as their manager lets nobody wait."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    with locked(Path(tempfile.gettempdir()) / "busline-tests-install.lock"):
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", package]):
            if subprocess.run(command, env=environment, capture_output=True, check=False).returncode != 0:
                return False
    return True


def make_certificates(folder: Path) -> None:
    """`ca.pem`, and `server.pem` with `server.key` for localhost, made by openssl."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30")
    signs = ("-addext", "keyUsage=critical,keyCertSign")  # else Python 3.13 trusts nothing that it has signed
    openssl("req", "-x509", *new_key, *signs, "-subj", "/CN=busline test CA", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", "-new", *new_key[:-2], "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr")
    names = "subjectAltName=DNS:localhost\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    (folder / "names").write_text(names)
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


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
