"""PostgreSQL, Redis and a DynamoDB emulator, started by the tests: own ports, own folders, stopped by pid.

One of each for all processes of a parallel run (`shared`), or one of one's own that may be killed (`private`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers import free_ports, install, locked

START_TIMEOUT = 60.0
PASSWORD = "s3cret-w0rd"


class Server:
    """One server process. It may be killed and started again, with its data."""

    name = ""
    package = ""
    """Of Debian, where the program is from one."""
    ending = signal.SIGKILL

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / "port"
        if not file.exists():
            file.write_text(str(free_ports(1)[0]))
        self.port = int(file.read_text())
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def program(cls) -> str | None:
        """Where it is; None if it is not installed."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """Of the store."""
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def prepare(self) -> None:
        """Once, before the first start."""

    def answers(self, probe: socket.socket) -> bool:
        """Does it talk to a client?"""
        return True

    @property
    def environment(self) -> Mapping[str, str]:
        return os.environ

    @property
    def user(self) -> str | None:
        """As whom it runs, if not as ourselves."""
        return None

    def start(self) -> None:
        """Until it answers."""
        with (self.folder / "out.txt").open("ab") as out:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=dict(self.environment),
                user=self.user,
                group=self.user,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        until = time.monotonic() + START_TIMEOUT
        while not self._is_up():
            if time.monotonic() > until or self._process.poll() is not None:
                raise RuntimeError(f"{self.name} did not start:\n{(self.folder / 'out.txt').read_text()[-3000:]}")
            time.sleep(0.05)

    def _is_up(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5.0) as probe:
                probe.settimeout(5.0)
                return self.answers(probe)
        except OSError:
            return False

    def stop(self) -> None:
        """End it, and all that it has started."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            os.killpg(process.pid, self.ending)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)


class Postgres(Server):
    name = "PostgreSQL"
    package = "postgresql"
    settings = ("fsync=off", "listen_addresses=127.0.0.1", "max_connections=300", "shared_buffers=32MB")

    @classmethod
    def program(cls) -> str | None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        return str(found[-1]) if found else shutil.which("postgres")

    @property
    def user(self) -> str | None:
        return "postgres" if os.geteuid() == 0 else None  # it refuses root

    @property
    def url(self) -> str:
        return f"postgresql://busline:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def prepare(self) -> None:
        if self.user:
            shutil.chown(self.folder, self.user, self.user)
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        initdb = Path(str(self.program())).with_name("initdb")
        options = ("--auth=scram-sha-256", "-U", "busline", "-E", "UTF8", "--locale=C", "--no-sync")
        subprocess.run(
            [str(initdb), "-D", str(self.folder / "data"), f"--pwfile={password}", *options],
            cwd=self.folder,
            user=self.user,
            group=self.user,
            check=True,
            capture_output=True,
        )

    def command(self) -> list[str]:
        options = [part for setting in self.settings for part in ("-c", setting)]
        where = ["-D", str(self.folder / "data"), "-p", str(self.port), "-k", str(self.folder)]
        return [str(self.program()), *where, *options]

    def answers(self, probe: socket.socket) -> bool:
        """It refuses a wish that it understands, and not because it is starting up."""
        text = b"user\0busline\0database\0postgres\0\0"
        probe.sendall((8 + len(text)).to_bytes(4, "big") + (196608).to_bytes(4, "big") + text)
        return probe.recv(1) == b"R"


class Redis(Server):
    name = "Redis"
    package = "redis-server"

    @classmethod
    def program(cls) -> str | None:
        return shutil.which("redis-server")

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        keep = ("--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", str(self.folder))
        return ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, *keep]

    def answers(self, probe: socket.socket) -> bool:
        """It may be loading its data still."""
        probe.sendall(f"AUTH {PASSWORD}\r\nPING\r\n".encode())
        said = b""
        while said.count(b"\n") < 2:
            said += probe.recv(100)
        return b"PONG" in said


class Dynamo(Server):
    name = "ministack"
    ending = signal.SIGTERM  # it has all in memory, and writes it down when it is asked to end

    @classmethod
    def program(cls) -> str | None:
        beside = Path(sys.executable).with_name("ministack")
        return str(beside) if beside.exists() else shutil.which("ministack")

    @property
    def url(self) -> str:
        return f"dynamodb://test:{PASSWORD}@us-east-1?endpoint_url=http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> Mapping[str, str]:
        own = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(self.port), "SERVICES": "dynamodb"}
        state = {"PERSIST_STATE": "1", "STATE_DIR": str(self.folder / "state")}
        return {**os.environ, **own, **state, "HOME": str(self.folder)}

    def command(self) -> list[str]:
        return [str(self.program())]

    def answers(self, probe: socket.socket) -> bool:
        probe.sendall(b"GET /_ministack/health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        return probe.recv(12).startswith(b"HTTP/1.")


KINDS: Mapping[str, type[Server]] = {"postgres": Postgres, "redis": Redis, "dynamo": Dynamo}


@contextmanager
def private(kind: str, make: type[Server] | None = None) -> Iterator[Server]:
    """A new server for one test, which may break it; `make` is a variant of that kind."""
    _need(KINDS[kind])
    server = (make or KINDS[kind])(_new_folder(kind))
    try:
        server.prepare()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)


@contextmanager
def shared(kind: str, meeting_point: Path) -> Iterator[Server]:
    """The one server of its kind for all processes that meet in this folder: the first starts it, and it ends with the
    last, however that ends. As for RabbitMQ in `tests.servers`."""
    with locked(meeting_point / f"{kind}.lock"):
        place = meeting_point / kind
        users = _join(Path(place.read_text())) if place.exists() else None
        if users is None:
            _need(KINDS[kind])
            folder = _new_folder(kind)
            (folder / "users").touch()
            users = _join(folder)
            assert users is not None
            _start_keeper(kind, folder)
            place.write_text(str(folder))
        folder = Path(place.read_text())
    try:
        yield KINDS[kind](folder)
    finally:
        # Unlocked and not only closed: a process forked meanwhile has the file open, too.
        fcntl.flock(users, fcntl.LOCK_UN)
        os.close(users)


def _join(folder: Path) -> int | None:
    """The file that is locked; None if the server is on its way out."""
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


def _start_keeper(kind: str, folder: Path) -> None:
    command = [sys.executable, "-m", "tests.store_servers", kind, str(folder)]
    root = Path(__file__).parents[1]
    with (folder / "keeper.txt").open("wb") as out:
        keeper = subprocess.Popen(command, cwd=root, stdout=out, stderr=out, start_new_session=True)
    until = time.monotonic() + START_TIMEOUT + 10
    while not (folder / "started").exists():
        if time.monotonic() > until or keeper.poll() is not None:
            raise RuntimeError(f"{kind} did not start:\n{(folder / 'keeper.txt').read_text()[-3000:]}")
        time.sleep(0.05)
    keeper.returncode = 0  # it outlives whoever started it, on purpose


def keep(kind: str, folder: Path) -> None:
    """Run a server for as long as somebody uses it."""
    server = KINDS[kind](folder)
    try:
        server.prepare()
        server.start()
        (folder / "started").touch()
        with (folder / "users").open("rb") as users:
            fcntl.flock(users, fcntl.LOCK_EX)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _new_folder(kind: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"busline-{kind}-"))


def _need(kind: type[Server]) -> None:
    if kind.program() is None and not (kind.package and install(kind.package) and kind.program() is not None):
        reason = f"{kind.name} is missing and could not be installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


if __name__ == "__main__":
    keep(sys.argv[1], Path(sys.argv[2]))
