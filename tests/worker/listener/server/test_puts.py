"""What clients put reaches the queue once and in order, at its pace, and nobody else waits for
it."""

import asyncio
from dataclasses import replace

import pytest
from tests.worker.listener.server.conftest import (
    LIMITS,
    TCP,
    Client,
    Connect,
    Serve,
    ToyQueue,
    until,
)

from taskiq_supervise.broker.zeromq.protocol import (
    Accepted,
    AllAccepted,
    Batch,
    Bye,
    Code,
    Denied,
    Heard,
    Put,
    Refused,
    TakeBack,
    Wait,
    WhoAreYou,
)
from taskiq_supervise.ipc import PayloadTooLarge, QueueError, SegmentError
from taskiq_supervise.worker.listener.server import Server


async def test_a_message_is_taken_with_all_that_belongs_to_it(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    assert (await client.hello()).last == 0
    large = [bytes([number]) * 300_000 for number in range(3)]
    await client.say(Put(1, "a", large[0], (b"small", large[1], b"", large[2])))
    assert await client.hear() == Accepted(1, 1, 1)
    assert queue.accepted == [(client.id, 1, "a", large[0])]
    assert queue.buffers == [(b"small", large[1], b"", large[2])]
    assert server.received == 1


async def test_messages_of_a_client_keep_their_order(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    await client.hello()
    queue.has_room = False
    for number in range(1, 501):
        await client.put(number)
    await until(lambda: queue.trying == ["task 1"])
    queue.make_room()
    assert [(await client.accepted()).number for _ in range(500)] == list(range(1, 501))
    assert queue.numbers == list(range(1, 501))


async def test_a_batch_is_put_in_order_and_answered_at_once(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    await client.hello()
    await client.say(Batch(tuple(Put(number, f"task {number}", b"x") for number in range(1, 11))))
    answer = await client.hear_one()
    assert isinstance(answer, AllAccepted)
    assert [one.number for one in answer.answers] == list(range(1, 11))
    assert queue.numbers == list(range(1, 11))


async def test_a_batch_beyond_the_window_is_a_flood(
    serve: Serve, queue: ToyQueue, connect: Connect
) -> None:
    async with serve(limits=replace(LIMITS, window=4)) as server:
        client = connect(server)
        await client.hello()
        queue.blocked.add("stuck")
        await client.say(Batch(tuple(Put(number, "stuck", b"x") for number in range(1, 6))))
        answer = await client.hear()
        assert isinstance(answer, Denied)
        assert answer.code == Code.FLOOD


async def test_many_clients_put_at_once_and_each_keeps_its_order(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    clients = [connect(server) for _ in range(20)]

    async def work(client: Client) -> None:
        await client.hello()
        for first in range(1, 101, 10):
            for number in range(first, first + 10):
                await client.put(number)
            for number in range(first, first + 10):
                assert (await client.accepted()).number == number

    await asyncio.gather(*map(work, clients))
    for client in clients:
        numbers = [number for who, number, _, _ in queue.accepted if who == client.id]
        assert numbers == list(range(1, 101))


async def test_who_waits_for_room_keeps_nobody_else_waiting(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    first, second = connect(server), connect(server)
    await first.hello()
    queue.blocked.add("stuck")
    await first.put(1, "stuck")
    await first.put(2)
    await until(lambda: queue.trying == ["stuck"])
    await second.is_served()
    queue.end("done", b"result")
    await first.say(Wait(7, "done"))
    answer = await first.hear()
    assert getattr(answer, "request", None) == 7
    queue.make_room()
    assert [(await first.accepted()).number for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("what", ["messages", "bytes"])
async def test_who_sends_more_than_its_window_is_refused_and_forgotten(
    serve: Serve, queue: ToyQueue, connect: Connect, what: str
) -> None:
    limits = {"messages": (4, 1 << 20), "bytes": (100, 4000)}[what]
    async with serve(limits=replace(LIMITS, window=limits[0], window_bytes=limits[1])) as server:
        client, other = connect(server), connect(server)
        welcome = await client.hello()
        assert (welcome.window, welcome.window_bytes) == limits
        queue.blocked.add("stuck")
        for number in range(1, 6):
            await client.put(number, "stuck", data=bytes(900))
        answer = await client.hear()
        assert isinstance(answer, Denied)
        assert answer.code == Code.FLOOD
        assert server.sessions == 0
        await until(lambda: not queue.trying)
        await other.is_served()
        # It has learnt, and goes on where it was.
        queue.make_room()
        assert (await client.hello()).last == 0
        await client.put(1)
        assert (await client.accepted()).number == 1


async def test_one_message_may_be_larger_than_the_window(
    serve: Serve, queue: ToyQueue, connect: Connect
) -> None:
    async with serve(limits=replace(LIMITS, window_bytes=1000)) as server:
        client = connect(server)
        await client.hello()
        await client.put(1, data=bytes(100_000))
        assert (await client.accepted()).number == 1


async def test_what_was_accepted_before_is_not_put_again(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    await client.hello()
    for number in (1, 2, 3):
        await client.put(number)
    for _ in range(3):
        await client.accepted()
    client.reconnect()
    assert (await client.hello()).last == 3
    await client.put(3)
    await client.put(4)
    assert await client.hear() == Accepted(3)
    assert await client.hear() == Accepted(4, 4, 1)
    assert queue.numbers == [1, 2, 3, 4]
    assert server.sessions == 1
    assert server.received == 4


async def test_a_client_that_comes_again_takes_over_its_session(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    await client.hello()
    queue.has_room = False
    for number in (1, 2, 3):
        await client.put(number)
    await until(lambda: queue.trying == ["task 1"])
    again = connect(server)
    again.id = client.id
    assert (await again.hello()).last == 0
    for number in (1, 2, 3, 4):
        await again.put(number)
    queue.make_room()
    assert [(await again.accepted()).slot for _ in range(4)] == [1, 2, 3, 4]
    assert queue.numbers == [1, 2, 3, 4]
    assert server.sessions == 1
    await client.put(2)  # that connection is nobody's any more
    assert await client.hear() == WhoAreYou()
    await again.put(5)
    assert (await again.accepted()).number == 5


async def test_a_client_that_comes_again_and_again_doubles_and_loses_nothing(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    for turn in range(30):
        last = (await client.hello()).last
        queue.has_room = turn % 3 != 0
        for number in range(last + 1, last + 21):
            await client.put(number)
        if turn % 2:
            await client.accepted() if queue.has_room else await until(lambda: bool(queue.trying))
        queue.make_room()
        client.reconnect()
    assert queue.numbers == list(range(1, len(queue.numbers) + 1))
    assert (await client.hello()).last == len(queue.numbers) > 0


async def test_refused_messages_are_told_with_the_reason(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    await client.hello()
    queue.refuse = {"a": PayloadTooLarge("it is too large"), "b": QueueError("it makes no sense")}
    await client.put(1, "a")
    await client.put(2, "b")
    await client.put(3)
    assert await client.hear() == Refused(1, Code.TOO_LARGE, "it is too large")
    await client.say(Heard(1))
    assert await client.hear() == Refused(2, Code.INVALID, "it makes no sense")
    await client.say(Heard(2))
    assert (await client.accepted()).number == 3


async def test_a_refusal_that_was_not_heard_is_told_again(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    await client.hello()
    queue.refuse["bad"] = PayloadTooLarge("too large")
    await client.put(1)
    await client.put(2, "bad")
    await client.put(3)
    await until(lambda: "bad" not in queue.refuse)
    client.reconnect()
    assert (await client.hello()).last == 1
    queue.refuse["bad"] = PayloadTooLarge("too large")
    await client.put(2, "bad")
    await client.put(3)
    assert await client.hear() == Refused(2, Code.TOO_LARGE, "too large")
    await client.hears_nothing()
    assert queue.numbers == [1]
    await client.say(Heard(2))
    assert (await client.accepted()).number == 3
    client.reconnect()
    assert (await client.hello()).last == 3


async def test_no_listener_takes_a_refusal_that_was_not_heard_for_an_acceptance(
    serve: Serve, queue: ToyQueue, connect: Connect
) -> None:
    async with serve() as server:
        client = connect(server)
        await client.hello()
        queue.refuse["bad"] = QueueError("no room on the disk")
        await client.say(Batch(tuple(Put(n, "bad" if n == 2 else "good", b"") for n in (1, 2, 3))))
        await until(lambda: "bad" not in queue.refuse)
        await connect(server).is_served()
    # It knows of the client only what the queue does: were 3 in it, 2 would count as accepted.
    async with serve() as server:
        client = connect(server, id=client.id)
        assert (await client.hello()).last == 1


async def test_what_is_before_a_refusal_is_taken_and_what_is_behind_it_waits_for_all(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    await client.hello()
    queue.has_room = False
    await client.put(1)
    too_large = (bytes(1 << 20),) * 9
    for number in (2, 3):
        await client.say(Put(number, "large", b"", too_large))
        answer = await client.hear()
        assert isinstance(answer, Refused)
        assert (answer.number, answer.code) == (number, Code.TOO_LARGE)
    await client.put(4)
    queue.make_room()
    assert (await client.accepted()).number == 1
    await client.say(Heard(3))
    await client.hears_nothing()
    await client.say(TakeBack(4))  # not held back either
    answer = await client.hear()
    assert isinstance(answer, Refused)
    assert (answer.number, answer.code) == (4, Code.TAKEN_BACK)
    await client.put(5)
    await client.say(Heard(2))
    assert (await client.accepted()).number == 5
    assert queue.numbers == [1, 5]


async def test_who_confirms_no_refusal_is_told_of_as_many_as_its_window(
    serve: Serve, connect: Connect
) -> None:
    async with serve(limits=replace(LIMITS, window=4)) as server:
        client = connect(server)
        await client.hello()
        for number in range(1, 6):
            await client.say(Put(number, "large", b"", (bytes(1 << 20),) * 9))
        answers = [await client.hear() for _ in range(5)]
        assert [type(answer) for answer in answers] == [Refused] * 4 + [Denied]


async def test_a_process_that_is_short_of_something_tries_again(
    server: Server, queue: ToyQueue, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(server)
    await client.hello()
    queue.refuse["task 1"] = OSError(24, "Too many open files")
    await client.put(1)
    await client.put(2)
    assert [(await client.accepted()).number for _ in range(2)] == [1, 2]
    assert "Too many open files" in caplog.text


async def test_a_queue_that_is_damaged_ends_the_server(queue: ToyQueue, connect: Connect) -> None:
    server = Server(TCP, queue, LIMITS)
    server.bind()
    serving = asyncio.ensure_future(server.serve())
    client = connect(server)
    await client.hello()
    queue.refuse["task 1"] = SegmentError("the segment is damaged")
    await client.put(1)
    with pytest.raises(SegmentError, match="damaged"):
        await serving
    await server.close()


async def test_a_message_that_waits_can_be_taken_back(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    await client.hello()
    queue.has_room = False
    for number in (1, 2, 3, 4):
        await client.put(number)
    await until(lambda: queue.trying == ["task 1"])
    await client.say(TakeBack(3))
    await client.say(TakeBack(1))  # the one that waits for room
    for number in (3, 1):
        answer = await client.hear()
        assert isinstance(answer, Refused)
        assert (answer.number, answer.code) == (number, Code.TAKEN_BACK)
    await until(lambda: queue.trying == ["task 2"])
    queue.make_room()
    assert [(await client.accepted()).number for _ in range(2)] == [2, 4]
    await client.say(TakeBack(4))  # too late
    await client.say(TakeBack(77))
    await client.put(5)
    assert (await client.accepted()).number == 5
    assert queue.numbers == [2, 4, 5]


async def test_everything_can_be_taken_back_at_once(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    await client.hello()
    queue.has_room = False
    for number in range(1, 101):
        await client.put(number)
    await until(lambda: queue.trying == ["task 1"])
    for number in range(1, 101):
        await client.say(TakeBack(number))
    answers = [await client.hear() for _ in range(100)]
    assert {answer.number for answer in answers if isinstance(answer, Refused)} == set(
        range(1, 101)
    )
    await until(lambda: not queue.trying)
    queue.make_room()
    await client.put(101)
    assert (await client.accepted()).number == 101
    assert queue.numbers == [101]


async def test_draining_takes_nothing_more_and_ends_what_it_has(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client, stuck = connect(server), connect(server)
    await client.hello()
    await stuck.hello()
    queue.has_room = False
    queue.blocked.add("stuck")
    await client.put(1)
    await stuck.put(1, "stuck")
    await client.say(Wait(1, "slow"))
    await until(lambda: queue.trying == ["task 1", "stuck"] and queue.waiting == ["slow"])
    draining = asyncio.ensure_future(server.drain(0.5))
    assert await client.hear() == Bye()
    queue.has_room = True
    queue.end("slow", b"result")
    answers = [await client.hear(), await client.hear()]
    assert {type(answer).__name__ for answer in answers} == {"Accepted", "Ended"}
    await client.put(2)
    assert await client.hear() == Bye()
    await draining  # though one is still waiting for room
    newcomer = connect(server)
    await newcomer.put(1)
    assert await newcomer.hear() == WhoAreYou()
    assert queue.numbers == [1]
