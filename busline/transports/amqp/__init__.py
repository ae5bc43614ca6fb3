"""RabbitMQ, from 3.10 on, over AMQP 0-9-1 alone: no plugin, no management API."""

from busline.errors import ConfigurationError

try:
    import aio_pika  # noqa: F401
except ImportError as missing:
    raise ConfigurationError("amqp:// needs aio-pika: pip install 'busline[amqp]'") from missing

from busline.transports.amqp.transport import AmqpTransport, from_url

__all__ = ["AmqpTransport", "from_url"]
