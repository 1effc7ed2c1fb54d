"""Time limits: what runs for too long ends, and costs nobody else anything."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.conftest import ended

from taskiq_supervise import TaskTimeoutError

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor

Start = Callable[..., "Supervisor"]

# A death that counted would be the only one that a task has.
ONE_DELIVERY = ("--max-deliveries", "1")


async def timeout_of(task: Any) -> TaskTimeoutError:
    result = await task.wait_result(timeout=30)
    assert isinstance(result.error, TaskTimeoutError), result
    return result.error


async def test_a_hard_limit_ends_tasks_of_all_kinds_and_their_neighbours_run_again_uncounted(
    supervise: Start, client: Any, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:broker", "--workers", "1", *ONE_DELIVERY).wait_ready()
    held = [await client.hold.kiq("one"), await client.hold_async.kiq("two")]
    kinds = {
        "sync": (client.hold, "in hold"),
        "async": (client.hold_async, "Thread"),
        "blocks the loop": (client.block_the_loop, "in block_the_loop"),
    }
    for number, (kind, (task, where)) in enumerate(kinds.items(), 1):
        # The limit is for the task that says so; its neighbours have none.
        pids = {bell.wait()[1] for _ in held}
        late = task.kicker().with_labels(hard_timeout=0.5 if number % 2 else "0.5")
        sent = await (late.kiq() if task is client.block_the_loop else late.kiq(f"late-{number}"))
        pids.add(bell.wait()[1])
        (pid,) = pids
        error = await timeout_of(sent)
        assert (error.task_id, error.worker, error.pid, error.attempts) == (
            sent.task_id,
            0,
            pid,
            1,
        ), kind
        who = f"worker=0 gen={number} pid={pid}"
        supervisor.log.wait_for(
            f"{who} ran into a hard time limit, with .*{sent.task_id}.*: replaced"
        )
        supervisor.log.wait_for(f"{who} killed by SIGKILL: a task ran out of time; again at once")
        _, _, stacks = supervisor.log.text.partition(f"{who} stands at")
        assert where in stacks.partition("] ")[0]
    assert len({bell.wait()[1] for _ in held}) == 1
    gate.let_by(2)
    results = [await task.wait_result(timeout=30) for task in held]
    assert [result.return_value for result in results] == ["one", "two"]
    assert ledger.counts("hold") == {"one": 4, "two": 4, "late-1": 1, "late-2": 1}
    assert ledger.counts("held") == {"one": 1, "two": 1}
    (worker,) = supervisor.status()["workers"]
    assert (worker["state"], worker["last_exit_reason"]) == ("ready", "timeout")
    assert supervisor.pool_status()["queue"]["dead"] == 0
    assert supervisor.stop() == 0


async def test_task_timeout_is_for_tasks_that_say_nothing_else_and_begins_when_they_do(
    supervise: Start, client: Any, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    limits = ("--task-timeout", "1", "--max-threadpool-threads", "1")
    supervisor = supervise("app:broker", "--workers", "1", *limits, *ONE_DELIVERY).wait_ready()
    unlimited = await client.hold_async.kicker().with_labels(hard_timeout=0).kiq("unlimited")
    _, pid = bell.wait()
    # There is one thread: of these, the second has its time from when the first is over.
    patient = [await client.block.kiq(0.6) for _ in range(2)]
    ran = [(await task.wait_result(timeout=30)).return_value for task in patient]
    assert ran == [pid, pid]

    # taskiq's own limit is for async tasks, and costs no worker.
    cancelled = await client.hold_async.kicker().with_labels(timeout=0.2).kiq("cancelled")
    assert bell.wait() == ("cancelled", pid)
    with pytest.raises(TimeoutError):
        (await cancelled.wait_result(timeout=30)).raise_for_error()
    assert ledger.entries("cancelled") == [("cancelled", pid)]
    assert supervisor.worker_pids() == [pid]

    late = await client.hold.kiq("late")
    bell.wait()
    await timeout_of(late)
    assert supervisor.worker_pids() != [pid]
    assert bell.wait()[0] == "unlimited"
    gate.let_by(1)
    assert (await unlimited.wait_result(timeout=30)).return_value == "unlimited"
    assert ledger.counts("hold") == {"unlimited": 2, "cancelled": 1, "late": 1}
    assert supervisor.status()["workers"][0]["restarts"] == 1
    assert supervisor.stop() == 0


async def test_in_a_pool_of_processes_the_limit_holds_and_none_of_them_is_left(
    supervise: Start, client: Any, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    pool = ("--use-process-pool", "--max-process-pool-processes", "2")
    supervisor = supervise("app:broker", "--workers", "1", *pool, *ONE_DELIVERY).wait_ready()
    neighbour = await client.hold.kiq("neighbour")
    late = await client.hold.kicker().with_labels(hard_timeout=0.5).kiq("late")
    pids = {bell.wait()[1] for _ in range(2)}
    assert len(pids) == 2
    assert (await timeout_of(late)).task_id == late.task_id
    assert all(ended(pid, timeout=5) for pid in pids)
    assert bell.wait()[0] == "neighbour"
    gate.let_by(1)
    assert (await neighbour.wait_result(timeout=30)).return_value == "neighbour"
    assert ledger.counts("hold") == {"neighbour": 2, "late": 1}
    assert supervisor.stop() == 0
