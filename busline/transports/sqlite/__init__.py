"""One SQLite file as a broker: durable, shared by the processes of one machine, with no server."""

from busline.transports.sqlite.transport import SqliteTransport, from_url

__all__ = ["SqliteTransport", "from_url"]
