"""Brokers that hand every task to every worker are known, wherever they come from."""

from typing import Any

import pytest
from taskiq import InMemoryBroker, async_shared_broker
from taskiq.brokers.zmq_broker import ZeroMQBroker

from taskiq_supervise.broker import (
    SharedMemoryBroker,
    UnsuitableBrokerError,
    broadcast_reason,
    check_suitable,
)
from taskiq_supervise.broker.rule import BROADCAST, broadcast_rule


def stand_in(module: str, name: str, **attributes: Any) -> Any:
    """An object of a class that goes by this name."""
    return type(name, (), {"__module__": module, "__qualname__": name, **attributes})()


def test_taskiqs_zeromq_broker_is_a_broadcast() -> None:
    broker = object.__new__(ZeroMQBroker)  # its constructor opens sockets
    assert "PUB/SUB" in str(broadcast_reason(broker))


def test_a_subclass_is_a_broadcast_too() -> None:
    class Own(ZeroMQBroker):
        pass

    assert broadcast_reason(object.__new__(Own)) is not None


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("taskiq_redis.redis_broker", "PubSubBroker"),
        ("taskiq_redis.redis_sentinel_broker", "PubSubSentinelBroker"),
        ("taskiq_nats.broker", "NatsBroker"),
    ],
)
def test_broadcasts_of_other_packages_are_known_without_importing_them(
    module: str, name: str
) -> None:
    assert broadcast_reason(stand_in(module, name, queue=None)) is not None


def test_nats_with_a_queue_group_is_none() -> None:
    assert broadcast_reason(stand_in("taskiq_nats.broker", "NatsBroker", queue="q")) is None


def test_only_taskiqs_zeromq_broker_cannot_send_in_a_worker() -> None:
    broker = object.__new__(ZeroMQBroker)
    broker.sub_host = "tcp://localhost:5555"
    rule = broadcast_rule(broker)
    assert rule is not None
    assert not rule.kicks_in_workers
    assert rule.endpoints(broker) == ("tcp://127.0.0.1:5555",)
    assert [each.name for each in BROADCAST if not each.kicks_in_workers] == ["ZeroMQBroker"]


def test_endpoints_name_server_and_channel_and_no_password() -> None:
    def redis(**where: Any) -> Any:
        pool = type("Pool", (), {"connection_kwargs": {"password": "secret", "db": 3, **where}})
        return {"connection_pool": pool, "queue_name": "tasks"}

    def endpoints(module: str, name: str, **attributes: Any) -> tuple[str, ...]:
        broker = stand_in(module, name, **attributes)
        rule = broadcast_rule(broker)
        assert rule is not None
        return rule.endpoints(broker)

    pubsub = ("taskiq_redis.redis_broker", "PubSubBroker")
    assert endpoints(*pubsub, **redis()) == ("redis://127.0.0.1:6379/tasks",)
    assert endpoints(*pubsub, **redis(host="h", port=1)) == ("redis://h:1/tasks",)
    assert endpoints(*pubsub, **redis(path="/run/r")) == ("redis:///run/r/tasks",)
    sentinel = stand_in("x", "Sentinel", sentinels=[stand_in("x", "R", **redis(host="h", port=1))])
    assert endpoints(
        "taskiq_redis.s", "PubSubSentinelBroker", sentinel=sentinel, master_name="m", queue_name="t"
    ) == ("redis://h:1/m/t",)
    servers = ["nats://me:secret@localhost:4222/", "b:1"]
    nats = endpoints("taskiq_nats.broker", "NatsBroker", servers=servers, subject="s", queue=None)
    assert nats == ("b:1/s", "nats://127.0.0.1:4222/s")


def test_brokers_with_one_taker_per_task_are_none() -> None:
    assert broadcast_reason(SharedMemoryBroker()) is None
    assert broadcast_reason(stand_in("taskiq_redis.redis_broker", "ListQueueBroker")) is None
    assert broadcast_reason(stand_in("somebody.elses", "PubSubBroker")) is None


def test_a_broker_can_say_for_itself() -> None:
    assert broadcast_reason(stand_in("own", "Own", taskiq_supervise_broadcast=True)) is not None
    quiet = stand_in("taskiq_redis.x", "PubSubBroker", taskiq_supervise_broadcast=False)
    assert broadcast_reason(quiet) is None


def test_an_in_memory_broker_is_refused_with_a_way_out() -> None:
    with pytest.raises(UnsuitableBrokerError, match=r"client's own process.*SharedMemoryBroker"):
        check_suitable(InMemoryBroker())


def test_the_shared_tasks_broker_is_refused() -> None:
    with pytest.raises(UnsuitableBrokerError, match="cannot listen"):
        check_suitable(async_shared_broker)


def test_others_are_suitable() -> None:
    check_suitable(SharedMemoryBroker())
