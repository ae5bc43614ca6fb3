"""Who is alive: whoever holds the lock on his file. The kernel lets go of it the moment a process is gone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
import weakref
from pathlib import Path

_LONGEST_ADDRESS = 100
"""Bytes; a socket's path has a limit of 104 to 108."""

_held: weakref.WeakSet[RunFiles] = weakref.WeakSet()
"""For the children of a fork, who must not keep their parent's locks alive. Cannot be per object: a hook stays."""


def run_folder(database: str) -> Path:
    """Where the locks and sockets of the processes that use the database are."""
    return Path(database + "-run")


class RunFiles:
    """This transport's own lock file and the place of its socket."""

    def __init__(self, database: str) -> None:
        self.token = secrets.token_hex(8)
        self.folder = run_folder(database)
        self.mode = 0o600
        self._database = database
        self._lock = self.folder / f"{self.token}.lock"
        self._fd = -1
        self.address = ""

    def take(self) -> None:
        """Make the folder, take the lock, choose a place for the socket. Raises OSError."""
        self.mode = os.stat(self._database).st_mode & 0o666
        while self._fd < 0:
            self._fd = self._try_take()
        _held.add(self)
        socket = self.folder / f"{self.token}.sock"
        if len(os.fsencode(socket)) > _LONGEST_ADDRESS:
            socket = Path(tempfile.mkdtemp(prefix="busline-")) / "sock"
            socket.parent.chmod(_searchable(self.mode))
        self.address = str(socket)

    def restore(self) -> bool:
        """Make again what somebody has deleted: then the socket is missing, and True is returned. Raises OSError."""
        if self._is_there() and os.path.exists(self.address):
            return False
        if not self._is_there():
            self._lock_anew()
        socket = Path(self.address)
        if socket.parent != self.folder:
            self._make(socket.parent)
        socket.unlink(missing_ok=True)
        return True

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self._lock))
        except FileNotFoundError:
            return False

    def _lock_anew(self) -> None:
        # Under its name it appears locked: an unlocked one would be a dead process's to whoever looks meanwhile.
        self._make(self.folder)
        fresh = self._lock.with_suffix(".new")
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT, self.mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(fd, self.mode)
            fresh.rename(self._lock)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd

    def _make(self, folder: Path) -> None:
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            folder.chmod(_searchable(self.mode))

    def let_go(self) -> None:
        """Only close the lock file, as the end of the process does."""
        _held.discard(self)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """The files, the lock, and the folder if it was the last."""
        remove_files(self.folder, self.token, self.address)
        self.let_go()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _try_take(self) -> int:
        self._make(self.folder)
        try:
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT, self.mode)
        except FileNotFoundError:  # the last of the others has removed the folder meanwhile
            return -1
        fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(self._lock)):
                os.fchmod(fd, self.mode)
                return fd
        os.close(fd)  # somebody took it for a dead one's, before we had the lock
        return -1


def try_lock(folder: Path, token: str) -> int | None:
    """A file descriptor that holds a dead one's lock (close it); None if its holder lives, or there is no file."""
    try:
        fd = os.open(folder / f"{token}.lock", os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def is_without_lock(folder: Path, token: str, pid: int) -> bool:
    """Has somebody deleted the lock file by hand, and no process has that number any more?"""
    if (folder / f"{token}.lock").exists():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def remove_files(folder: Path, token: str, address: str) -> None:
    """What one transport had outside the database."""
    socket = Path(address)
    for path in (socket, folder / f"{token}.lock"):
        with contextlib.suppress(OSError):
            path.unlink()
    if socket.parent != folder and socket.parent.name.startswith("busline-"):
        with contextlib.suppress(OSError):
            socket.parent.rmdir()


def tokens(folder: Path) -> list[str]:
    """Of all lock files that are there."""
    return [path.stem for path in folder.glob("*.lock")]


def _searchable(mode: int) -> int:
    """The mode of a folder for those who may use a file of this mode."""
    return mode | (mode & 0o444) >> 2


def _forget_inherited() -> None:
    for files in list(_held):
        files.let_go()


os.register_at_fork(after_in_child=_forget_inherited)
