"""Delayed tasks are in the queue and nowhere else: they outlive everything, and are run in time."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from taskiq_supervise import InvalidLabelError, TaskExpiredError
from taskiq_supervise.ipc import TaskQueue

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor

Start = Callable[..., "Supervisor"]


async def test_delayed_tasks_outlive_their_client_and_the_supervisor(
    supervise: Start, app: Any, ledger: "Ledger"
) -> None:
    async with app.broker:
        due = time.time() + 2
        tasks = [await app.record.kicker().with_labels(eta=due).kiq(n) for n in range(5)]
        clock = await app.now.kicker().with_labels(eta=due).kiq()
        far = await app.record.kicker().with_labels(eta=due + 1000).kiq(99)
    # Nobody is in the queue, then a supervisor that is killed, then another.
    supervise("app:broker", "--workers", "1").wait_ready().kill_everything()
    supervise("app:broker", "--workers", "2").wait_ready()
    async with app.broker:
        for task in tasks:
            assert not (await task.wait_result(timeout=30)).is_err
        assert (await clock.wait_result(timeout=30)).return_value >= due
        assert not await far.is_ready()
    assert ledger.counts("record") == {str(number): 1 for number in range(5)}


async def test_what_became_due_while_nothing_ran_is_run_at_the_start(
    supervise: Start, app: Any
) -> None:
    async with app.broker:
        task = await app.record.kicker().with_labels(delay=0.05).kiq(1)
    await asyncio.sleep(0.1)
    supervise("app:broker", "--workers", "1")
    async with app.broker:
        assert (await task.wait_result(timeout=30)).return_value == 1


async def test_under_supervision_what_is_due_begins_at_once(supervise: Start, client: Any) -> None:
    supervise("app:broker", "--workers", "1").wait_ready()
    lates = []
    for _ in range(5):
        due = time.time() + 0.2
        task = await client.now.kicker().with_labels(eta=due).kiq()
        lates.append((await task.wait_result(timeout=30)).return_value - due)
    assert min(lates) >= 0
    assert sorted(lates)[2] < 0.3  # 20 ms where nothing else runs


async def test_a_task_that_expires_behind_others_is_not_run(
    supervise: Start, client: Any, bell: "Bell", gate: "Gate", ledger: "Ledger"
) -> None:
    supervise("app:broker", "--workers", "1", "--max-async-tasks", "1").wait_ready()
    first = await client.hold.kiq("first")
    bell.wait()
    task = await client.record.kicker().with_labels(expires=0.1).kiq(1)
    await asyncio.sleep(0.11)
    gate.let_by(1)
    assert (await first.wait_result(timeout=30)).return_value == "first"
    assert isinstance((await task.wait_result(timeout=30)).error, TaskExpiredError)
    assert not ledger.entries("record")


async def test_expired_tasks_end_even_if_no_worker_ever_comes(app: Any) -> None:
    async with app.broker:
        task = await app.record.kicker().with_labels(expires=0.1).kiq(1)
        assert isinstance((await task.wait_result(timeout=30)).error, TaskExpiredError)


async def test_urgent_tasks_overtake_and_the_others_run_all_the_same(
    supervise: Start, client: Any, ledger: "Ledger"
) -> None:
    tasks = []
    for priority in (0, 5, 9):
        for number in range(50):
            kicker = client.record.kicker().with_labels(priority=priority)
            tasks.append(await kicker.kiq(100 * priority + number))
    supervise("app:broker", "--workers", "1", "--max-async-tasks", "1")
    for task in tasks:
        await task.wait_result(timeout=30)
    order = [int(what) // 100 for what, _ in ledger.entries("record")]
    mean = {lane: sum(i for i, one in enumerate(order) if one == lane) for lane in (0, 5, 9)}
    assert len(order) == 150
    assert mean[9] < mean[5] < mean[0]


async def test_a_refused_label_leaves_nothing_in_the_queue(client: Any) -> None:
    with pytest.raises(InvalidLabelError, match="the label priority is '42'"):
        await client.record.kicker().with_labels(priority=42).kiq(1)
    with TaskQueue.open("e2e") as queue:
        stats = queue.stats()
    assert stats.free == stats.capacity
