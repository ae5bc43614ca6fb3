"""Every exception of the client library becomes one of ours, here."""

from __future__ import annotations

import asyncio
import ssl

from aiormq import exceptions as amqp

from busline.errors import BuslineError, ConfigurationError, ConnectionLost, OutcomeUnknown

LIBRARY = (amqp.AMQPError, OSError, RuntimeError, ValueError, asyncio.CancelledError)
"""What its calls raise; a RuntimeError from a closed connection, a ValueError from an encoder."""


def was_cancelled(error: BaseException) -> bool:
    """Was this very task cancelled? The library also raises a bare CancelledError when a heartbeat is missed."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def translate(error: BaseException, where: str, *, handed_over: bool = False) -> BuslineError:
    """`handed_over`: the broker may have what was sent, so its fate is unknown."""
    if isinstance(error, BuslineError):
        return error
    if isinstance(error, amqp.ChannelAccessRefused):
        return ConfigurationError(f"{where} refuses: {reason(error)}")
    if isinstance(error, amqp.ChannelPreconditionFailed):
        return ConfigurationError(f"{where} refuses: {reason(error)}")
    if handed_over:
        return OutcomeUnknown(f"{where} did not confirm in time, or the connection ended before it could")
    return ConnectionLost(f"no connection to {where}: {reason(error)}")


def refusal(error: BaseException, where: str, user: str) -> BuslineError:
    """Why connecting failed."""
    if isinstance(error, (amqp.ProbableAuthenticationError, amqp.AuthenticationError)):
        return ConfigurationError(f"{where} refuses user {user!r}: wrong name or password, or not allowed from here")
    if isinstance(error, (amqp.ConnectionNotAllowed, amqp.ConnectionClosed)) and "530" in f"{error.args} {error!r}":
        return ConfigurationError(f"{where} refuses user {user!r}: {reason(error)}")
    if isinstance(error, amqp.ConnectionClosed) and "NOT_ALLOWED" in repr(error):
        return ConfigurationError(f"{where} refuses user {user!r}: {reason(error)}")
    tls = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(tls, ssl.SSLCertVerificationError):
        return ConfigurationError(f"{where} has a certificate that is not trusted: {tls.verify_message}")
    if isinstance(error, TimeoutError):
        return ConnectionLost(f"{where} does not answer")
    return ConnectionLost(f"no connection to {where}: {reason(error)}")


def reason(error: BaseException) -> str:
    """What the broker, or the operating system, said."""
    texts = [str(part) for part in error.args if part not in (None, "")]
    return ": ".join(texts) or type(error).__name__
