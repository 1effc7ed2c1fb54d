"""The context of a ZeroMQ broker of taskiq's, which is made where the application is imported.

That is before the fork, where it must not be used: threads and descriptors of ZeroMQ do not survive
one. So the process that starts the broker gives it a context of its own.
"""

import sys
from typing import Any

RECONNECT_MS = 50
BURST = 100_000
"""Messages."""

_inherited: list[Any] = []
"""Contexts of the process before the fork. Kept: their end would be a step in their use."""


def renew_context(broker: Any) -> None:
    """Before `broker.startup()`. Does nothing for brokers that have none."""
    if _has_context(broker):
        _inherited.append(broker.context)
        broker.context = type(broker.context)()


def listen_eagerly(broker: Any) -> None:
    """For the one process that listens, before `broker.startup()`.

    A client binds its address when it starts, and what it sends before somebody has subscribed is
    lost: so one that starts is looked for more often than by default, every 100 ms. And what comes
    in a burst waits here: at the client it would be dropped.
    """
    if _has_context(broker):
        zmq = sys.modules["zmq"]
        broker.context.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        broker.context.setsockopt(zmq.RCVHWM, BURST)


def close_context(broker: Any) -> None:
    """After `broker.shutdown()`: with sockets that it leaves open, and what they would still send.

    Nothing is sent by them in a worker or listener, so nothing is waited for either.
    """
    if _has_context(broker) and not broker.context.closed:
        broker.context.destroy(linger=0)


def _has_context(broker: Any) -> bool:
    zmq = sys.modules.get("zmq")  # a broker that has a context has imported it
    return zmq is not None and isinstance(getattr(broker, "context", None), zmq.Context)
