"""`busline describe`: who handles what on which queue with which policy, and why a topic goes where it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from busline.bus import Bus
from busline.catalog import kind_of, retry_of, source_of
from busline.cli.describe import plan_of, where
from busline.cli.exits import Exit, Failure
from busline.cli.handlers import App
from busline.cli.load import load_bus
from busline.cli.terminal import say, show_json
from busline.control import doctors_queue
from busline.message import ToQueue
from busline.registry import Handler, Plan, QueuePlan, shown_name
from busline.topics import RESERVED, check_topic, matches


def describe(
    app: App,
    topic: Annotated[str | None, typer.Option(help="Only why this topic goes where it does.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    iam: Annotated[bool, typer.Option("--iam", help="Only the IAM policy that its processes need on AWS.")] = False,
) -> None:
    """Show every queue of a bus, what it takes, and with which policy. Works offline."""
    bus = load_bus(app)
    if iam:
        show_json(policy_of(bus))
        return
    plan = plan_of(app, bus)
    told = described(app, bus, plan) if topic is None else route(bus, plan, check_topic(topic))
    if as_json:
        show_json(told)
        return
    for line in _lines(told) if topic is None else told["because"]:
        say(line)


def policy_of(bus: Bus) -> Mapping[str, Any]:
    """The rights that a worker of this bus uses, or a caller if it has no handlers. Raises Failure beside AWS."""
    if not bus.url.startswith("sqs://"):
        raise Failure(Exit.USAGE, f"only sqs:// has an IAM policy, and this bus is at {where(bus)}")
    from busline.transports.sqs import iam_policy  # an extra, and asked for by nobody else

    plan = bus.plan()
    broadcasts = [spec.name for spec in (queue.spec for queue in plan.queues.values()) if spec.ephemeral]
    own = [RESERVED, doctors_queue(bus.service), *(f"{name.rpartition('.')[0]}." for name in broadcasts)]
    return iam_policy(bus.url, worker=bool(plan.queues), own=own)


def described(app: str, bus: Bus, plan: Plan) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "app": app,
        "broker": where(bus),
        "service": bus.service,
        "routes": dict(bus.routes.given),
        "queues": [_queue(queue) for queue in plan.queues.values()],
    }


def route(bus: Bus, plan: Plan, topic: str) -> dict[str, Any]:
    """Where a call or job of `topic` goes, who gets a copy of an event, and why."""
    to, because = bus.routes.to(topic, None), []
    owner = next((name for name, queue in plan.queues.items() if topic in queue.handlers), None)
    queue = owner
    if isinstance(to, ToQueue):
        queue = to.queue
        pattern = next(pattern for pattern in bus.routes.given if pattern != "#" and matches(pattern, topic))
        because.append(f"a call or job of {topic} goes to queue {queue}, because routes={{{pattern!r}: {queue!r}}}")
        if owner != queue:
            because.append(f"without the route it would go to {owner or 'whoever owns it at the broker'}")
    elif owner is not None:
        name = plan.queues[owner].handlers[topic].declaration.name
        because.append(f"a call or job of {topic} goes to queue {owner}, because {name} handles it there")
        because.append(_why(plan.queues[owner], bus.service))
    else:
        fallback = bus.routes.fallback
        end = f"to queue {fallback}, the fallback" if fallback else "nowhere: it raises NoHandler"
        because.append(
            f"no handler here has {topic}: it goes to the queue that owns it at the broker; without one, {end}"
        )
    heard = [name for name, each in plan.queues.items() if _hears(each, topic)]
    because += [f"an event {topic} is copied to queue {name}" for name in heard]
    if not heard:
        because.append(f"no subscriber here gets an event {topic}")
    return {"topic": topic, "queue": queue, "owner": owner, "subscribers": heard, "because": because}


def _hears(queue: QueuePlan, topic: str) -> bool:
    return any(matches(pattern, topic) for pattern in queue.spec.patterns)


def _why(queue: QueuePlan, service: str | None) -> str:
    """Why the queue has the name that it has."""
    owner = queue.owner
    if queue.queue.name:
        return f"it is called {queue.spec.name} because queue= says so"
    if owner is not None:
        return f"it has a queue of its own, {queue.spec.name}, because of what was said of the queue beside the handler"
    return f"{queue.spec.name} is the queue of the service, service={service!r}"


def _queue(queue: QueuePlan) -> dict[str, Any]:
    spec, said, options = queue.spec, queue.queue, queue.options
    dead = queue.dead_letters
    handlers = [queue.subscriber] if queue.subscriber is not None else list(queue.handlers.values())
    return {
        "queue": shown_name(spec.name, spec),
        "shared": queue.owner is None,
        "takes": [_taken(handler) for handler in handlers],
        "concurrency": options.concurrency,
        "rate_limit": options.rate_limit,
        "requires": [check.name for check in options.checks],
        "on_down": options.on_down if options.checks else None,
        "breaker": asdict(options.breaker) if options.breaker is not None else None,
        "message_ttl": said.message_ttl,
        "max_priority": said.max_priority,
        "max_length": said.max_length,
        "kind": said.kind,
        "bindings": [asdict(binding) for binding in said.bindings],
        "passive": said.passive,
        "ephemeral": spec.ephemeral,
        "dead_letters": dead.name if dead is not None else None,
        "dead_letter_ttl": said.dead_letter_ttl,
    }


def _taken(handler: Handler) -> dict[str, Any]:
    options = handler.options
    function, place = source_of(handler.declaration.function)
    return {
        "topic": handler.declaration.topic,
        "kind": kind_of(handler),
        "function": function,
        "place": place,
        "retry": retry_of(handler),
        "ack": options.ack,
        "soft_time_limit": options.soft_time_limit,
        "time_limit": options.time_limit,
        "executor": options.executor,
        "on_failure": source_of(options.on_failure)[0] if options.on_failure is not None else None,
    }


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    yield f"{told['app']} at {told['broker']}, service {told['service'] or '(none)'}"
    for pattern, queue in told["routes"].items():
        yield f"route {pattern} → {queue}"
    for queue in told["queues"]:
        yield ""
        yield f"queue {queue['queue']}{_said(queue, _OF_QUEUES)}"
        for taken in queue["takes"]:
            yield f"  {taken['kind']} {taken['topic']} → {taken['function']} ({taken['place']})"
            yield f"    retry {taken['retry']}; ack={taken['ack']}{_said(taken, _OF_HANDLERS)}"
        for binding in queue["bindings"]:
            yield f"  bound to {binding['type']} exchange {binding['exchange']} by {binding['routing_key']}"


_OF_QUEUES = (
    *("concurrency", "rate_limit", "requires", "on_down", "message_ttl", "max_priority", "max_length", "kind"),
    *("passive", "dead_letters", "dead_letter_ttl"),
)
_OF_HANDLERS = ("soft_time_limit", "time_limit", "on_failure")


def _said(told: Mapping[str, Any], names: Sequence[str]) -> str:
    """What was said, and nothing of the rest."""
    said = [f"{name}={_word(told[name])}" for name in names if told[name]]
    return f": {', '.join(said)}" if said else ""


def _word(value: Any) -> str:
    return "+".join(value) if isinstance(value, list) else str(value)
