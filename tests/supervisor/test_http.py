"""Health over HTTP: what an orchestrator asks is answered, everything else is cut off."""

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_supervise.supervisor import http as health
from taskiq_supervise.supervisor.http import AddressError, CannotListen, HealthServer, parse_address
from taskiq_supervise.supervisor.probes import live, ready

RUNNING: dict[str, Any] = {
    "pid": 17,
    "pools": [{"name": "", "state": "running", "message": None, "listener": None}],
    "workers": [{"pool": "", "state": "ready"}, {"pool": "", "state": "backoff"}],
}


def changed(**pool: Any) -> dict[str, Any]:
    return {**RUNNING, "pools": [{**RUNNING["pools"][0], **pool}]}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (changed(state="starting"), "it is starting"),
        (changed(state="stopping"), "it is stopping"),
        (changed(message="broken", state="starting"), "broken"),
        ({**RUNNING, "workers": [{"pool": "", "state": "booting"}]}, "no worker is ready"),
        (changed(listener={"state": "backoff"}), "the listener is backoff"),
        (
            {
                **RUNNING,
                "pools": [*RUNNING["pools"], {**RUNNING["pools"][0], "name": "slow"}],
            },
            "pool slow: no worker is ready",
        ),
    ],
)
def test_not_ready_says_why_and_lives_all_the_same(status: dict[str, Any], reason: str) -> None:
    assert ready(status).reason == reason
    assert not ready(status).ok
    assert live(status).ok


def test_ready_with_one_worker_that_takes_tasks() -> None:
    assert ready(RUNNING).ok
    assert ready(changed(listener={"state": "ready"})).ok


class Served:
    def __init__(self) -> None:
        self.status = RUNNING
        self.server = HealthServer(lambda: self.status)

    @property
    def port(self) -> int:
        return int(self.server.addresses[0].rpartition(":")[2])

    async def get(self, path: str, method: str = "GET") -> tuple[int, Any]:
        def ask() -> tuple[int, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                connection.request(method, path)
                response = connection.getresponse()
                data = response.read()
                return response.status, json.loads(data) if data else None
            finally:
                connection.close()

        return await asyncio.to_thread(ask)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    found = Served()
    await found.server.start("127.0.0.1", 0)
    yield found
    await found.server.close()


async def test_health_and_readiness(served: Served) -> None:
    assert await served.get("/healthz") == (
        200,
        {"ok": True, "reason": "the supervisor answers, pid 17"},
    )
    assert (await served.get("/readyz"))[0] == 200
    served.status = changed(state="starting")
    assert (await served.get("/healthz"))[0] == 200
    assert await served.get("/readyz?verbose") == (503, {"ok": False, "reason": "it is starting"})
    assert await served.get("/readyz", "HEAD") == (503, None)


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", 404), ("/readyz", "POST", 405)]
)
async def test_nothing_else_is_there(served: Served, path: str, method: str, status: int) -> None:
    assert (await served.get(path, method))[0] == status


@given(st.binary())
def test_any_request_has_an_answer(head: bytes) -> None:
    assert HealthServer(lambda: RUNNING).respond(head).startswith(b"HTTP/1.1 ")


async def test_who_asks_for_too_much_or_too_slowly_is_cut_off(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PATIENCE", 0.2)
    for said in (b"x" * 100_000, b"GET /healthz HTTP/1.1\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(said)
        with suppress(ConnectionResetError):  # with some of ours unread
            assert await asyncio.wait_for(reader.read(), timeout=10) == b""
        writer.close()
    assert (await served.get("/healthz"))[0] == 200


async def test_more_than_so_many_at_once_are_cut_off(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "MOST_CONNECTIONS", 3)
    kept = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(3)]
    with pytest.raises((http.client.HTTPException, OSError)):
        await served.get("/healthz")
    for _, writer in kept:
        writer.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9808", ("127.0.0.1", 9808)),
        ("[::1]:80", ("::1", 80)),
        (":9808", ("", 9808)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["9808", "::1:80", "host:", "host:http", "host:70000", ""])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError, match="HOST:PORT"):
        parse_address(text)


async def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = HealthServer(lambda: RUNNING)
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen) as caught:
            await server.start("127.0.0.1", port)
        said = f"--http cannot listen on 127.0.0.1:{port}: Address already in use"
        assert str(caught.value) == said
        assert caught.value.is_taken
        await server.close()
