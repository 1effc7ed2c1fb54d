"""A task whose worker died runs alone, so that its neighbours do not pay for it."""

import asyncio
import os
from typing import Any

import pytest
from tests.broker.conftest import Working

from taskiq_supervise.broker import SharedMemoryBroker, wait_result
from taskiq_supervise.broker.attachment import Attachment
from taskiq_supervise.ipc import (
    Board,
    DeathCause,
    Lease,
    Role,
    TaskQueue,
)
from taskiq_supervise.worker.receiver import SupervisedReceiver


def make_suspect(broker: SharedMemoryBroker, task_id: str) -> None:
    """Starts the task in a process that dies of it."""
    pid = os.fork()
    if pid == 0:
        queue = TaskQueue.open("test", role=Role.WORKER)
        lease = queue.claim()
        if lease is not None and lease.task_id == task_id:
            lease.start()
        os._exit(0)
    os.waitpid(pid, 0)
    with TaskQueue.open("test") as queue:
        dead = next(one.index for one in queue.participants() if one.pid == pid)
        burial = queue.recover(dead, DeathCause(pid=pid, signal=9))
    assert burial is None or burial.redelivered == (task_id,)


async def test_a_task_whose_worker_died_runs_alone(
    broker: SharedMemoryBroker, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Attachment.claim

    async def claim_with_a_past(attachment: Attachment) -> Lease:
        lease = await claim(attachment)
        assert isinstance(lease, Lease)
        lease.attempt = int(lease.task_id == "suspect")
        return lease

    monkeypatch.setattr(Attachment, "claim", claim_with_a_past)
    running: set[str] = set()
    beside: dict[str, set[str]] = {}
    begun = {name: asyncio.Event() for name in ("first", "second", "suspect", "later")}
    go_on = {name: asyncio.Event() for name in begun}

    @broker.task
    async def work(name: str) -> None:
        beside[name] = set(running)
        running.add(name)
        begun[name].set()
        await go_on[name].wait()
        running.discard(name)

    async with working(broker):
        for name in begun:
            await work.kicker().with_task_id(name).kiq(name)
        await begun["first"].wait()
        await begun["second"].wait()
        go_on["first"].set()
        await wait_result(broker, "first", timeout=5)
        assert not begun["suspect"].is_set()
        go_on["second"].set()
        await begun["suspect"].wait()
        assert not begun["later"].is_set()
        go_on["suspect"].set()
        go_on["later"].set()
        await wait_result(broker, "later", timeout=5)
    assert beside == {"first": set(), "second": {"first"}, "suspect": set(), "later": set()}


async def test_a_task_whose_worker_died_does_not_wait_for_one_that_waits_for_it(
    broker: SharedMemoryBroker, working: Working
) -> None:
    @broker.task
    async def parent() -> Any:
        # The receiver may take it now, and would wait for us.
        return (await wait_result(broker, "child", timeout=5)).return_value

    @broker.task
    async def child() -> Any:
        return (await (await grandchild.kiq()).wait_result(timeout=5)).return_value

    @broker.task
    async def grandchild() -> str:
        return "all the way"

    await broker.startup()
    await child.kicker().with_task_id("child").kiq()
    make_suspect(broker, "child")
    async with working(broker):
        task = await parent.kiq()
        assert (await task.wait_result(timeout=5)).return_value == "all the way"


async def test_a_second_start_is_numbered(
    broker: SharedMemoryBroker, working: Working, tmp_path: Any
) -> None:
    board = Board.create(tmp_path / "board", 1, 10)
    seen: list[Any] = []

    @broker.task
    async def work() -> None:
        seen.extend(one.attempt for one in board.read(0).running)

    await broker.startup()
    task = await work.kicker().with_task_id("suspect").kiq()
    make_suspect(broker, "suspect")
    writer = board.writer(0)
    writer.reset(os.getpid(), 1)
    finish = asyncio.Event()
    receiver = SupervisedReceiver(broker, run_startup=False)
    receiver.board = writer
    listening = asyncio.create_task(receiver.listen(finish))
    await task.wait_result(timeout=5)
    finish.set()
    await listening
    assert seen == [2]
    board.close()
