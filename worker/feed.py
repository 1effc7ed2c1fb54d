"""From which queue a worker takes its tasks.

A worker with a SharedMemoryBroker takes from its queue. A pool whose broker would hand every task
to every worker has one process that listens (`worker.listener`), and a queue in shared memory that
this one fills: the pool's feed. Other brokers are listened to by each worker.
"""

import hashlib
import re
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from taskiq_supervise.broker import listening
from taskiq_supervise.broker.errors import InvalidLabelError, UnsuitableBrokerError
from taskiq_supervise.broker.labels import Schedule
from taskiq_supervise.broker.rule import broadcast_rule, class_name
from taskiq_supervise.broker.shared_memory import SharedMemoryBroker
from taskiq_supervise.worker.application import ApplicationError

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker
    from taskiq.message import BrokerMessage

    from taskiq_supervise.broker.zeromq import ZeroMQBroker
    from taskiq_supervise.worker.config import WorkerConfig

_LONGEST_NAME = 100
_DIGEST = 8


@dataclass(frozen=True)
class Listening:
    """That one process listens for all workers, to what, and why."""

    broker: str
    """Its class, as `taskiq.ZeroMQBroker`."""
    reason: str
    endpoints: tuple[str, ...]
    """Addresses that no other supervisor on this host may listen to; empty where unknown."""
    own: bool
    """The broker is ours: the listener is the server of its clients."""
    notes: tuple[str, ...] = ()
    """Lines for the log."""


def listens_for(broker: "AsyncBroker", config: "WorkerConfig") -> Listening | None:
    """None: each worker listens for itself. Raises ApplicationError for what cannot be."""
    if isinstance(broker, SharedMemoryBroker):
        if config.transport == "zmq":
            raise ApplicationError(
                "invalid",
                "transport is zmq, but SharedMemoryBroker is shared memory, on the side of the "
                "clients too; use taskiq_supervise.ZeroMQBroker",
            )
        return None
    rule = broadcast_rule(broker)
    if rule is not None and rule.is_ours:
        if config.single_listener is False:
            raise ApplicationError(
                "invalid",
                f"{class_name(broker)} cannot do without a single listener: {rule.reason}",
            )
        return _of_ours(broker, rule.reason)
    if config.single_listener is False or (rule is None and not config.single_listener):
        return None
    if rule is None:
        return Listening(class_name(broker), "--single-listener says so", (), own=False)
    return Listening(class_name(broker), rule.reason, rule.endpoints(broker), own=False)


def _of_ours(broker: "AsyncBroker", reason: str) -> Listening:
    try:
        settings = _ours(broker).listener_settings()
    except UnsuitableBrokerError as error:
        raise ApplicationError("invalid", str(error)) from None
    return Listening(class_name(broker), reason, settings.endpoints, own=True, notes=settings.notes)


def _ours(broker: "AsyncBroker") -> "ZeroMQBroker":
    from taskiq_supervise.broker.zeromq import ZeroMQBroker

    assert isinstance(broker, ZeroMQBroker), "the table says so"
    return broker


def feed_name(config: "WorkerConfig") -> str:
    """The queue's name, which is the same for the supervisor's next start."""
    parts = [part for part in ("listener", config.instance, config.pool) if part]
    wanted = "-".join(parts)
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", wanted)
    if name == wanted and len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(wanted.encode()).hexdigest()[:_DIGEST]
    return f"{name[: _LONGEST_NAME - _DIGEST - 1]}-{digest}"


def feed_for(broker: "AsyncBroker", config: "WorkerConfig") -> SharedMemoryBroker | None:
    """The queue to take from: the broker itself, or one made here. None: the broker has its own."""
    if isinstance(broker, SharedMemoryBroker):
        return broker
    if listens_for(broker, config) is None:
        return None
    if config.transport == "zmq":
        from taskiq_supervise.worker.hub_feed import HubFeed

        return HubFeed(feed_name(config), most=config.max_async_tasks)
    return SharedMemoryBroker(feed_name(config))


def take_from(broker: "AsyncBroker", feed: SharedMemoryBroker) -> None:
    """Has a worker's broker take its messages from there. Before `broker.startup()`."""
    rule = broadcast_rule(broker)
    if rule is not None and rule.is_ours:
        _ours(broker).feed_from(feed)
    elif rule is not None and not rule.kicks_in_workers:
        broker.kick = partial(_kick, feed)  # type: ignore[method-assign]
    # For receivers with ways of their own. Nobody but the listener listens to the broker.
    broker.listen = partial(listening.messages, feed, broker)  # type: ignore[method-assign]


async def _kick(feed: SharedMemoryBroker, message: "BrokerMessage") -> None:
    """Sends a message from a worker, as if its client had, of a broker that cannot do that.

    Labels say what they say to that broker: nothing. But a retry waits for as long as its
    middleware wants, which without a server of its own has nobody else to see to it.
    """
    is_late = "_retries" in message.labels and "delay" in message.labels
    labels = {"delay": message.labels["delay"]} if is_late else {}
    try:
        Schedule.of(labels, time.time())
    except InvalidLabelError:
        labels = {}
    await feed.kick(message.model_copy(update={"labels": labels}))
