"""The bus in a FastAPI application.

app = FastAPI(lifespan=bus.lifespan)
install(app, timeout=10)

@app.post("/orders")
async def create(order: CreateOrder, bus: CurrentBus) -> Order:
    return await bus.call("orders.create", order, returns=Order)
"""

from __future__ import annotations

from typing import Annotated

from busline.bus import Bus
from busline.errors import ConfigurationError

try:
    from fastapi import Depends
except ImportError as missing:
    raise ConfigurationError("this needs FastAPI: pip install 'busline[fastapi]'") from missing

from busline.integrations.http import WorkerOptions
from busline.integrations.starlette import DeadlineMiddleware, JobEvents, combine, get_bus, install, job_events, serving

CurrentBus = Annotated[Bus, Depends(get_bus)]
"""The bus of the running application, as a parameter of an endpoint."""

__all__ = [
    "CurrentBus",
    "DeadlineMiddleware",
    "JobEvents",
    "WorkerOptions",
    "combine",
    "get_bus",
    "install",
    "job_events",
    "serving",
]
