"""The server on a queue in shared memory, as in a listener."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.worker.listener.server.conftest import LIMITS, TCP, Connect, served, until

from taskiq_supervise.broker.zeromq.protocol import (
    Accepted,
    Code,
    Ended,
    Failed,
    Look,
    Put,
    Wait,
)
from taskiq_supervise.ipc import AsyncTaskQueue, Geometry, Role, TaskQueue, Ticket
from taskiq_supervise.worker.listener.intake import SegmentIntake
from taskiq_supervise.worker.listener.server import Server

SMALL = Geometry(slots=64, participants=64, blocks=((1024, 64), (16384, 64)))


@pytest.fixture
async def intake() -> AsyncIterator[SegmentIntake]:
    intake = await opened()
    yield intake
    await intake.close()


async def opened() -> SegmentIntake:
    queue = AsyncTaskQueue(TaskQueue.open("test", geometry=SMALL))
    await queue.start()
    return SegmentIntake(queue)


@pytest.fixture
async def worker(intake: SegmentIntake) -> AsyncIterator[AsyncTaskQueue]:
    queue = AsyncTaskQueue(TaskQueue.open("test", role=Role.WORKER, create=False))
    await queue.start()
    yield queue
    await queue.close()


async def test_a_task_goes_there_and_its_result_comes_back(
    intake: SegmentIntake, worker: AsyncTaskQueue, connect: Connect
) -> None:
    async with served(Server(TCP, intake, LIMITS)) as server:
        client = connect(server)
        await client.hello()
        for number, size in enumerate((10, 10_000, 3_000_000), 1):
            await client.say(Put(number, f"{number}", b"head", (bytes(size), b"tail")))
            accepted = await client.accepted()
            assert accepted.slot is not None
            await client.say(Wait(1, Ticket(accepted.slot, accepted.generation, f"{number}")))
            lease = await worker.claim()
            lease.start()
            assert bytes(lease.payload) == b"head"
            assert [bytes(buffer) for buffer in lease.buffers] == [bytes(size), b"tail"]
            await worker.complete(lease, b"result", (b"\1" * size,))
            answer = await client.hear()
            assert isinstance(answer, Ended)
            assert answer.outcome.data == b"result"
            assert b"".join(answer.outcome.buffers) == b"\1" * size


async def test_a_full_queue_keeps_putters_waiting_and_nobody_else(
    intake: SegmentIntake, worker: AsyncTaskQueue, connect: Connect
) -> None:
    async with served(Server(TCP, intake, LIMITS)) as server:
        first, second, asker = connect(server), connect(server), connect(server)
        for client in (first, second, asker):
            await client.hello()
        for number in range(1, 101):
            await first.put(number, f"first {number}")
            await second.put(number, f"second {number}")
        await asker.say(Look(1, "first 1"))
        answer = await asker.hear()
        while isinstance(answer, Failed) and answer.code == Code.UNKNOWN:
            await asker.say(Look(1, "first 1"))  # it was not there yet
            answer = await asker.hear()
        assert isinstance(answer, Failed)
        assert answer.code == Code.NOT_READY
        await until(lambda: intake.queue.queue.stats().free == 0 or server.received >= 56)
        assert server.received < 200
        taken: list[str] = []
        while len(taken) < 200:
            lease = await worker.claim()
            taken.append(lease.task_id)
            lease.start()
            lease.finish(keep=False)
        for client, name in ((first, "first"), (second, "second")):
            assert [task for task in taken if task.startswith(name)] == [
                f"{name} {number}" for number in range(1, 101)
            ]
            assert [(await client.accepted()).number for _ in range(100)] == list(range(1, 101))


async def test_another_listener_goes_on_from_the_last_number(
    intake: SegmentIntake, worker: AsyncTaskQueue, connect: Connect
) -> None:
    async with served(Server(TCP, intake, LIMITS)) as server:
        client = connect(server)
        await client.hello()
        for number in (1, 2, 3):
            await client.put(number)
            await client.accepted()
    await intake.close()
    successor = await opened()
    try:
        async with served(Server(TCP, successor, LIMITS)) as server:
            again = connect(server)
            again.id = client.id
            assert (await again.hello()).last == 3
            await again.put(3)
            await again.put(4)
            assert await again.hear() == Accepted(3)
            assert (await again.accepted()).slot is not None
    finally:
        await successor.close()
    tasks = [(await worker.claim()).task_id for _ in range(4)]
    assert tasks == ["task 1", "task 2", "task 3", "task 4"]
    assert worker.queue.stats().ready == 0


@pytest.mark.parametrize(("slot", "generation"), [(64, 1), (2**32 - 2, 1), (5, 2**63 - 1), (0, 0)])
async def test_tickets_that_were_made_up_are_unknown(
    intake: SegmentIntake, connect: Connect, slot: int, generation: int
) -> None:
    async with served(Server(TCP, intake, LIMITS)) as server:
        client = connect(server)
        await client.hello()
        for question in (Wait, Look):
            await client.say(question(1, Ticket(slot, generation, "made up")))
            answer = await client.hear()
            assert isinstance(answer, Failed)
            assert answer.code == Code.UNKNOWN
        await client.is_served()


async def test_clients_that_come_and_go_while_the_queue_is_full_double_nothing(
    intake: SegmentIntake, worker: AsyncTaskQueue, connect: Connect
) -> None:
    taken: list[str] = []

    async def work() -> None:
        while True:
            lease = await worker.claim()
            taken.append(lease.task_id)
            lease.start()
            lease.finish(keep=False)
            await asyncio.sleep(0)

    async with served(Server(TCP, intake, LIMITS)) as server:
        clients = [connect(server) for _ in range(4)]

        async def send(name: int) -> None:
            client, last = clients[name], 0
            while last < 200:
                last = (await client.hello()).last
                for number in range(last + 1, min(last + 60, 200) + 1):
                    await client.put(number, f"{name} {number}")
                if last < 200:
                    await client.accepted()  # and then it goes away with the rest open
                client.reconnect()

        working = asyncio.ensure_future(work())
        await asyncio.gather(*map(send, range(4)))
        await until(lambda: len(taken) >= 800)
        working.cancel()
    for name in range(4):
        mine = [task for task in taken if task.startswith(f"{name} ")]
        assert mine == [f"{name} {number}" for number in range(1, 201)]
