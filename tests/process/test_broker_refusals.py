"""A broker that cannot be used is one line, an exit code, and no password, whatever the command and however verbose."""

import pytest

from busline.cli.exits import Exit
from process.commands import Folder
from tests.servers import Rabbit, free_ports

PASSWORD = "s3cr3t-w0rd"

VERBOSE = ["-v", "--log-level", "debug"]

UNUSABLE = [
    ("amqps://me:{password}@no-such-host.invalid/", Exit.UNREACHABLE, "no connection to amqps://no-such-host.invalid"),
    ("amqp://me:{password}@broker.example/", Exit.CONFIGURATION, "allow_plaintext"),
    ("amqp://me:{password}@localhost/a/b", Exit.CONFIGURATION, "%2F"),
    ("amqp:me:{password}@localhost/", Exit.CONFIGURATION, "is not a URL"),
    ("ampq://me:{password}@localhost/", Exit.CONFIGURATION, "no transport is installed for ampq://"),
]


def check(folder: Folder, command: list[str], code: Exit, words: str) -> None:
    """The command fails so."""
    run = folder.run(*command)
    assert run.returncode == code, (command, run.stdout, run.stderr)
    error = run.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error
    assert PASSWORD not in run.stdout + run.stderr
    assert run.stderr.count("\n") == 1 or "-v" in command
    assert run.stdout == "" or command[0] == "worker"  # which shows what it is about to serve


def commands(url: str) -> list[list[str]]:
    """One of each kind."""
    return [["call", "add"], ["worker", "app:bus"], ["demo", url], ["queues", *VERBOSE]]


@pytest.fixture
def anywhere(folder: Folder) -> Folder:
    """Its app goes where commands go."""
    folder.write("app", "from busline import Bus\nbus = Bus(service='work')\n@bus.handler('add')\ndef add(): ...\n")
    return folder


@pytest.mark.parametrize(("url", "code", "words"), UNUSABLE, ids=[url.partition("{")[0] for url, _, _ in UNUSABLE])
def test_an_address_of_no_use_is_told_without_its_password(anywhere: Folder, url: str, code: Exit, words: str) -> None:
    anywhere.url = url.format(password=PASSWORD)
    check(anywhere, ["call", "add", *VERBOSE], code, words)


def test_nobody_at_the_address_is_told_without_the_password(anywhere: Folder) -> None:
    [port] = free_ports(1)
    anywhere.url = f"amqp://me:{PASSWORD}@127.0.0.1:{port}/"
    for command in commands(anywhere.url):
        check(anywhere, command, Exit.UNREACHABLE, f"no connection to amqp://127.0.0.1:{port}/")


def test_a_refusal_is_told_without_the_password(anywhere: Folder, rabbit: Rabbit) -> None:
    anywhere.url = rabbit.url.replace("guest:guest", f"guest:{PASSWORD}")
    for command in commands(anywhere.url):
        check(anywhere, command, Exit.CONFIGURATION, "refuses user 'guest': wrong name or password")
    anywhere.url = rabbit.url + "nowhere"
    check(anywhere, ["call", "add"], Exit.CONFIGURATION, "nowhere not found")


def test_without_its_extra_amqp_is_refused_with_what_to_install(anywhere: Folder) -> None:
    (anywhere.path / "aio_pika.py").write_text("raise ImportError('as if it were not installed')")
    anywhere.url = "amqp://localhost/"
    run = anywhere.run("call", "add")
    assert run.returncode == Exit.CONFIGURATION
    assert run.stderr.count("\n") == 1
    assert "pip install" in run.stderr
    assert "busline[amqp]" in run.stderr
