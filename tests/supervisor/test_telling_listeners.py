"""What a listener is told of those that died, so that it can settle what they have left."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from taskiq_supervise.ipc import Burial
from taskiq_supervise.ipc.framing import LineDecoder
from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import LISTENER, ExitStatus, Settings
from taskiq_supervise.supervisor.oom import OomMeter
from taskiq_supervise.supervisor.plan import PoolPlan
from taskiq_supervise.supervisor.pool_shell import PoolShell
from taskiq_supervise.supervisor.processes import Child, Children
from taskiq_supervise.supervisor.runtime import Instance
from taskiq_supervise.supervisor.worker_process import WorkerProcess
from taskiq_supervise.worker.config import WorkerConfig


class Listener:
    """The other end of a listener's link."""

    def __init__(self, shell: PoolShell, generation: int) -> None:
        process = WorkerProcess(
            asyncio.get_running_loop(),
            on_message=lambda _: None,
            on_link_end=lambda _: None,
            on_due=lambda _: None,
            on_stacks=lambda _: None,
        )
        self._shell = shell
        self._link = socket.fromfd(process._theirs.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)
        self._link.setblocking(False)
        shell._workers[LISTENER, generation] = process
        process.adopted(cast("Child", object()))

    def heard(self) -> list[dict[str, Any]]:
        try:
            data = self._link.recv(65536)
        except BlockingIOError:
            return []
        return [message for message in LineDecoder().feed(data) if message["op"] != "go"]

    def close(self) -> None:
        self._link.close()


@pytest.fixture
async def shell() -> AsyncIterator[PoolShell]:
    loop = asyncio.get_running_loop()
    instance = Instance.claim("telling")
    children = Children(loop, lambda: False)
    plan = PoolPlan("", WorkerConfig("app:broker"), Settings(workers=1), 3)
    failures: list[BaseException] = []
    shell = PoolShell(loop, plan, instance, children, OomMeter(None), failures.append, 0)
    yield shell
    assert failures == []
    await shell.close()
    children.close()
    instance.close()


@pytest.mark.parametrize(
    ("burial", "settles"),
    [
        (Burial(), False),
        (Burial(redelivered=("a",)), False),
        (Burial(dead=("a",)), True),
        (Burial(lost=("a",)), True),
        (Burial(timed_out=("a",)), True),
    ],
    ids=str,
)
async def test_of_each_burial_and_to_settle_what_has_ended_by_it(
    shell: PoolShell, monkeypatch: pytest.MonkeyPatch, burial: Burial, settles: bool
) -> None:
    monkeypatch.setattr(shell.custody, "bury", lambda *_: burial)
    # The one that leaves in a reload may still be the one who has the queue.
    listeners = [Listener(shell, generation) for generation in (1, 2)]
    shell._bury(m.Bury(0, 1, 4711, ExitStatus(signal=9), None))
    first, second = [listener.heard() for listener in listeners]
    assert first == second
    gone, *rest = first
    assert (gone["op"], gone["pid"]) == ("gone", 4711)
    assert rest == ([{"op": "settle"}] if settles else [])
    for listener in listeners:
        listener.close()


async def test_one_that_is_ready_settles_what_the_one_before_it_did_not(shell: PoolShell) -> None:
    listener = Listener(shell, 1)
    shell._hear(LISTENER, 1, {"event": "ready"})
    assert listener.heard() == [{"op": "settle"}]
    shell._hear(0, 1, {"event": "ready"})
    assert listener.heard() == []
    listener.close()
