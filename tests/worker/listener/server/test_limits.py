"""Whatever a client sends or leaves out, the others are served, and nothing grows without end."""

import asyncio
import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest
from tests.worker.listener.server.conftest import (
    LIMITS,
    PATIENCE,
    TCP,
    Connect,
    Serve,
    ToyQueue,
    until,
)

from taskiq_supervise.broker.zeromq.protocol import (
    Alive,
    Code,
    Denied,
    Heard,
    Hello,
    Look,
    Put,
    Refused,
    Wait,
    Welcome,
    WhoAreYou,
    encode_from_client,
)
from taskiq_supervise.worker.listener.gate import Promises, own_memory
from taskiq_supervise.worker.listener.server import Server, ServerError

HEARTBEAT = 0.1
MB = 1 << 20
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b"\x02A"], Code.VERSION),
        ([b"\x00"], Code.MALFORMED),
        ([b""], Code.MALFORMED),
        ([b"\x01?"], Code.MALFORMED),
        ([b"\x01A", b""], Code.MALFORMED),
        ([b"\x01P", b"12345678"], Code.MALFORMED),
        ([b"\x01P" + bytes(8) + b"\x02\0\0id"], Code.MALFORMED),
        ([b"\x01H", bytes(16), b"{"], Code.MALFORMED),
        ([b"\x01W", bytes(8), b"id", b"123"], Code.MALFORMED),
    ],
)
async def test_what_is_no_message_is_answered_so_and_its_sender_forgotten(
    server: Server, connect: Connect, frames: list[bytes], code: str
) -> None:
    stranger, client = connect(server), connect(server)
    await stranger.send(frames)
    await client.hello()
    await client.send(frames)
    for damaged in (stranger, client):
        answer = await damaged.hear()
        assert isinstance(answer, Denied)
        assert answer.code == code
        assert answer.text
    assert server.sessions == 0
    await client.is_served()


async def test_who_has_not_said_hello_is_asked_who_it_is_once(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    for number in range(1, 2000):
        await client.put(number)
    assert await client.hear() == WhoAreYou()
    await client.hears_nothing()
    assert queue.accepted == []
    await client.is_served()


async def test_a_frame_that_is_too_large_ends_its_connection(
    server: Server, connect: Connect
) -> None:
    client, other = connect(server, reconnect_ivl=-1), connect(server)
    await client.hello()
    await client.put(1, data=bytes(TCP.max_message + 1))
    await other.is_served()
    await client.say(Alive())
    await client.hears_nothing()


async def test_a_message_that_is_too_large_is_refused(
    server: Server, queue: ToyQueue, connect: Connect
) -> None:
    client = connect(server)
    await client.hello()
    await client.say(Put(1, "a", b"", (bytes(MB),) * 9))
    await client.say(Put(2, "b", b"", (b"",) * 65_600))
    for number in (1, 2):
        answer = await client.hear()
        assert isinstance(answer, Refused)
        assert (answer.number, answer.code) == (number, Code.TOO_LARGE)
        await client.say(Heard(number))
    await client.put(3)
    assert (await client.accepted()).number == 3
    assert queue.numbers == [3]
    await client.send([*encode_from_client(Hello(client.id)), *[bytes(MB)] * 9])
    answer = await client.hear()
    assert isinstance(answer, Denied)
    assert answer.code == Code.MALFORMED


async def test_a_flood_ends_with_its_client(
    serve: Serve, queue: ToyQueue, connect: Connect
) -> None:
    async with serve(limits=replace(LIMITS, window=64)) as server:
        client, other = connect(server, sndhwm=0), connect(server)
        await client.hello()
        queue.blocked.add("flood")
        before = memory()
        for number in range(1, 20_000):
            await client.put(number, "flood", bytes(5000))
        answer = await client.hear()
        assert isinstance(answer, Denied)
        assert answer.code == Code.FLOOD
        await other.is_served()
        await client.hears_nothing()
        assert server.sessions == 1
        assert queue.trying == []
        # What libzmq holds of the client's own, who is here as well, is not the server's.
        assert memory() - before < 120 * MB


async def test_windows_become_smaller_when_there_are_many() -> None:
    limits = replace(LIMITS, total_bytes=64 * MB, window_bytes=8 * MB, least_window_bytes=1000)
    promises = Promises(limits)
    sizes = [promises.make() for _ in range(1000)]
    assert sizes[:5] == [8 * MB] * 5
    assert sizes[-1] == 1000
    assert sum(sizes) < limits.total_bytes + 1000 * limits.least_window_bytes
    for size in sizes:
        promises.end(size)
    assert promises.make() == 8 * MB


async def test_there_is_a_limit_on_clients_and_idle_ones_make_room(
    serve: Serve, queue: ToyQueue, connect: Connect
) -> None:
    async with serve(limits=replace(LIMITS, clients=2, heartbeat=HEARTBEAT)) as server:
        busy, idle, newcomer = connect(server), connect(server), connect(server)
        await busy.hello()
        await busy.say(Wait(1, "a"))
        await idle.hello()
        await until(lambda: queue.waiting == ["a"])
        deadline = time.monotonic() + PATIENCE
        answers = set()
        while Welcome not in answers:
            assert time.monotonic() < deadline
            await busy.say(Alive())
            await newcomer.say(Hello(newcomer.id))
            answer = await newcomer.hear()
            answers.add(type(answer))
            assert not isinstance(answer, Denied) or answer.code == Code.FULL
        assert answers == {Denied, Welcome}
        assert server.sessions == 2
        queue.end("a")
        await busy.hear()
        await idle.say(Alive())
        assert await idle.hear() == WhoAreYou()


async def test_a_connection_has_one_client_at_a_time(server: Server, connect: Connect) -> None:
    client = connect(server)
    for _ in range(100):
        client.id = os.urandom(16)
        await client.hello()
    assert server.sessions == server.connections == 1


async def test_both_sides_say_that_they_are_there(serve: Serve, connect: Connect) -> None:
    async with serve() as server:
        client = connect(server)
        assert (await client.hello()).heartbeat == LIMITS.heartbeat
        await client.say(Alive())
        await client.hear_alive()
    async with serve(limits=replace(LIMITS, heartbeat=HEARTBEAT)) as server:
        client = connect(server)
        await client.hello()
        await client.hear_alive()  # without being asked


async def test_who_says_nothing_for_three_heartbeats_is_forgotten(
    serve: Serve, queue: ToyQueue, connect: Connect
) -> None:
    async with serve(limits=replace(LIMITS, heartbeat=HEARTBEAT)) as server:
        silent, alive = connect(server), connect(server)
        await silent.hello()
        await silent.say(Wait(1, "a"))
        await alive.hello()
        while server.sessions == 2:
            await alive.say(Alive())
            await asyncio.sleep(HEARTBEAT / 4)
        await until(lambda: not queue.waiting)
        await silent.say(Look(2, "a"))
        assert await silent.hear() == WhoAreYou()
        await alive.is_served()


async def test_a_server_that_was_late_itself_forgets_nobody(serve: Serve, connect: Connect) -> None:
    async with serve(limits=replace(LIMITS, heartbeat=0.2)) as server:
        client = connect(server)
        await client.hello()
        await client.hear_alive()
        time.sleep(1)  # noqa: ASYNC251 - the loop stands still
        await client.hear_alive()
        assert server.sessions == server.connections == 1


async def test_connections_that_say_nothing_are_closed(serve: Serve, connect: Connect) -> None:
    async with serve(limits=replace(LIMITS, handshake=0.3)) as server:
        address = address_of(server)
        client = connect(server)
        await client.is_served()
        before = descriptors()
        raw = [socket.create_connection(address) for _ in range(50)]
        try:
            await client.is_served()
            for connection in raw:
                connection.settimeout(10)
                greeting = b"-"
                while greeting:
                    greeting = await asyncio.to_thread(connection.recv, 4096)
        finally:
            for connection in raw:
                connection.close()
        await until(lambda: descriptors() <= before)


async def test_the_log_names_some_of_those_who_are_refused(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(limits=replace(LIMITS, heartbeat=1)) as server:
        client = connect(server)
        for _ in range(50):
            await client.hello()
            await client.send([b"damaged"])
            assert isinstance(await client.hear(), Denied)
        await client.is_served()
        await until(lambda: "more lines like these" in caplog.text)
        assert caplog.text.count("is refused") < 50


async def test_a_server_whose_memory_grows_gives_up(queue: ToyQueue) -> None:
    server = Server(TCP, queue, replace(LIMITS, memory=1, heartbeat=HEARTBEAT))
    server.bind()
    with pytest.raises(ServerError, match="memory"):
        await server.serve()
    await server.close()


async def test_a_message_that_never_ends_ends_the_server_before_the_memory(
    queue: ToyQueue,
) -> None:
    """libzmq keeps it to itself until it is whole, and has no limit for that."""
    limits = replace(LIMITS, memory=own_memory() + 100 * MB, heartbeat=1)
    server = Server(TCP, queue, limits)
    server.bind()
    serving = asyncio.ensure_future(server.serve())

    def send() -> None:
        frames = b"".join(b"\x03" + struct.pack(">Q", 65536) + bytes(65536) for _ in range(16))
        with socket.create_connection(address_of(server)) as connection:
            connection.sendall(GREETING + READY)
            answer = b""
            while b"READY" not in answer:
                answer += connection.recv(4096)
            for _ in range(150):
                connection.sendall(frames)
            while not serving.done():
                connection.sendall(frames[: 65536 + 9])
                time.sleep(0.01)  # a heartbeat may be far, and the machine small

    sending = asyncio.ensure_future(asyncio.to_thread(send))
    await asyncio.wait([serving, sending], return_when=asyncio.FIRST_COMPLETED)
    assert serving.done()
    with pytest.raises(ServerError, match="memory"):
        await serving
    await sending
    await server.close()


SEED = int(os.environ.get("FUZZ_SEED", "5"))


async def test_garbage_changes_nothing_for_others(
    serve: Serve, queue: ToyQueue, connect: Connect
) -> None:
    """Damaged messages of all kinds at the ROUTER, and bytes of all kinds at its port."""
    limits = replace(LIMITS, window=64, clients=16, handshake=0.5, waits=100)
    async with serve(replace(TCP, max_message=MB), limits) as server:
        chance = random.Random(SEED)
        clients = [connect(server) for _ in range(8)]
        good = connect(server)
        await good.is_served()
        before = memory()
        for frames in damaged_messages(chance, 4000):
            client = chance.choice(clients)
            if chance.random() < 0.3:
                await client.say(Hello(client.id))
            await client.send(frames)
            if chance.random() < 0.02:
                client.reconnect()
        await asyncio.to_thread(throw_bytes, chance, address_of(server), 60)
        await good.is_served()
        for client in clients:
            client.reconnect()
            client.id = os.urandom(16)
            await client.is_served()
        assert server.sessions <= limits.clients
        assert server.waits <= 100 * limits.clients
        assert memory() - before < 100 * MB


def damaged_messages(chance: random.Random, count: int) -> Iterator[list[bytes]]:
    client = bytes(16)
    good: list[Any] = [
        encode_from_client(message)
        for message in (
            Hello(client, 1, "agent"),
            Put(1, "id", b"data", (b"x" * 100_000,), 9, 1.0, 2.0, 3),
            Put(2, "id", b"data"),
            Wait(1, "id"),
            Look(2, "unknown"),
            Alive(),
        )
    ]
    for _ in range(count):
        frames = [bytes(frame) for frame in chance.choice(good)]
        for _ in range(chance.randint(1, 3)):
            damage(chance, frames)
        yield frames or [b""]


def damage(chance: random.Random, frames: list[bytes]) -> None:
    if not frames:
        return
    index = chance.randrange(len(frames))
    frame = bytearray(frames[index])
    match chance.randrange(7):
        case 0:
            del frames[index]
        case 1:
            frames.insert(index, chance.randbytes(chance.choice((0, 1, 8, 16, 300, 70_000))))
        case 2 if frame:
            frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)
            frames[index] = bytes(frame)
        case 3:
            frames[index] = bytes(frame[: chance.randrange(len(frame) + 1)])
        case 4:
            frames[index] = struct.pack(">Q", chance.choice((0, 1, 2**48, 2**63, 2**64 - 1)))
        case 5:
            frames[index] = chance.choice(
                (b"{}", b"[" * 30_000, b'{"pid": NaN}', b'{"pid": 1e999, "agent": 1}', b"\xff\xfe")
            )
        case _:
            frames += [b"x"] * chance.choice((1, 5, 500))


def throw_bytes(chance: random.Random, address: tuple[str, int], count: int) -> None:
    """At a port: nothing, noise, and what begins like ZeroMQ's greeting."""
    huge = b"\x02" + struct.pack(">Q", 2**62)
    hello = GREETING + READY
    for _ in range(count):
        with socket.create_connection(address) as connection:
            first, rest = chance.choice(
                (
                    (b"", b""),
                    (b"", chance.randbytes(chance.randrange(2000))),
                    (b"", GREETING[: chance.randrange(64)]),
                    (b"", GREETING + chance.randbytes(500)),
                    (b"", GREETING + READY[: chance.randrange(len(READY))]),
                    (b"", hello + chance.randbytes(500)),
                    (hello, chance.randbytes(500)),
                    (hello, huge + bytes(1000)),
                    (hello, b"\x01\x02" * 1000),
                    (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
                )
            )
            try:
                connection.sendall(first)
                answer = b"" if first else b"READY"
                while b"READY" not in answer:
                    data = connection.recv(4096)
                    if not data:
                        raise ConnectionResetError("closed before the handshake")
                    answer += data
                connection.sendall(rest)
            except ConnectionError:
                continue


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - not paths


def memory() -> int:
    return int(psutil.Process().memory_info().rss)


def address_of(server: Server) -> tuple[str, int]:
    host, _, port = server.endpoint.removeprefix("tcp://").rpartition(":")
    return host, int(port)
