"""The wire client. What happens often - publishing, confirmations, deliveries, acks - is encoded and decoded here; for
the rest a channel of aio-pika's connection is asked. Nothing else of the transport knows a frame.

A `Lane` is a channel with that fast way, and a `Stream` the connection's bytes, of which it takes those frames out.
"""

from busline.transports.amqp.wire.lane import Lane, Outcome
from busline.transports.amqp.wire.methods import Bind, Consume, Declare, Delete, Get, Purge, Unbind
from busline.transports.amqp.wire.reading import Delivered, Properties
from busline.transports.amqp.wire.stream import Socket, Turn
from busline.transports.amqp.wire.writing import Header, encode

__all__ = [
    "Bind",
    "Consume",
    "Declare",
    "Delete",
    "Delivered",
    "Get",
    "Header",
    "Lane",
    "Outcome",
    "Properties",
    "Purge",
    "Socket",
    "Turn",
    "Unbind",
    "encode",
]
