"""Which brokers hand every task to every worker, and which cannot be run at all.

The one place that knows it. Classes are recognised by package and name over the method resolution
order, so that subclasses count and none of the packages is imported for it. An own broker says so
with the attribute `taskiq_supervise_broadcast = True`; False takes a subclass out of the table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taskiq_supervise.broker.errors import UnsuitableBrokerError


def _nowhere(_broker: Any) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Rule:
    """One line of the table."""

    package: str
    name: str
    reason: str
    applies: Callable[[Any], bool] = lambda _broker: True
    endpoints: Callable[[Any], tuple[str, ...]] = _nowhere
    """Where its messages come from, the same for everybody who gets the same messages; empty where
    nobody can know."""
    kicks_in_workers: bool = True
    """False: only its client side can send, a task cannot."""
    is_ours: bool = False
    """One process has to listen for it, and it is a server of ours."""


def _of_zeromq(broker: Any) -> tuple[str, ...]:
    return (_with_number(str(broker.sub_host)),)


def _of_redis(broker: Any) -> tuple[str, ...]:
    return (f"{_redis_server(broker)}/{broker.queue_name}",)


def _of_redis_sentinel(broker: Any) -> tuple[str, ...]:
    name = f"{broker.master_name}/{broker.queue_name}"
    return tuple(sorted(f"{_redis_server(each)}/{name}" for each in broker.sentinel.sentinels))


def _redis_server(client: Any) -> str:
    at = client.connection_pool.connection_kwargs
    host = at.get("path") or f"{at.get('host', 'localhost')}:{at.get('port', 6379)}"
    return _with_number(f"redis://{host}")


def _of_nats(broker: Any) -> tuple[str, ...]:
    servers = [broker.servers] if isinstance(broker.servers, str) else sorted(broker.servers)
    return tuple(f"{_with_number(server.rstrip('/'))}/{broker.subject}" for server in servers)


def _with_number(address: str) -> str:
    """The same for both names of the loopback interface; without a password, everybody sees it."""
    scheme, slashes, rest = address.rpartition("//")
    name, colon, port = rest.rpartition("@")[2].partition(":")
    return f"{scheme}{slashes}{'127.0.0.1' if name == 'localhost' else name}{colon}{port}"


_PUBSUB = "Redis PUBSUB delivers each task to every worker"

BROADCAST = (
    Rule(
        "taskiq_supervise",
        "ZeroMQBroker",
        "only one process can bind its address",
        is_ours=True,
    ),
    Rule(
        "taskiq",
        "ZeroMQBroker",
        "it publishes (PUB/SUB): each of N workers runs every task",
        endpoints=_of_zeromq,
        kicks_in_workers=False,
    ),
    Rule("taskiq_redis", "PubSubBroker", _PUBSUB, endpoints=_of_redis),
    Rule("taskiq_redis", "PubSubSentinelBroker", _PUBSUB, endpoints=_of_redis_sentinel),
    Rule(
        "taskiq_nats",
        "NatsBroker",
        "without a queue group, NATS delivers each task to every worker; set queue=",
        lambda broker: not getattr(broker, "queue", None),
        endpoints=_of_nats,
    ),
)

_SAYS_SO = Rule("", "", "it says so (taskiq_supervise_broadcast = True)")

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


def broadcast_rule(broker: object) -> Rule | None:
    """Why every worker of this broker would get every task, or None if each task has one taker."""
    declared = getattr(broker, "taskiq_supervise_broadcast", None)
    if declared is False:
        return None
    return _first(BROADCAST, broker) or (_SAYS_SO if declared is True else None)


def broadcast_reason(broker: object) -> str | None:
    """The same in words."""
    rule = broadcast_rule(broker)
    return None if rule is None else rule.reason


def check_suitable(broker: object) -> None:
    """Raises UnsuitableBrokerError for a broker whose tasks no worker can run."""
    rule = _first(UNSUITABLE, broker)
    if rule is not None:
        raise UnsuitableBrokerError(broker=class_name(broker), reason=rule.reason)


def class_name(value: object) -> str:
    """`package.Class`, as messages name it."""
    return f"{type(value).__module__.split('.')[0]}.{type(value).__qualname__}"


def _first(rules: tuple[Rule, ...], broker: object) -> Rule | None:
    classes = {(cls.__module__.split(".")[0], cls.__qualname__) for cls in type(broker).__mro__}
    for rule in rules:
        if (rule.package, rule.name) in classes and rule.applies(broker):
            return rule
    return None
