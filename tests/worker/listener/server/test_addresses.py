"""Where a server listens, and who may connect there."""

import asyncio
import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq
from tests.worker.listener.server.conftest import (
    LIMITS,
    TCP,
    Client,
    Connect,
    Serve,
    ToyQueue,
    ipc,
    with_keys,
)

from taskiq_supervise.broker.zeromq.keys import AllowList, KeyPair
from taskiq_supervise.broker.zeromq.protocol import Hello
from taskiq_supervise.worker.listener.router import UnusableAddress
from taskiq_supervise.worker.listener.server import Server

SERVER, CLIENT, OTHER = KeyPair.new(), KeyPair.new(), KeyPair.new()


async def bound(queue: ToyQueue, settings: Any) -> None:
    """Binds, and gives the address back."""
    server = Server(settings, queue, LIMITS)
    try:
        server.bind()
    finally:
        await server.close()


async def test_a_socket_file_is_its_users_alone(
    serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    async with serve(ipc(path)) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await connect(server).is_served()
    assert not path.exists()


async def test_a_socket_file_that_was_left_behind_is_replaced(
    serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with serve(ipc(path)) as server:
        await connect(server).is_served()


async def test_nobody_is_robbed_of_a_socket_file(
    serve: Serve, queue: ToyQueue, connect: Connect, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    async with serve(ipc(path)) as server:
        with pytest.raises(OSError, match="another server") as caught:
            await bound(queue, ipc(path))
        assert caught.value.errno == errno.EADDRINUSE
        await connect(server).is_served()


async def test_a_file_that_is_no_socket_is_not_removed(queue: ToyQueue, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    with pytest.raises(OSError, match="no socket"):
        await bound(queue, ipc(path))
    assert path.read_text() == "mine"


async def test_what_cannot_be_bound_is_an_error_that_names_it(
    serve: Serve, queue: ToyQueue, tmp_path: Path
) -> None:
    async with serve() as server:
        with pytest.raises(OSError, match=server.endpoint) as caught:
            await bound(queue, replace(TCP, bind=server.endpoint))
        assert caught.value.errno == errno.EADDRINUSE
    (tmp_path / "file").touch()
    for bind in (
        f"ipc://{tmp_path}/none/socket",
        f"ipc://{tmp_path}/file",
        f"ipc://{tmp_path}/file/socket",
        f"ipc://{tmp_path}/{'long' * 50}",
        "tcp://x:y",
    ):
        with pytest.raises(UnusableAddress) as never:
            await bound(queue, replace(TCP, bind=bind))
        assert str(never.value).count(bind.partition("://")[2]) == 1


async def test_an_address_that_may_come_up_is_not_said_to_be_unusable(queue: ToyQueue) -> None:
    with pytest.raises(OSError, match=r"192\.0\.2\.1") as caught:
        await bound(queue, replace(TCP, bind="tcp://192.0.2.1:5555"))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert not isinstance(caught.value, UnusableAddress)


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
async def test_an_address_is_free_again_at_once(
    serve: Serve, connect: Connect, tmp_path: Path, kind: str
) -> None:
    settings = TCP if kind == "tcp" else ipc(tmp_path / "socket")
    client: Client | None = None
    for _ in range(20):
        async with serve(settings) as server:
            settings = replace(settings, bind=server.endpoint)
            if client is None:
                client = connect(server, reconnect_ivl=10)
                await client.hello()
            else:
                client.reconnect()
                await client.is_served()


async def test_ipv6(serve: Serve, connect: Connect) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("there is no IPv6 here")
    async with serve(replace(TCP, bind="tcp://[::1]:*", is_ipv6=True)) as server:
        assert server.endpoint.startswith("tcp://[::1]:")
        await connect(server).is_served()


def curve(client: KeyPair | None, server: KeyPair = SERVER) -> dict[str, Any]:
    if client is None:
        return {}
    return {
        "curve_serverkey": server.public,
        "curve_publickey": client.public,
        "curve_secretkey": client.secret,
    }


async def test_who_is_on_the_list_is_let_in(serve: Serve, connect: Connect) -> None:
    async with serve(with_keys(SERVER, AllowList([CLIENT.public.decode()]))) as server:
        await connect(server, **curve(CLIENT)).is_served()


async def test_anybody_with_a_key_is_let_in_where_there_is_no_list(
    serve: Serve, connect: Connect
) -> None:
    async with serve(with_keys(SERVER, AllowList("*"))) as server:
        await connect(server, **curve(OTHER)).is_served()
        await is_not_let_in(connect(server))


@pytest.mark.parametrize(
    "options",
    [
        curve(None),
        curve(OTHER),
        curve(CLIENT, server=OTHER),
        curve(KeyPair(CLIENT.public, OTHER.secret)),
    ],
    ids=["no key", "not on the list", "another server's key", "another's public key"],
)
async def test_who_is_not_let_in_changes_nothing_for_others(
    serve: Serve, connect: Connect, options: dict[str, Any]
) -> None:
    async with serve(with_keys(SERVER, AllowList([CLIENT.public.decode()]))) as server:
        await is_not_let_in(connect(server, **options))
        await connect(server, **curve(CLIENT)).is_served()
        assert server.sessions == 1


async def is_not_let_in(client: Client) -> None:
    with contextlib.suppress(zmq.Again):  # its side may know already
        await client.say(Hello(client.id), flags=zmq.DONTWAIT)
    await client.hears_nothing()


async def test_the_list_is_read_again_for_each_connection(
    serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    CLIENT.save(tmp_path, "client")
    async with serve(with_keys(SERVER, AllowList(tmp_path))) as server:
        await connect(server, **curve(CLIENT)).is_served()
        other = connect(server, **curve(OTHER))
        await is_not_let_in(other)
        OTHER.save(tmp_path, "other")
        other.reconnect()
        await other.is_served()
        (tmp_path / "client.key").unlink()
        await is_not_let_in(connect(server, **curve(CLIENT)))
        (tmp_path / "damaged.key").write_bytes(b"\xff\x00")
        other.reconnect()
        await other.is_served()


async def test_a_list_that_fails_lets_nobody_in_and_the_server_lives(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(AllowList):
        fails = True

        def allows(self, public: bytes) -> bool:
            if self.fails:
                raise RuntimeError("the list is not there")
            return True

    allowed = Failing("*")
    async with serve(with_keys(SERVER, allowed)) as server:
        client = connect(server, **curve(CLIENT))
        await is_not_let_in(client)
        assert "the list is not there" in caplog.text
        allowed.fails = False
        client.reconnect()
        await client.is_served()


async def test_half_a_handshake_keeps_nobody_out(serve: Serve, connect: Connect) -> None:
    async with serve(with_keys(SERVER, AllowList("*")), replace(LIMITS, handshake=0.3)) as server:
        host, _, port = server.endpoint.removeprefix("tcp://").rpartition(":")
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(47)
        with socket.create_connection((host, int(port))) as half:
            half.sendall(greeting)
            await connect(server, **curve(CLIENT)).is_served()
            half.settimeout(10)
            data = b"-"
            while data:
                data = await asyncio.to_thread(half.recv, 4096)


def test_it_serves_on_the_listeners_loop_and_leaves_nothing(tmp_path: Path) -> None:
    """uvloop, in a process of its own, which ends at once."""
    program = f"""
import asyncio, os, uvloop, zmq, zmq.asyncio
from tests.worker.listener.server import conftest as c
async def main():
    queue = c.ToyQueue()
    context = zmq.asyncio.Context()
    async with c.served(c.Server(c.ipc({str(tmp_path / "socket")!r}), queue, c.LIMITS)) as server:
        client = c.Client(server.endpoint, context)
        for _ in range(20):
            client.reconnect()
            last = (await client.hello()).last
            for number in range(last + 1, last + 301):
                await client.put(number, data=bytes(100_000 if number % 50 == 0 else 10))
            for number in range(last + 1, last + 301):
                assert (await client.accepted()).number == number
        await client.say(c.protocol.Wait(1, "large"))
        await c.until(lambda: bool(queue.waiting))
        queue.end("large", bytes(1_000_000))
        assert len((await client.hear()).outcome.data) == 1_000_000
        client.close()
    context.term()
    print(len(queue.numbers))
uvloop.install()
asyncio.run(main())
"""
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("6000\n", "")
