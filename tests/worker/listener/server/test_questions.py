"""Outcomes are told as soon as they are there, to everybody who asks, at the pace of who reads."""

from dataclasses import replace

import pytest
from taskiq.depends.progress_tracker import TaskProgress, TaskState
from tests.worker.listener.server.conftest import LIMITS, Connect, Serve, ToyQueue, until

from taskiq_supervise.broker.zeromq.protocol import (
    Alive,
    AskProgress,
    Bye,
    Cancel,
    Code,
    Ended,
    Failed,
    Heard,
    Look,
    Progress,
    Refused,
    Wait,
    WhoAreYou,
)
from taskiq_supervise.ipc import QueueError, Ticket
from taskiq_supervise.worker.listener.server import Server


async def test_an_outcome_is_told_as_soon_as_it_is_there(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    await client.hello()
    await client.say(Wait(1, "by id"))
    await client.say(Wait(2, Ticket(3, 4, "by ticket")))
    await until(lambda: len(queue.waiting) == 2)
    large = bytes(range(256)) * 2000
    queue.end("by ticket", b"data", b"small", large)
    answer = await client.hear()
    assert isinstance(answer, Ended)
    assert (answer.request, answer.outcome.data) == (2, b"data")
    assert [bytes(buffer) for buffer in answer.outcome.buffers] == [b"small", large]
    queue.end("by id", large)
    answer = await client.hear()
    assert isinstance(answer, Ended)
    assert (answer.request, answer.outcome.data) == (1, large)
    assert server.waits == 0


async def test_what_is_unknown_is_said_to_be(server: Server, connect: Connect) -> None:
    client = connect(server)
    await client.hello()
    for message in (Wait(1, "unknown 1"), Look(2, "unknown 2")):
        await client.say(message)
        answer = await client.hear()
        assert isinstance(answer, Failed)
        assert (answer.request, answer.code) == (message.request, Code.UNKNOWN)
    assert server.waits == 0


async def test_a_look_is_answered_at_once(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    await client.hello()
    await client.say(Look(1, "a"))
    answer = await client.hear()
    assert isinstance(answer, Failed)
    assert answer.code == Code.NOT_READY
    queue.end("a", b"result")
    await client.say(Look(2, "a"))
    answer = await client.hear()
    assert isinstance(answer, Ended)
    assert answer.outcome.data == b"result"


async def test_progress_is_told(server: Server, queue: ToyQueue, connect: Connect) -> None:
    client = connect(server)
    await client.hello()
    queue.said["a"] = TaskProgress(state=TaskState.STARTED, meta={"percent": 50})
    await client.say(AskProgress(1, "a"))
    await client.say(AskProgress(2, "b"))
    assert await client.hear() == Progress(1, TaskState.STARTED.value, {"percent": 50})
    assert await client.hear() == Progress(2)


async def test_a_wait_that_was_given_up_is_not_answered(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    await client.hello()
    await client.say(Wait(1, "a"))
    await client.say(Wait(2, "b"))
    await until(lambda: len(queue.waiting) == 2)
    await client.say(Cancel(1))
    await until(lambda: queue.waiting == ["b"])
    queue.end("a")
    queue.end("b")
    answer = await client.hear()
    assert isinstance(answer, Ended)
    assert answer.request == 2
    assert server.waits == 0


async def test_waits_end_with_their_connection_and_with_their_client(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    await client.hello()
    await client.say(Wait(1, "a"))
    await until(lambda: queue.waiting == ["a"])
    client.reconnect()
    await client.hello()
    await until(lambda: not queue.waiting)
    await client.say(Wait(2, "a"))
    await until(lambda: queue.waiting == ["a"])
    queue.end("a")
    answer = await client.hear()
    assert isinstance(answer, Ended)
    assert answer.request == 2
    await client.say(Wait(3, "b"))
    await client.say(Bye())
    await until(lambda: server.sessions == 0)
    await until(lambda: not queue.waiting)
    assert server.waits == 0


async def test_there_is_a_limit_on_waits(serve: Serve, queue: ToyQueue, connect: Connect) -> None:
    async with serve(limits=replace(LIMITS, waits=3, total_waits=5)) as server:
        first, second = connect(server), connect(server)
        for client, most in ((first, 3), (second, 2)):
            await client.hello()
            for request in range(most + 1):
                await client.say(Wait(request, f"{request}"))
            answer = await client.hear()
            assert isinstance(answer, Failed)
            assert (answer.request, answer.code) == (most, Code.TOO_MANY)
        assert server.waits == 5
        queue.end("0")
        for client in (first, second):
            assert isinstance(await client.hear(), Ended)
        assert server.waits == 3


async def test_an_outcome_that_cannot_be_read_now_is_told_later(
    server: Server, queue: ToyQueue, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(server)
    await client.hello()
    queue.end("a", b"result")
    for question in (Wait, Look):
        queue.unreadable = 3
        await client.say(question(1, "a"))
        answer = await client.hear()
        assert isinstance(answer, Ended)
        assert answer.outcome.data == b"result"
    assert "Too many open files" in caplog.text
    assert server.waits == 0


async def test_large_results_wait_for_a_client_that_does_not_read(
    serve: Serve, queue: ToyQueue, connect: Connect
) -> None:
    count, size = 60, 4 << 20
    async with serve(limits=replace(LIMITS, unsent_bytes=3 * size)) as server:
        slow, other = connect(server, rcvhwm=1), connect(server)
        await slow.hello()
        for number in range(count):
            queue.end(f"{number}", bytes(size))
            await slow.say(Wait(number, f"{number}"))
        await until(lambda: queue.looks >= count)
        assert server.waits > 0  # these are still in the queue
        await other.is_served()
        answers = [await slow.hear() for _ in range(count)]
        assert sorted(answer.request for answer in answers if isinstance(answer, Ended)) == list(
            range(count)
        )
        assert server.waits == 0


async def test_small_results_wait_for_a_client_that_does_not_read(
    serve: Serve, queue: ToyQueue, connect: Connect
) -> None:
    count, size = 600, 10_000
    async with serve(limits=replace(LIMITS, backlog=16)) as server:
        slow, other = connect(server, rcvhwm=1, rcvbuf=4096), connect(server)
        await slow.hello()
        for number in range(count):
            queue.end(f"{number}", bytes(size))
            await slow.say(Wait(number, f"{number}"))
        await until(lambda: queue.looks >= count)
        assert server.waits > 0
        await other.is_served()
        answers = [await slow.hear() for _ in range(count)]
        assert sorted(answer.request for answer in answers if isinstance(answer, Ended)) == list(
            range(count)
        )
        assert server.waits == 0


async def test_who_does_not_read_what_it_counts_on_has_to_come_again(
    serve: Serve, queue: ToyQueue, connect: Connect
) -> None:
    async with serve(limits=replace(LIMITS, backlog=8)) as server:
        slow, other = connect(server, rcvhwm=1, rcvbuf=4096), connect(server)
        await slow.hello()
        count = 0
        while server.connections:
            count += 1
            assert count < 10_000, "its answers are kept without end"
            queue.refuse[f"{count}"] = QueueError("no" * 8000)
            await slow.put(count, f"{count}")
            await until(lambda n=count: f"{n}" not in queue.refuse or not server.connections)  # type: ignore[misc]
            await slow.say(Heard(count))
        await other.is_served()
        answer = None
        while answer != WhoAreYou():
            await slow.say(Alive())
            answer = await slow.hear()
            assert isinstance(answer, (Refused, WhoAreYou))
        await slow.is_served()
