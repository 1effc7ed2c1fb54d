"""Where a worker takes its tasks from, and how its own find their way there."""

from collections.abc import Iterator
from typing import Any

import pytest
from taskiq import AsyncBroker, SimpleRetryMiddleware
from taskiq.brokers.zmq_broker import ZeroMQBroker
from taskiq.message import BrokerMessage
from tests.broker.conftest import SMALL, queue_of

from taskiq_supervise.broker import SharedMemoryBroker
from taskiq_supervise.broker.rule import broadcast_rule
from taskiq_supervise.ipc import MessageState
from taskiq_supervise.ipc.segment import check_name
from taskiq_supervise.worker.application import ApplicationError
from taskiq_supervise.worker.config import WorkerConfig
from taskiq_supervise.worker.feed import feed_for, feed_name, listens_for, take_from


class Declared(AsyncBroker):
    """One that says by itself that it publishes, and can send in a worker."""

    taskiq_supervise_broadcast = True

    def __init__(self) -> None:
        super().__init__()
        self.kicked: list[BrokerMessage] = []

    async def kick(self, message: BrokerMessage) -> None:
        self.kicked.append(message)

    async def listen(self) -> Any:
        raise AssertionError("a worker listens")
        yield b""


@pytest.fixture
def zeromq() -> Iterator[ZeroMQBroker]:
    broker = ZeroMQBroker("tcp://localhost:5599", "tcp://localhost:5599")
    yield broker
    broker.context.term()


def config(**options: Any) -> WorkerConfig:
    return WorkerConfig("app:broker", **{"instance": "app", **options})


def message(**labels: Any) -> BrokerMessage:
    return BrokerMessage(task_id="id", task_name="task", message=b"bytes", labels=labels)


def test_one_process_listens_to_a_broker_that_publishes(zeromq: ZeroMQBroker) -> None:
    listening = listens_for(zeromq, config())
    assert listening is not None
    assert listening.broker == "taskiq.ZeroMQBroker"
    assert "PUB/SUB" in listening.reason
    assert listening.endpoints == ("tcp://127.0.0.1:5599",)
    assert not listening.own


def test_the_option_says_otherwise(zeromq: ZeroMQBroker) -> None:
    assert listens_for(zeromq, config(single_listener=False)) is None

    class Plain(Declared):
        taskiq_supervise_broadcast = False

    assert listens_for(Plain(), config()) is None
    assert listens_for(Plain(), config(single_listener=True)) is not None


def test_shared_memory_has_no_listener_and_no_other_transport() -> None:
    broker = SharedMemoryBroker("feed-test")
    assert listens_for(broker, config()) is None
    assert feed_for(broker, config()) is broker
    with pytest.raises(ApplicationError, match=r"taskiq_supervise\.ZeroMQBroker"):
        listens_for(broker, config(transport="zmq"))


@pytest.mark.parametrize("instance", ["app", "ünï/code", "x" * 300, ""])
def test_a_feed_has_a_name_that_queues_can_have(instance: str) -> None:
    names = {feed_name(config(instance=instance, pool=pool)) for pool in ("", "a", "b", "ä", "ö")}
    assert len(names) == 5
    for name in names:
        check_name(name)
        assert len(name) <= 100
    assert feed_name(config(instance=instance)) == feed_name(config(instance=instance))


def test_endpoints_are_the_same_for_the_same_messages() -> None:
    class Nats:
        __module__ = "taskiq_nats.broker"
        __qualname__ = "NatsBroker"
        queue = None
        subject = "tasks"

        def __init__(self, servers: Any) -> None:
            self.servers = servers

    rule = broadcast_rule(Nats([]))
    assert rule is not None
    secret = rule.endpoints(Nats("nats://me:secret@localhost:4222"))
    assert secret == rule.endpoints(Nats(["nats://127.0.0.1:4222/"]))
    assert secret == ("nats://127.0.0.1:4222/tasks",)


@pytest.fixture
async def feed() -> Any:
    feed = SharedMemoryBroker("feed", geometry=SMALL)
    await feed.startup()
    yield feed
    await feed.shutdown()


async def test_a_worker_sends_into_the_feed_where_its_broker_cannot(
    feed: SharedMemoryBroker, zeromq: ZeroMQBroker
) -> None:
    take_from(zeromq, feed)
    await zeromq.kick(message(priority="nonsense", expires="0", delay="1"))
    (view,) = (await queue_of(feed)).messages()
    assert (view.ticket.task_id, view.state, view.priority) == ("id", MessageState.READY, 5)
    assert view.expires is None


async def test_a_retry_waits_for_its_delay(feed: SharedMemoryBroker, zeromq: ZeroMQBroker) -> None:
    take_from(zeromq, feed)
    await zeromq.kick(message(_retries="1", delay="60"))
    await zeromq.kick(message(_retries="1", delay="soon"))
    states = [view.state for view in (await queue_of(feed)).messages()]
    assert states == [MessageState.DELAYED, MessageState.READY]


async def test_a_broker_that_can_send_in_a_worker_does(feed: SharedMemoryBroker) -> None:
    broker = Declared().with_middlewares(SimpleRetryMiddleware())
    take_from(broker, feed)
    await broker.kick(message())
    assert len(broker.kicked) == 1
    assert not list((await queue_of(feed)).messages())


async def test_nobody_but_the_listener_listens(feed: SharedMemoryBroker) -> None:
    broker = Declared()

    @broker.task("task")
    async def task() -> None:
        return

    take_from(broker, feed)
    await feed.kick(message())
    messages = broker.listen()
    message_of_feed = await messages.__anext__()
    assert message_of_feed.data == b"bytes"
    await message_of_feed.ack()
    await messages.aclose()
