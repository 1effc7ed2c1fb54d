"""Which brokers hand every task to every worker, and which cannot be run at all.

The one place that knows it. Classes are recognised by package and name over the method resolution
order, so that subclasses count and none of the packages is imported for it. An own broker says so
with the attribute `taskiq_supervise_broadcast = True`; False takes a subclass out of the table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taskiq_supervise.broker.errors import UnsuitableBrokerError


@dataclass(frozen=True)
class Rule:
    """One line of the table."""

    package: str
    name: str
    reason: str
    applies: Callable[[Any], bool] = lambda _broker: True


BROADCAST = (
    Rule("taskiq", "ZeroMQBroker", "it publishes (PUB/SUB): each of N workers runs every task"),
    Rule("taskiq_redis", "PubSubBroker", "Redis PUBSUB delivers each task to every worker"),
    Rule("taskiq_redis", "PubSubSentinelBroker", "Redis PUBSUB delivers each task to every worker"),
    Rule(
        "taskiq_nats",
        "NatsBroker",
        "without a queue group, NATS delivers each task to every worker; set queue=",
        lambda broker: not getattr(broker, "queue", None),
    ),
)

UNSUITABLE = (
    Rule(
        "taskiq",
        "InMemoryBroker",
        "it runs tasks in the client's own process, so no worker ever gets one; "
        "use taskiq_supervise.SharedMemoryBroker, which needs no server either",
    ),
    Rule(
        "taskiq",
        "AsyncSharedBroker",
        "it only collects shared tasks and cannot listen; name the broker that runs them",
    ),
)


def broadcast_reason(broker: object) -> str | None:
    """Why every worker of this broker would get every task, or None if each task has one taker."""
    declared = getattr(broker, "taskiq_supervise_broadcast", None)
    if declared is True:
        return "it says so (taskiq_supervise_broadcast = True)"
    if declared is False:
        return None
    return _first_reason(BROADCAST, broker)


def check_suitable(broker: object) -> None:
    """Raises UnsuitableBrokerError for a broker whose tasks no worker can run."""
    reason = _first_reason(UNSUITABLE, broker)
    if reason is not None:
        raise UnsuitableBrokerError(broker=class_name(broker), reason=reason)


def class_name(value: object) -> str:
    """`package.Class`, as messages name it."""
    return f"{type(value).__module__.split('.')[0]}.{type(value).__qualname__}"


def _first_reason(rules: tuple[Rule, ...], broker: object) -> str | None:
    classes = {(cls.__module__.split(".")[0], cls.__qualname__) for cls in type(broker).__mro__}
    for rule in rules:
        if (rule.package, rule.name) in classes and rule.applies(broker):
            return rule.reason
    return None
