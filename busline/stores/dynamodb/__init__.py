"""A store in one DynamoDB table, by the extra `busline[dynamodb]`."""

from busline.errors import ConfigurationError

try:
    import aiobotocore.session  # noqa: F401
except ImportError as missing:
    raise ConfigurationError("dynamodb:// needs aiobotocore: pip install 'busline[dynamodb]'") from missing

from busline.stores.dynamodb.store import DynamoStore, from_url

__all__ = ["DynamoStore", "from_url"]
