"""`busline setup` and `teardown`: the broker's queues as a step of their own. Both only show what they would do, until
they are told --yes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from busline.bus import Bus
from busline.cli.describe import plan_of, where
from busline.cli.doctor.online import orphans
from busline.cli.exits import Exit, Failure
from busline.cli.handlers import App
from busline.cli.load import load_bus
from busline.cli.terminal import say, show_json, show_table
from busline.errors import BuslineError, QueueNotFound
from busline.message import QueueSpec, QueueStats
from busline.registry import DEAD_SUFFIX, Plan
from busline.transports.base import Inspectable, Transport

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it.")]
AsJson = Annotated[bool, typer.Option("--json", help="As a JSON list.")]
Row = dict[str, str]


def setup(app: App, yes: Yes = False, as_json: AsJson = False) -> None:
    """Declare the queues of a bus and those of its dead letters, so that its workers find them.

    Without --yes it only shows which are there and which are missing. A worker does the same when it starts: this is
    for deployments where another user, or another step, may do it. Passive and broadcast queues are left out.
    """
    bus = load_bus(app)
    plan = plan_of(app, bus)

    async def each(spec: QueueSpec, transport: Transport) -> str:
        try:
            await transport.attach(QueueSpec(spec.name), create=False)
            there = True
        except QueueNotFound:
            there = False
        if yes:
            await transport.attach(spec)
            return "verified" if there else "made"
        return "there" if there else "to be made"

    rows = _over(bus, lambda transport: _each(_specs(plan), lambda spec: each(spec, transport)))
    _report(rows, as_json, done=yes, where=where(bus))


def teardown(
    app: App,
    yes: Yes = False,
    only_orphans: Annotated[
        bool, typer.Option("--orphans", help="Only queues of the service that the bus does not serve any more.")
    ] = False,
    with_messages: Annotated[bool, typer.Option("--with-messages", help="Also queues in which messages wait.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete the queues of a bus and those of its dead letters.

    Without --yes it only shows what it would do. A queue that somebody consumes is always kept, and one in which
    messages wait unless --with-messages is given.
    """
    bus = load_bus(app)
    plan = plan_of(app, bus)

    async def act(transport: Transport) -> list[Row]:
        if not isinstance(transport, Inspectable):
            raise Failure(Exit.CONFIGURATION, f"{transport.where} does not let anybody look into its queues")
        stats = list(await transport.stats())
        if only_orphans:
            chosen = [each.name for each in orphans(bus, plan, stats)]
        else:
            chosen = [spec.name for spec in _specs(plan)]
        by_name = {each.name: each for each in stats}
        needed = _dead_letters_of(plan, {each.name for each in stats if each.consumers})

        async def one(spec: QueueSpec) -> str:
            if spec.name in needed:
                return "kept: dead letters of a queue that is consumed go there"
            return await _delete(transport, spec.name, by_name.get(spec.name), with_messages=with_messages, yes=yes)

        return await _each([QueueSpec(name) for name in chosen], one)

    rows = _over(bus, act)
    _report(rows, as_json, done=yes, where=where(bus))


async def _delete(transport: Transport, name: str, stats: QueueStats | None, *, with_messages: bool, yes: bool) -> str:
    try:
        await transport.attach(QueueSpec(name), create=False)
    except QueueNotFound:
        return "is not there"
    held = stats.ready + (stats.delayed or 0) + (stats.leased or 0) if stats is not None else 0
    if stats is not None and stats.consumers:
        return "kept: it is consumed, stop its workers first"
    if held and not with_messages:
        return f"kept: {held} messages wait there, --with-messages deletes them, too"
    if not yes:
        return "to be deleted" + (f" with {held} messages" if held else "")
    await transport.detach(name, delete=True)
    return "deleted" + (f" with {held} messages" if held else "")


def _dead_letters_of(plan: Plan, queues: set[str]) -> set[str]:
    """Where those of these queues go."""
    return {
        queue.dead_letters.name
        for queue in plan.queues.values()
        if queue.spec.name in queues and queue.dead_letters is not None
    }


def _specs(plan: Plan) -> list[QueueSpec]:
    """Every queue that outlives its workers, dead letters after what they belong to; each once."""
    specs: dict[str, QueueSpec] = {}
    for queue in plan.queues.values():
        if not (queue.spec.ephemeral or queue.spec.passive):
            specs.setdefault(queue.spec.name, queue.spec)
            if queue.dead_letters is not None:
                specs.setdefault(queue.dead_letters.name, queue.dead_letters)
    return sorted(specs.values(), key=lambda spec: (spec.name.removesuffix(DEAD_SUFFIX), spec.name))


async def _each(specs: list[QueueSpec], act: Callable[[QueueSpec], Awaitable[str]]) -> list[Row]:
    """What became of each; what one refuses does not keep the others."""
    rows = []
    for spec in specs:
        try:
            rows.append({"queue": spec.name, "state": await act(spec)})
        except BuslineError as error:
            rows.append({"queue": spec.name, "state": "refused", "why": " ".join(str(error).split())})
    return rows


def _over(bus: Bus, act: Callable[[Transport], Awaitable[list[Row]]]) -> list[Row]:
    async def run() -> list[Row]:
        async with bus:
            return await act(bus.transport)

    return asyncio.run(run())


def _report(rows: list[Row], as_json: bool, *, done: bool, where: str) -> None:
    if as_json:
        show_json(rows)
    elif rows:
        show_table(("QUEUE", "STATE"), [(row["queue"], ": ".join([row["state"], *_why(row)])) for row in rows])
    else:
        say(f"nothing to do at {where}")
    if rows and not done and not as_json:
        say("nothing was changed: say --yes to do it")
    if any(row["state"] == "refused" for row in rows):
        raise typer.Exit(Exit.CONFIGURATION)


def _why(row: Row) -> list[str]:
    return [row["why"]] if "why" in row else []
