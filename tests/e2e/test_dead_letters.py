"""What the workers could not run, as the command line tells it; and queues that are in use."""

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.supervisor.commands import as_json, call

if TYPE_CHECKING:
    from tests.e2e.conftest import Supervisor

Start = Callable[..., "Supervisor"]


async def test_a_task_that_kills_its_workers_is_kept_with_the_story_and_can_be_run_again(
    supervise: Start, client: Any
) -> None:
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    task = await client.kill_own_worker.kiq(int(signal.SIGKILL))
    assert (await task.wait_result(timeout=30)).is_err
    [letter] = as_json("dead", "show", "e2e", task.task_id[:8])["dead"]
    assert letter["task"] == "app:kill_own_worker"
    assert (letter["reason"], letter["attempts"]) == ("max-deliveries", 3)
    assert letter["detail"] == "its worker killed by SIGKILL"
    assert letter["worker"] in (0, 1)
    assert letter["args"] == [9]
    assert as_json("dead", "requeue", "e2e", "--all", "--task", "app:kill_*") == {
        "requeued": [task.task_id],
        "gone": [],
    }
    assert (await task.wait_result(timeout=30)).is_err
    [again] = as_json("dead", "list", "e2e", "--reason", "max-deliveries")["dead"]
    assert (again["id"], again["attempts"]) == (task.task_id, 3)
    assert again["worker_pid"] != letter["worker_pid"]
    assert as_json("dead", "drop", "e2e", task.task_id)["dropped"] == [task.task_id]
    assert supervisor.pool_status()["queue"]["dead"] == 0
    assert supervisor.stop() == 0


async def test_a_queue_cannot_be_removed_under_its_supervisor(
    supervise: Start, client: Any
) -> None:
    supervisor = supervise("app:broker", "--workers", "1").wait_ready()
    [worker] = supervisor.worker_pids()
    done = call("queue", "destroy", "e2e", "--yes")
    assert done.exit_code == 1
    for who in (
        f"client pid {os.getpid()}",
        f"supervisor pid {supervisor.pid}",
        f"worker pid {worker}",
    ):
        assert who in done.stderr
    shown = as_json("queue", "show", "e2e")["participants"]
    assert {"role": "worker", "pid": worker, "worker": 0} in shown
    task = await client.divide.kiq(6, 3)
    assert (await task.wait_result(timeout=30)).return_value == 2
    assert supervisor.stop() == 0
    await client.broker.shutdown()
    assert as_json("queue", "destroy", "e2e", "--yes") == {"destroyed": "e2e"}
    assert as_json("queue", "list") == {"queues": []}
