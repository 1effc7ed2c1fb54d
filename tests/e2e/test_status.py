"""`taskiq-supervise status`: for people, for programs, and by its exit status."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskiq_supervise.supervisor.runtime import runtime_directory

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Supervisor

Start = Callable[..., "Supervisor"]


def status(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "taskiq_supervise", "status", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )


def test_when_nothing_runs_the_exit_status_is_3(workdir: Path) -> None:
    for arguments in ((), ("app-broker",)):
        done = status(*arguments)
        assert done.returncode == 3
        assert "Traceback" not in done.stdout + done.stderr
    done = status("--json")
    assert done.returncode == 3
    assert json.loads(done.stdout) == {"instances": []}


def test_a_supervisor_that_was_killed_does_not_run(supervise: Start, app: Any) -> None:
    supervise("app:broker").wait_ready().kill_everything()
    assert status("app-broker").returncode == 3


async def test_json_has_what_programs_rely_on(
    supervise: Start, client: Any, bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:broker", "--workers", "2", "--max-async-tasks", "1").wait_ready()
    first = await client.hold.kiq("a")
    _, pid = bell.wait()
    second = await client.hold.kiq("b")
    bell.wait()
    third = await client.record.kiq(1)

    done = status("app-broker", "--json")
    assert done.returncode == 0
    (instance,) = json.loads(done.stdout)["instances"]
    expected = {
        "name": "app-broker",
        "pid": supervisor.pid,
        "state": "running",
    }
    assert {key: instance[key] for key in expected} == expected
    assert instance["uptime"] > 0
    (pool,) = instance["pools"]
    assert (pool["name"], pool["app"], pool["state"]) == ("", "app:broker", "running")
    assert (pool["transport"], pool["target"], pool["reload"]) == ("shm", 2, None)
    queue = pool["queue"]
    assert (queue["ready"], queue["delayed"], queue["dead"]) == (1, 0, 0)
    assert queue["capacity"] > 1000
    assert isinstance(queue["leased"], int)

    assert [worker["slot"] for worker in instance["workers"]] == [0, 1]
    worker = next(one for one in instance["workers"] if one["pid"] == pid)
    assert (worker["pool"], worker["state"], worker["health"]) == ("", "ready", "ok")
    assert worker["uptime"] > 0
    assert (worker["restarts"], worker["last_exit"]) == (0, None)
    assert worker["tasks"] == {"done": 0, "failed": 0}
    assert worker["rss_bytes"] > 1 << 20
    assert worker["cpu_percent"] is None or worker["cpu_percent"] >= 0
    assert isinstance(worker["generation"], int)
    (running,) = worker["running"]
    assert (running["task_id"], running["task_name"]) == (first.task_id, "app:hold")
    assert running["attempt"] == 1
    assert running["elapsed"] >= 0

    gate.let_by(2)
    for task in (first, second, third):
        await task.wait_result(timeout=30)
    failing = await client.divide.kiq(1, 0)
    await failing.wait_result(timeout=30)
    after = supervisor.status()["workers"]
    assert sum(worker["tasks"]["done"] for worker in after) == 4
    assert sum(worker["tasks"]["failed"] for worker in after) == 1
    assert [worker["running"] for worker in after] == [[], []]
    assert supervisor.stop() == 0


async def test_people_see_the_instance_its_workers_and_what_they_run(
    supervise: Start, client: Any, bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    task = await client.hold.kiq("a")
    bell.wait()
    done = status()
    assert done.returncode == 0
    for text in ("app-broker", "app:hold", *map(str, supervisor.worker_pids())):
        assert text in done.stdout
    gate.let_by(1)
    await task.wait_result(timeout=30)
    assert supervisor.stop() == 0


async def test_a_hung_worker_is_still_seen(
    supervise: Start, client: Any, bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:broker", "--workers", "1").wait_ready()
    task = await client.hold.kiq("a")
    _, pid = bell.wait()
    os.kill(pid, signal.SIGSTOP)
    try:
        (worker,) = supervisor.status()["workers"]
        assert [one["task_id"] for one in worker["running"]] == [task.task_id]
    finally:
        os.kill(pid, signal.SIGCONT)
    gate.let_by(1)
    assert (await task.wait_result(timeout=30)).return_value == "a"
    assert supervisor.stop() == 0


def test_folders_that_are_no_instances_are_passed_over(supervise: Start, app: Any) -> None:
    supervisor = supervise("app:broker").wait_ready()
    strangers = [runtime_directory() / os.fsdecode(name) for name in (b"\xff\xfe", b"a b")]
    for folder in strangers:
        folder.mkdir()
        (folder / "control.sock").touch()
    try:
        for arguments in ((), ("--json",)):
            done = status(*arguments)
            assert (done.returncode, done.stderr) == (0, "")
            assert "app-broker" in done.stdout
    finally:
        for folder in strangers:
            shutil.rmtree(folder)
    assert supervisor.stop() == 0


def test_several_instances_are_listed_and_one_can_be_named(
    supervise: Start, app: Any, workdir: Path
) -> None:
    first = supervise("app:broker", "--name", "one").wait_ready()
    elsewhere = {"TASKIQ_SUPERVISE_QUEUE_DIR": str(workdir / "queues")}
    second = supervise("app:broker", "--name", "two", environment=elsewhere).wait_ready()
    names = [one["name"] for one in json.loads(status("--json").stdout)["instances"]]
    assert names == ["one", "two"]
    (named,) = json.loads(status("two", "--json").stdout)["instances"]
    assert named["pid"] == second.pid
    assert status("three").returncode == 3
    assert (first.stop(), second.stop()) == (0, 0)
