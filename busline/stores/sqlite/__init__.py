"""A store in an SQLite file: the transport's own, the application's, or one for itself."""

from busline.stores.sqlite.store import SqliteStore, from_url

__all__ = ["SqliteStore", "from_url"]
