"""Amazon SQS through aiobotocore: long polls that respect the visibility timeout, ownership of topics in queue tags."""

from busline.errors import ConfigurationError

try:
    import aiobotocore  # noqa: F401
except ImportError as missing:
    raise ConfigurationError("sqs:// needs aiobotocore: pip install 'busline[sqs]'") from missing

from busline.transports.sqs.permissions import iam_policy
from busline.transports.sqs.transport import SqsTransport, from_url

__all__ = ["SqsTransport", "from_url", "iam_policy"]
