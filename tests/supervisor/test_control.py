"""The control socket: right answers, and nothing that a client does can hurt the server."""

import asyncio
import json
import os
import select
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.supervisor.answering import serving

from taskiq_supervise.supervisor import control
from taskiq_supervise.supervisor.client import (
    Client,
    ControlError,
    NotResponding,
    NotRunning,
    statuses,
)
from taskiq_supervise.supervisor.control import Command, CommandError
from taskiq_supervise.supervisor.runtime import Instance, runtime_directory, socket_path


def refuse(_request: Mapping[str, Any]) -> Any:
    raise CommandError("not today")


COMMANDS = {
    "status": lambda _: {"name": "one", "state": "running"},
    "echo": lambda request: request["text"],
    "refuse": refuse,
    "large": lambda _: "x" * (4 << 20),
}


async def connect(
    instance: Instance,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    with socket_path(instance.folder) as path:
        return await asyncio.open_unix_connection(path)


async def say(instance: Instance, data: bytes) -> dict[str, Any]:
    reader, writer = await connect(instance)
    writer.write(data)
    answer: dict[str, Any] = json.loads(await reader.readline())
    writer.close()
    await writer.wait_closed()
    return answer


async def test_a_request_is_a_line_and_so_is_its_answer() -> None:
    async with serving(COMMANDS) as instance:
        reader, writer = await connect(instance)
        for text in ("first", "line\nbreak", "ü"):
            writer.write(json.dumps({"command": "echo", "text": text}).encode() + b"\n")
            assert json.loads(await reader.readline()) == {"ok": True, "result": text}
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"hello\n", "not JSON"),
        (b"[1]\n", "not a JSON object"),
        (b"{}\n", "unknown command None; known: echo, large, refuse, status"),
        (b'{"command": ["status"]}\n', "unknown command"),
        (b'{"command": "refuse"}\n', "not today"),
        (b"[" * 60_000 + b"\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"x" * (control.MAX_LINE + 1) + b"\n", "more than 65536 bytes"),
    ],
    ids=["words", "list", "nothing", "no-name", "refused", "deep", "not-utf8", "long"],
)
async def test_what_is_no_request_gets_an_answer_that_says_so(line: bytes, error: str) -> None:
    async with serving(COMMANDS) as instance:
        answer = await say(instance, line)
        assert not answer["ok"]
        assert error in answer["error"]
        assert (await say(instance, b'{"command": "status"}\n'))["ok"]


async def test_a_client_that_says_nothing_is_let_go() -> None:
    async with serving(COMMANDS, patience=0.05) as instance:
        reader, writer = await connect(instance)
        writer.write(b'{"command": "status"')
        assert await reader.read() == b""
        writer.close()


async def test_a_client_that_does_not_take_its_answer_is_let_go_and_others_are_served() -> None:
    async with serving(COMMANDS, patience=0.2) as instance:
        deaf = socket.socket(socket.AF_UNIX)
        with deaf, socket_path(instance.folder) as path:
            deaf.connect(path)
            deaf.sendall(b'{"command": "large"}\n')
            assert (await say(instance, b'{"command": "status"}\n'))["ok"]
            taken = await asyncio.to_thread(read_what_came, deaf)
        assert len(taken) < 4 << 20


def read_what_came(sock: socket.socket) -> bytes:
    """What is in the socket's buffer, once the other side has given up."""
    poll = select.poll()
    poll.register(sock, 0)  # only POLLHUP
    assert poll.poll(10_000)
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


async def test_a_crowd_is_turned_away_and_the_door_stays_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control, "MAX_CONNECTIONS", 2)
    async with serving(COMMANDS) as instance:
        guests = [await connect(instance) for _ in range(2)]
        for reader, writer in guests:
            writer.write(b'{"command": "echo", "text": 1}\n')
            await reader.readline()
        assert "too many" in (await say(instance, b""))["error"]
        for _, writer in guests:
            writer.close()
            await writer.wait_closed()
        answers = [await say(instance, b'{"command": "status"}\n') for _ in range(5)]
        assert answers[-1]["ok"]


async def test_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(COMMANDS) as instance:
        monkeypatch.setattr(control, "peer_uid", lambda _: 12345)
        answer = await say(instance, b'{"command": "status"}\n')
        assert answer == {"ok": False, "error": "uid 12345 may not control this instance"}


async def test_the_kernel_says_who_is_there() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert control.peer_uid(ours) == os.geteuid()


async def test_a_server_that_closes_ends_its_conversations() -> None:
    async with serving(COMMANDS) as instance:
        reader, writer = await connect(instance)
        writer.write(b'{"command": "status"}\n')
        await reader.readline()
    assert await reader.read() == b""
    writer.close()


# --- commands that take their time ---------------------------------------------------------------


class Slow:
    """A `reload` that ends when the test says so; `stuck` never does."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self.cancelled: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self.end = asyncio.Event()

    @property
    def commands(self) -> Mapping[str, Command]:
        return {**COMMANDS, "reload": self.reload, "stuck": self.reload, "deny": self.deny}

    async def reload(self, request: Mapping[str, Any]) -> Any:
        self.asked.put_nowait(request)
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(request)
            raise
        return {"ok": True, "message": None, "pools": []}

    async def deny(self, _request: Mapping[str, Any]) -> Any:
        await asyncio.sleep(0)
        raise CommandError("not tomorrow either")


async def test_a_command_that_waits_keeps_nobody_else_waiting_and_nobody_gives_up_on_it() -> None:
    slow = Slow()
    async with serving(slow.commands, patience=0.05) as instance:
        hasty = Client("one", timeout=0.05)
        waiting = asyncio.create_task(asyncio.to_thread(hasty.reload, wait=True))
        request = await slow.asked.get()
        assert request == {"command": "reload", "wait": True, "pool": None}
        # Another command's client has run out of patience since then; so would the server have.
        with pytest.raises(NotResponding):
            await asyncio.to_thread(hasty.request, "stuck")
        assert (await say(instance, b'{"command": "status"}\n'))["ok"]
        assert not waiting.done()
        slow.end.set()
        assert await waiting == {"ok": True, "message": None, "pools": []}


async def test_who_has_nothing_more_to_ask_still_gets_the_answer() -> None:
    slow = Slow()
    async with serving(slow.commands) as instance:
        reader, writer = await connect(instance)
        writer.write(b'{"command": "reload", "wait": true}\n')
        writer.write_eof()
        await slow.asked.get()
        slow.end.set()
        assert json.loads(await reader.readline())["result"]["ok"]
        writer.close()


async def test_a_command_that_waits_can_be_refused_too() -> None:
    async with serving(Slow().commands) as instance:
        answer = await say(instance, b'{"command": "deny"}\n')
        assert answer == {"ok": False, "error": "not tomorrow either"}


async def test_a_server_that_closes_ends_the_commands_that_wait() -> None:
    slow = Slow()
    async with serving(slow.commands):
        waiting = asyncio.create_task(asyncio.to_thread(Client("one").reload, wait=True))
        await slow.asked.get()
    assert slow.cancelled.qsize() == 1
    with pytest.raises(NotResponding, match="without an answer"):
        await waiting


# --- the Python client ---------------------------------------------------------------------------


async def test_the_client_gets_results_and_errors_in_the_servers_words() -> None:
    async with serving(COMMANDS):
        client = Client("one")
        assert await asyncio.to_thread(client.request, "echo", text=["a", 1]) == ["a", 1]
        assert (await asyncio.to_thread(client.status))["name"] == "one"
        with pytest.raises(ControlError, match="not today"):
            await asyncio.to_thread(client.request, "refuse")


async def test_the_client_asks_for_a_reload_and_for_another_size() -> None:
    requests: list[Mapping[str, Any]] = []

    def note(request: Mapping[str, Any]) -> Any:
        requests.append(request)
        return {}

    async with serving({"reload": note, "scale": note}):
        client = Client("one")
        await asyncio.to_thread(client.reload, pool="fast")
        await asyncio.to_thread(client.scale, workers=4)
        await asyncio.to_thread(client.scale, by=-2, pool="fast")
    assert requests == [
        {"command": "reload", "wait": False, "pool": "fast"},
        {"command": "scale", "workers": 4, "pool": None},
        {"command": "scale", "by": -2, "pool": "fast"},
    ]
    with pytest.raises(ValueError, match="either workers or by"):
        client.scale()


def test_where_nobody_is_the_client_says_where_it_looked() -> None:
    with pytest.raises(NotRunning, match="'nobody'"):
        Client("nobody").status()


def test_a_dead_instance_is_not_running_and_does_not_hide_the_others() -> None:
    dead = Instance.claim("dead")
    dead.listen().close()
    with pytest.raises(NotRunning):
        Client("dead").status()
    assert statuses() == []
    dead.close()


def test_an_instance_that_does_not_answer_is_listed_as_unresponsive() -> None:
    silent = Instance.claim("silent")
    with silent.listen():
        with pytest.raises(NotResponding):
            Client("silent", timeout=0.05).status()
        (found,) = statuses(timeout=0.05)
        assert (found["name"], found["state"]) == ("silent", "unresponsive")
        assert found["pid"] == os.getpid()
    silent.close()


async def test_instances_are_listed_by_name() -> None:
    async with serving(COMMANDS, name="two"), serving(COMMANDS, name="one"):
        found = await asyncio.to_thread(statuses, runtime_directory())
        assert len(found) == 2


def test_no_runtime_directory_means_no_instances(tmp_path: Path) -> None:
    assert statuses(tmp_path / "nothing") == []
