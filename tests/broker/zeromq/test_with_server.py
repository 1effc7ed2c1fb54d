"""Clients against the listener's own server, with a queue and a worker behind it."""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from tests.broker.conftest import SMALL, Working, stats, until
from tests.broker.zeromq.conftest import message
from tests.conftest import descriptors
from zmq.utils import garbage

from taskiq_supervise.broker import (
    CloudpickleSerializer,
    ConnectionDeniedError,
    ListenerUnreachableError,
    MessageRefusedError,
    MessageTooLargeError,
    QueueFullError,
    SharedMemoryBroker,
)
from taskiq_supervise.broker.zeromq import ZeroMQBroker
from taskiq_supervise.broker.zeromq.connection import Connection
from taskiq_supervise.broker.zeromq.keys import KeyPair
from taskiq_supervise.ipc import AsyncTaskQueue, QueueError, TaskQueue
from taskiq_supervise.worker.listener.intake import Incoming, SegmentIntake
from taskiq_supervise.worker.listener.server import Server

# libuv keeps a pipe from a process's first loop on: here it is made before descriptors are counted.
uvloop.new_event_loop().close()


@asynccontextmanager
async def serving(broker: ZeroMQBroker) -> AsyncIterator[Server]:
    """What the listener of a pool with this broker does."""
    queue = AsyncTaskQueue(TaskQueue.open("feed", geometry=SMALL))
    await queue.start()
    server = Server(broker.listener_settings(), SegmentIntake(queue))
    server.bind()
    serve = asyncio.create_task(server.serve())
    try:
        yield server
    finally:
        await server.close()
        await serve
        await queue.close()


@pytest.fixture
async def feed() -> AsyncIterator[SharedMemoryBroker]:
    """The workers' side; it knows the tasks by their names."""
    feed = SharedMemoryBroker("feed", geometry=SMALL)
    ran: Counter[str] = feed.state.setdefault("ran", Counter())

    @feed.task("double")
    async def double(x: Any) -> Any:
        return x * 2

    @feed.task("note")
    async def note(name: str) -> None:
        ran[name] += 1

    yield feed
    await feed.shutdown()
    garbage.gc.stop()


def free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def client_of(address: str, **options: Any) -> tuple[ZeroMQBroker, Any, Any]:
    """A broker, and its tasks `double` and `note`."""
    broker = ZeroMQBroker(address, **options)

    @broker.task("double")
    async def double(x: Any) -> Any: ...

    @broker.task("note")
    async def note(name: str) -> None: ...

    return broker, double, note


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    KeyPair.new().save(tmp_path, "server")
    KeyPair.new().save(tmp_path, "client", public_folder=tmp_path / "clients")
    return tmp_path


def keyed(keys: Path, **other: Any) -> dict[str, Any]:
    return {
        "server_secret_key": keys / "server.key_secret",
        "server_public_key": keys / "server.key",
        "client_secret_key": keys / "client.key_secret",
        "client_keys": keys / "clients",
        **other,
    }


@pytest.mark.parametrize("transport", ["ipc", "tcp", "tcp6", "curve"])
async def test_tasks_run_and_their_results_come_back(
    transport: str, endpoint: str, keys: Path, feed: SharedMemoryBroker, working: Working
) -> None:
    address = {
        "ipc": endpoint,
        "tcp": f"tcp://127.0.0.2:{free_port('127.0.0.2')}",
        "tcp6": f"tcp://[::1]:{free_port('::1')}",
        "curve": f"tcp://127.0.0.1:{free_port('127.0.0.1')}",
    }[transport]
    options = keyed(keys) if transport == "curve" else {}
    broker, double, _ = client_of(address, **options)
    async with working(feed), serving(broker), broker:
        tasks = [await double.kiq(number) for number in range(50)]
        results = [await task.wait_result(timeout=10) for task in tasks]
        assert [result.return_value for result in results] == [2 * n for n in range(50)]
        assert await tasks[7].is_ready()
        assert (await tasks[7].get_result()).return_value == 14
        large = await double.kiq("x" * 3_000_000)
        assert len((await large.wait_result(timeout=10)).return_value) == 6_000_000


async def test_large_buffers_travel_as_frames_of_their_own_and_can_be_written_to(
    endpoint: str, feed: SharedMemoryBroker, working: Working
) -> None:
    numpy = pytest.importorskip("numpy")
    broker, double, _ = client_of(endpoint)
    for each in (broker, feed):
        each.with_serializer(CloudpickleSerializer())
    async with working(feed), serving(broker), broker:
        array = numpy.arange(1_000_000)
        result = await (await double.kiq(array)).wait_result(timeout=10)
        assert (result.return_value == 2 * array).all()
        result.return_value[0] = 1


async def test_clients_of_several_loops_use_one_broker(
    endpoint: str, feed: SharedMemoryBroker, working: Working
) -> None:
    broker, double, _ = client_of(endpoint)

    async def on_its_own_loop(x: int) -> Any:
        async with broker:
            return (await (await double.kiq(x)).wait_result(timeout=10)).return_value

    async with working(feed), serving(broker) as server, broker:
        results = await asyncio.gather(
            asyncio.to_thread(uvloop.run, on_its_own_loop(1)),
            asyncio.to_thread(asyncio.run, on_its_own_loop(2)),
            on_its_own_loop(3),
        )
        assert list(results) == [2, 4, 6]
        await until(lambda: server.sessions == 1)  # the others have said goodbye


async def test_a_forked_child_has_a_connection_of_its_own(
    endpoint: str, feed: SharedMemoryBroker, working: Working
) -> None:
    broker, double, note = client_of(endpoint)

    async def child() -> None:
        async with broker:
            await note.kiq("child")

    async with working(feed), serving(broker), broker:
        await note.kiq("parent")
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                asyncio.events._set_running_loop(None)
                asyncio.run(child())
                status = 0
            finally:
                os._exit(status)
        assert await asyncio.to_thread(os.waitpid, pid, 0) == (pid, 0)
        await note.kiq("parent again")
        assert (await (await double.kiq(4)).wait_result(timeout=10)).return_value == 8
    assert feed.state["ran"] == {"parent": 1, "child": 1, "parent again": 1}


async def test_a_loop_per_call_costs_no_descriptors(
    endpoint: str, feed: SharedMemoryBroker
) -> None:
    broker, _, note = client_of(endpoint)

    def call(count: int) -> int:
        for number in range(count):
            asyncio.run(note.kiq(str(number)))
        return len(descriptors())

    async with serving(broker):
        await asyncio.to_thread(asyncio.run, broker.startup())
        begin = await asyncio.to_thread(call, 2)
        assert await asyncio.to_thread(call, 20) <= begin
        await asyncio.to_thread(asyncio.run, broker.shutdown())


async def test_servers_come_and_go_and_each_task_is_run_once(
    endpoint: str, feed: SharedMemoryBroker, working: Working
) -> None:
    clients = [client_of(endpoint) for _ in range(3)]
    sent: Counter[str] = Counter()

    async def send(who: int, note: Any) -> None:
        for number in range(150):
            await note.kiq(f"{who}-{number}")
            sent[f"{who}-{number}"] += 1

    async with working(feed):
        for broker, _, _ in clients:
            await broker.startup()  # nobody is there yet
        sending = [asyncio.create_task(send(who, note)) for who, (_, _, note) in enumerate(clients)]
        for part in range(1, 5):
            async with serving(clients[0][0]):
                await until(lambda part=part: len(sent) >= part * 90)  # type: ignore[misc]
        async with serving(clients[0][0]):
            await asyncio.gather(*sending)
            await until(lambda: feed.state["ran"].total() >= 450)
        for broker, _, _ in clients:
            await broker.shutdown()
    assert feed.state["ran"] == sent


async def test_a_full_queue_makes_kiq_wait(
    endpoint: str, feed: SharedMemoryBroker, working: Working
) -> None:
    broker, _, note = client_of(endpoint)
    impatient, _, one_more = client_of(endpoint, kiq_timeout=0.1)
    accepted = 0
    await feed.startup()

    async def until_it_is_full() -> None:
        nonlocal accepted
        while True:
            await one_more.kiq("more")
            accepted += 1

    async with serving(broker), broker, impatient:
        sending = [asyncio.create_task(note.kiq(str(number))) for number in range(400)]
        with pytest.raises(QueueFullError, match="did not accept the task; start more workers"):
            await until_it_is_full()
        assert (await stats(feed)).ready == accepted + sum(task.done() for task in sending) < 400
        async with working(feed):
            await asyncio.gather(*sending)
            await until(lambda: feed.state["ran"].total() >= 400 + accepted)
    expected = {str(number): 1 for number in range(400)}
    assert feed.state["ran"] == Counter({**expected, "more": accepted})


async def test_what_is_too_large_for_the_listener_is_refused(
    endpoint: str, feed: SharedMemoryBroker
) -> None:
    broker = ZeroMQBroker(endpoint, max_message=100_000)
    async with serving(broker), broker:
        with pytest.raises(MessageTooLargeError, match="takes 100000 bytes"):
            await broker.kick(message("large", bytes(200_000)))
        await broker.kick(message("small"))


async def test_what_the_queue_refuses_keeps_nothing_from_being_accepted(
    endpoint: str, feed: SharedMemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = SegmentIntake.accept

    async def accept_some(self: SegmentIntake, message: Incoming, sender: Any = None) -> Any:
        if message.task_id in {"2", "3", "7"}:
            raise QueueError("no room on the disk")
        return await accept(self, message, sender)

    monkeypatch.setattr(SegmentIntake, "accept", accept_some)
    broker = ZeroMQBroker(endpoint)
    async with serving(broker) as server, broker:
        results = await asyncio.gather(
            *(broker.kick(message(str(n))) for n in range(12)), return_exceptions=True
        )
        refused = [n for n, result in enumerate(results) if result is not None]
        assert refused == [2, 3, 7]
        assert {type(results[n]) for n in refused} == {MessageRefusedError}
        assert server.received == 9


async def test_strangers_are_refused_at_once_and_told_why(
    keys: Path, feed: SharedMemoryBroker
) -> None:
    address = f"tcp://127.0.0.1:{free_port('127.0.0.1')}"
    server = ZeroMQBroker(address, **keyed(keys))
    KeyPair.new().save(keys, "stranger")
    KeyPair.new().save(keys, "other-server")
    async with serving(server):
        stranger = ZeroMQBroker(
            address, **keyed(keys, client_secret_key=keys / "stranger.key_secret")
        )
        async with stranger:
            with pytest.raises(ConnectionDeniedError, match="does not know this client's key"):
                await stranger.kick(message("a"))
            public = (keys / "stranger.key").read_text()
            (keys / "clients" / "stranger.key").write_text(public)
            here = await stranger.connection()
            assert isinstance(here, Connection)
            await until(lambda: here.is_connected)
            await stranger.kick(message("now it is known"))
        plain = ZeroMQBroker(address)
        async with plain:
            with pytest.raises(ConnectionDeniedError, match="one side has keys and the other"):
                await plain.kick(message("b"))
        mistaken = ZeroMQBroker(
            address, **keyed(keys, server_public_key=keys / "other-server.key", kiq_timeout=0.5)
        )
        async with mistaken:
            with pytest.raises(ListenerUnreachableError, match="server_public_key"):
                await mistaken.kick(message("c"))
