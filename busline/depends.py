"""Dependencies of handlers: `Annotated[Session, Depends(session)]`. By the extra `busline[depends]`.

    from busline.depends import Depends, per_worker

    @per_worker                                  # once in each worker process
    async def engine() -> AsyncIterator[Engine]:
        engine = create_engine(...)
        yield engine
        await engine.dispose()                   # when the worker has settled its last message

    async def session(engine: Annotated[Engine, Depends(engine)]) -> AsyncIterator[Session]:
        async with Session(engine) as session, session.begin():
            yield session                        # once for each message; ends before the ack

    @bus.handler("orders.create")
    async def create(order: Order, session: Annotated[Session, Depends(session)]) -> None: ...

`Depends` is that of fast-depends, so dependencies that are written for it, or for what is built on it, are understood.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from busline.binding import PER_WORKER
from busline.errors import ConfigurationError

try:
    from fast_depends import Depends
except ImportError as missing:  # pragma: no cover - all extras are installed where the tests run
    raise ConfigurationError("dependencies need fast-depends: install busline[depends]") from missing

__all__ = ["Depends", "per_worker"]

F = TypeVar("F", bound=Callable[..., Any])


def per_worker(factory: F) -> F:
    """Make the value once in each worker process, when it starts, and not for each message; returns the factory
    unchanged. It can depend only on others of this kind, and gets neither the context nor the payload."""
    setattr(factory, PER_WORKER, True)
    return factory
