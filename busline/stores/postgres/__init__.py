"""A store in PostgreSQL, from 12 on, by the extra `busline[postgres]`."""

from busline.errors import ConfigurationError

try:
    import asyncpg  # noqa: F401
except ImportError as missing:
    raise ConfigurationError("postgresql:// needs asyncpg: pip install 'busline[postgres]'") from missing

from busline.stores.postgres.store import PostgresStore, from_url

__all__ = ["PostgresStore", "from_url"]
