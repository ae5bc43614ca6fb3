"""The command `busline`: its commands, what they share, and how every error becomes one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from busline.cli import handlers, inspect, logs, provisioning, queues, verbs, worker
from busline.cli.demo import demo
from busline.cli.describing import describe
from busline.cli.dlq import dlq
from busline.cli.doctor.command import doctor
from busline.cli.events import events
from busline.cli.exits import Exit, exit_for, legend
from busline.cli.jobs import jobs
from busline.cli.terminal import complain, say

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for a command line that makes no sense; it has no public name for it."""

app = typer.Typer(
    name="busline",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"-v, --log-level and --log-format may stand anywhere. {legend()}",
)
app.command()(worker.worker)
app.command()(verbs.call)
app.command()(verbs.send)
app.command()(verbs.publish)
app.command()(handlers.handlers)
app.command()(describe)
app.command()(doctor)
app.command()(provisioning.setup)
app.command()(provisioning.teardown)
app.command()(queues.queues)
app.command()(queues.purge)
app.add_typer(dlq)
app.add_typer(jobs)
app.add_typer(inspect.inspect)
app.command()(inspect.pause)
app.command()(inspect.resume)
app.command()(inspect.concurrency)
app.command()(events)
app.command()(demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"busline {version('busline')}")
        raise typer.Exit(Exit.OK)


@app.callback()
def busline(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Errors with their tracebacks.")] = False,
    log_level: Annotated[
        logs.Level | None,
        typer.Option(
            case_sensitive=False,
            envvar="BUSLINE_LOG_LEVEL",
            help="Log lines on stderr; default: info for a worker, else warning.",
        ),
    ] = None,
    log_format: Annotated[
        logs.Format,
        typer.Option(case_sensitive=False, envvar="BUSLINE_LOG_FORMAT", help="json: an object a line."),
    ] = logs.Format.TEXT,
) -> None:
    """An asyncio RPC and event bus: serve handlers, and call them by hand."""
    context.obj = log_level
    logs.configure(log_level or logs.Level.WARNING, log_format)


def main() -> None:
    """The entry point: run the command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code, one of `Exit`."""
    shared, others = split(arguments)
    try:
        return int(app([*shared, *others], prog_name="busline", standalone_mode=False) or Exit.OK)
    except UsageError as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; without this Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except Exception as error:
        return _failed(error, verbose=not {"-v", "--verbose"}.isdisjoint(shared))


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options that may stand anywhere, and the rest in its order; nothing is looked for behind `--`."""
    shared: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            others += [argument, *rest]
        elif argument in ("-v", "--verbose") or argument.startswith(("--log-level=", "--log-format=")):
            shared.append(argument)
        elif argument in ("--log-level", "--log-format"):
            shared += [argument, *([value] if (value := next(rest, None)) is not None else [])]
        else:
            others.append(argument)
    return shared, others


def _usage(error: Exception) -> Exit:
    formatted = getattr(error, "format_message", error.__str__)
    text = str(formatted())
    if "\n" in text:  # the help, because nothing was asked for; newer versions of typer have printed it already
        say(text)
    elif text:
        context = getattr(error, "ctx", None)
        complain(f"{text} (see {context.command_path if context is not None else 'busline'} --help)")
    return Exit.USAGE


def _failed(error: Exception, *, verbose: bool) -> Exit:
    if verbose:
        traceback.print_exception(error)
    complain(str(error) or type(error).__name__)
    return exit_for(error)
