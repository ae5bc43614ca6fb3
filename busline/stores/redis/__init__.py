"""A store in Redis (or Valkey), from 6 on, not a cluster; by the extra `busline[redis]`."""

from busline.errors import ConfigurationError

try:
    import redis.asyncio  # noqa: F401
except ImportError as missing:
    raise ConfigurationError("redis:// needs redis-py: pip install 'busline[redis]'") from missing

from busline.stores.redis.store import RedisStore, from_url

__all__ = ["RedisStore", "from_url"]
