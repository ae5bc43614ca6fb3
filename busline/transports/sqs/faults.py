"""Every exception of the client library becomes one of ours, here."""

from __future__ import annotations

import asyncio

import aiohttp
from botocore import exceptions as aws
from botocore.parsers import ResponseParserError

from busline.errors import (
    BuslineError,
    ConfigurationError,
    ConnectionLost,
    MessageTooLarge,
    OutcomeUnknown,
    QueueNotFound,
)

LIBRARY = (aws.BotoCoreError, aws.ClientError, ResponseParserError, aiohttp.ClientError, OSError)
"""What its calls raise; a TimeoutError is an OSError. The parser's is of an answer that is none, such as the page of a
proxy in between."""

THROTTLED = frozenset(
    {"Throttling", "ThrottledRequest", "RequestThrottled", "TooManyRequests", "RequestLimitExceeded", "Throttled"}
    | {"SlowDown", "ServiceUnavailable", "KmsThrottled", "OverLimit"}
)
"""Certainly not carried out: to be asked again a little later."""
DENIED = frozenset({"AccessDenied", "AuthorizationError", "UnauthorizedOperation", "KmsAccessDenied", "Forbidden"})
"""A right that is missing. Nothing else is: expired or wrong credentials say nothing about rights."""
WRONG_KEYS = frozenset(
    {"InvalidClientTokenId", "UnrecognizedClient", "SignatureDoesNotMatch", "InvalidAccessKeyId", "AuthFailure"}
    | {"MissingAuthenticationToken", "IncompleteSignature", "OptInRequired", "InvalidSecurity"}
)
NOT_OURS = frozenset({"ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue", "QueueDoesNotExist"})
"""What a receipt handle is told when its message is no longer ours."""
_NEVER_SENT = (aws.EndpointConnectionError, aws.ConnectTimeoutError, aws.ProxyConnectionError, aws.SSLError)
_NO_CREDENTIALS = (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound, aws.NoRegionError)


class Denied(ConfigurationError):
    """A right is missing; `action` is what IAM calls it, to which a batch is the same as one."""

    def __init__(self, action: str, text: str, where: str) -> None:
        action = action.removesuffix("Batch")
        super().__init__(f"{where} does not permit {action}: {text}")
        self.action = action


class Throttled(ConnectionLost):
    """Refused for now, and certainly not carried out."""


class Refused(ConfigurationError):
    """SQS does not take the request as it is; `code` says why."""

    def __init__(self, code: str, text: str, where: str) -> None:
        super().__init__(f"{where} refuses: {code}: {text}")
        self.code = code


def code_of(code: str) -> str:
    """The plain name of an error, which comes with prefixes and suffixes according to the protocol."""
    short = code.rpartition(".")[2].rpartition("#")[2].removesuffix("Exception")
    return "QueueDoesNotExist" if short == "NonExistentQueue" else short


def translate(
    error: BaseException, where: str, action: str, *, queue: str = "", handed_over: bool = False
) -> BuslineError:
    """`handed_over`: SQS may have carried it out all the same, which the caller must be told."""
    if isinstance(error, BuslineError):
        return error
    if isinstance(error, aws.ClientError):
        told = error.response.get("Error", {})
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return refusal(
            *(str(told.get("Code", "")), str(told.get("Message", "")), where, action),
            queue=queue,
            status=status,
            handed_over=handed_over,
        )
    if isinstance(error, _NO_CREDENTIALS):
        return ConfigurationError(f"{where}: {error}")
    if isinstance(error, aws.ParamValidationError):
        return ConfigurationError(f"{where}: {action}: {error}")
    if handed_over and not isinstance(error, _NEVER_SENT):
        return OutcomeUnknown(f"{where} did not answer {action}, or the connection ended before it could")
    if isinstance(error, (asyncio.TimeoutError, aws.ReadTimeoutError, aws.ConnectTimeoutError)):
        return ConnectionLost(f"{where} does not answer {action}")
    return ConnectionLost(f"no connection to {where}: {str(error) or type(error).__name__}")


def refusal(
    code: str,
    text: str,
    where: str,
    action: str,
    *,
    queue: str = "",
    status: int = 400,
    handed_over: bool = False,
) -> BuslineError:
    """What SQS said no with."""
    code = code_of(code)
    if code == "QueueDoesNotExist":
        return QueueNotFound(queue, where)
    if code in DENIED:
        return Denied(action, text, where)
    if code in THROTTLED or status in (429, 503):
        return Throttled(f"{where} is too busy for {action}: {code} {text}")
    if code in WRONG_KEYS:
        return ConfigurationError(f"{where} does not accept the credentials: {code}: {text}")
    if status >= 500 or code in ("InternalError", "InternalFailure"):
        kind = OutcomeUnknown if handed_over else ConnectionLost
        return kind(f"{where} failed in {action}: {code} {text}")
    if code in ("ExpiredToken", "RequestExpired", "TokenRefreshRequired", "QueueDeletedRecently"):
        return ConnectionLost(f"{where}: {code}: {text}")
    if "must be shorter than" in text or code == "BatchRequestTooLong":
        limit = "".join(filter(str.isdigit, text.rpartition("shorter than")[2])) or "0"
        return MessageTooLarge(0, int(limit))
    return Refused(code, text, where)
