"""What `taskiq worker` gets wrong, a test for each: here it does not happen."""

import asyncio
import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.conftest import COMMAND

from taskiq_supervise.supervisor.core.policy import RestartPolicy

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor

Start = Callable[..., "Supervisor"]


async def result_of(task: Any) -> Any:
    result = await task.wait_result(timeout=30)
    result.raise_for_error()
    return result.return_value


# --- recycling counts as a failure, and enough of them end it -------------------------------------


async def test_recycling_is_no_failure_however_often(
    supervise: Start, client: Any, ledger: "Ledger"
) -> None:
    recycle_each = ("--max-tasks-per-child", "1", "--recycle-jitter", "0")
    supervisor = supervise("app:broker", "-w", "1", "--max-fails", "1", *recycle_each).wait_ready()
    # As failures they would be too many: the worker's next start would be put off.
    times = RestartPolicy().slot_limit + 1
    for generation in range(1, times + 1):
        assert await result_of(await client.record.kiq(generation)) == generation
        supervisor.log.wait_for(
            rf"worker=0 gen={generation} pid=\d+ exited with status 0: recycled"
        )
    (worker,) = supervisor.status()["workers"]
    assert (worker["state"], worker["generation"]) == ("ready", times + 1)
    assert supervisor.stop() == 0
    assert ledger.counts("record") == {str(number): 1 for number in range(1, times + 1)}
    assert len(ledger.pids("record")) == times
    assert not re.search(r"(WARNING|ERROR).*worker=|again", supervisor.log.without_tasks)


# --- it exits while workers live ------------------------------------------------------------------


async def test_a_task_that_kills_worker_after_worker_does_not_end_the_others(
    supervise: Start, client: Any, bell: "Bell", gate: "Gate", ledger: "Ledger"
) -> None:
    supervisor = supervise("app:broker", "--workers", "2", "--max-fails", "1").wait_ready()
    held = await client.hold.kiq("held")
    _, pid = bell.wait()
    killer = await client.kill_own_worker.kiq(int(signal.SIGSEGV))
    assert (await killer.wait_result(timeout=30)).is_err
    assert ledger.counts("kill") == {str(int(signal.SIGSEGV)): 3}
    assert pid in supervisor.worker_pids()
    gate.let_by(1)
    assert await result_of(held) == "held"
    assert ledger.counts("hold") == {"held": 1}
    assert supervisor.stop() == 0


async def test_when_it_has_exited_none_of_its_processes_is_left(
    supervise: Start, client: Any, bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:broker", "--workers", "3").wait_ready()
    tree = supervisor.tree()
    task = await client.hold.kiq("last")
    bell.wait()
    supervisor.process.send_signal(signal.SIGTERM)
    supervisor.log.wait_for("Waiting for 1 running task")
    gate.let_by(1)
    assert supervisor.wait() == 0
    assert supervisor.alive(tree, timeout=0) == []
    assert await result_of(task) == "last"


# --- while it waits for the end of one worker, it sees and hears nothing --------------------------


async def test_a_worker_that_takes_long_to_leave_holds_up_neither_restarts_nor_the_stop(
    supervise: Start, client: Any, bell: "Bell", gate: "Gate", ledger: "Ledger"
) -> None:
    supervisor = supervise("app:broker", "--workers", "2", "--graceful-timeout", "600").wait_ready()
    task = await client.hold.kiq("long")
    _, leaving = bell.wait()
    os.kill(leaving, signal.SIGTERM)
    supervisor.log.wait_for(f"pid={leaving} drains")

    (other,) = [one for one in supervisor.status()["workers"] if one["pid"] not in {leaving, None}]
    os.kill(other["pid"], signal.SIGKILL)
    supervisor.log.wait_for(rf"worker={other['slot']} gen={other['generation'] + 1} pid=\d+ ready")
    assert await result_of(await client.record.kiq(1)) == 1

    supervisor.process.send_signal(signal.SIGTERM)
    supervisor.log.wait_for("stopping:")
    supervisor.log.wait_for(rf"worker={other['slot']} .* exited with status 0")
    assert ledger.counts("held") == {}
    gate.let_by(1)
    assert supervisor.wait() == 0
    assert await result_of(task) == "long"
    assert ledger.counts("hold") == {"long": 1}


# --- nobody can tell when it is ready -------------------------------------------------------------

CONNECTS = """
import os
from taskiq import TaskiqEvents
from app import append, broker, pass_gate

@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def connect(state):
    append("bell", "connect", "-", os.getpid())
    await pass_gate()
"""


@pytest.mark.usefixtures("app")
def test_ready_is_said_once_every_worker_takes_tasks_and_not_before(
    supervise: Start, workdir: Path, bell: "Bell", gate: "Gate"
) -> None:
    (workdir / "connects.py").write_text(CONNECTS)
    supervisor = supervise("connects:broker", "--workers", "2")
    pids = {bell.wait()[1] for _ in range(2)}
    assert supervisor.status()["state"] == "starting"
    assert set(supervisor.worker_pids()) == pids
    gate.let_by(1)
    supervisor.log.wait_for(r"worker=\d gen=1 pid=\d+ ready")
    status = supervisor.status()
    assert status["state"] == "starting"
    assert sorted(worker["state"] for worker in status["workers"]) == ["booting", "ready"]
    assert "ready: " not in supervisor.log.text

    gate.let_by(1)
    supervisor.wait_ready()
    status = supervisor.status()
    assert status["state"] == "running"
    assert [worker["state"] for worker in status["workers"]] == ["ready"] * 2
    assert supervisor.stop() == 0


# --- broken code and a SIGHUP end all workers -----------------------------------------------------

AT_STARTUP = """
from taskiq import TaskiqEvents

@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def connect(state):
    {}
"""
BROKEN = {
    "syntax": ("broken = (", "'\\(' was never closed"),
    "import": ("raise RuntimeError('no settings')", "RuntimeError: no settings"),
    "startup": (
        AT_STARTUP.format("raise ConnectionError('no server')"),
        "ConnectionError: no server",
    ),
    "crash at startup": (AT_STARTUP.format("os.kill(os.getpid(), signal.SIGSEGV)"), "SIGSEGV"),
}


@pytest.mark.parametrize(("addition", "said"), BROKEN.values(), ids=BROKEN)
async def test_broken_code_leaves_the_workers_that_are_there_at_work(
    supervise: Start,
    client: Any,
    workdir: Path,
    bell: "Bell",
    gate: "Gate",
    ledger: "Ledger",
    addition: str,
    said: str,
) -> None:
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    before = supervisor.worker_pids()
    held = await client.hold.kiq("held")
    bell.wait()
    application = workdir / "app.py"
    good = application.read_text()
    application.write_text(f"{good}\n{addition}\n")
    supervisor.process.send_signal(signal.SIGHUP)
    supervisor.log.wait_for(f"reload 1 rolled back, .*{said}")
    assert await result_of(await client.record.kiq(1)) == 1
    assert ledger.pids("record") <= set(before)

    application.write_text(f"{good}\n# mended\n")
    supervisor.process.send_signal(signal.SIGHUP)
    supervisor.log.wait_for("reload 2 done: 2 workers")
    gate.let_by(1)
    assert await result_of(held) == "held"
    assert ledger.counts("hold") == {"held": 1}
    assert await result_of(await client.record.kiq(2)) == 2
    assert ledger.entries("record")[1][1] not in before
    assert supervisor.stop() == 0


async def test_who_asked_for_the_reload_learns_how_it_ended(
    supervise: Start, client: Any, workdir: Path
) -> None:
    async def reload() -> tuple[int | None, str]:
        command = (*COMMAND, "reload", "--wait")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
        output, errors = await process.communicate()
        return process.returncode, (output + errors).decode()

    supervisor = supervise("app:broker", "--workers", "1").wait_ready()
    before = supervisor.worker_pids()
    application = workdir / "app.py"
    good = application.read_text()
    application.write_text(f"{good}\nraise RuntimeError('no settings')\n")
    status, answer = await reload()
    assert status == 1
    assert "Traceback" in answer
    assert "RuntimeError: no settings" in answer
    assert supervisor.worker_pids() == before
    assert await result_of(await client.record.kiq(1)) == 1

    application.write_text(f"{good}\n# mended\n")
    assert await reload() == (0, "app-broker: reloaded\n")
    assert set(supervisor.worker_pids()).isdisjoint(before)
    assert supervisor.stop() == 0


# --- it leaves orphans when it is killed ----------------------------------------------------------

STARTS_A_PROCESS = """
import subprocess
from taskiq import TaskiqEvents
from app import broker

@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def start(state):
    subprocess.Popen(["sleep", "1000"])
"""


async def test_when_it_is_killed_its_workers_and_what_they_started_end_too(
    supervise: Start, client: Any, workdir: Path, bell: "Bell", gate: "Gate"
) -> None:
    (workdir / "starts.py").write_text(STARTS_A_PROCESS)
    supervisor = supervise("starts:broker", "--workers", "2").wait_ready()
    tree = supervisor.tree()
    assert len(tree) == 6  # supervisor, zygote, two workers, one process of each
    await client.hold.kiq("running")
    bell.wait()
    supervisor.process.kill()
    supervisor.wait()
    left = supervisor.alive(tree, timeout=10)
    for process in left:
        process.kill()
    assert left == []


# --- it looks for the dead once a second ----------------------------------------------------------


def watched_by(pid: int) -> set[int]:
    """The processes whose end the kernel tells the event loop of this one."""
    polled: set[int] = set()
    pids: dict[int, int] = {}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed since the folder was read
            text = path.read_text()
            polled.update(map(int, re.findall(r"^tfd: +(\d+)", text, re.MULTILINE)))
            if match := re.search(r"^Pid:\s+(\d+)$", text, re.MULTILINE):
                pids[int(path.name)] = int(match[1])
    return {pids[number] for number in polled & pids.keys()}


async def test_it_is_told_of_each_death_and_replaces_the_worker_at_once(
    supervise: Start, client: Any, bell: "Bell", gate: "Gate"
) -> None:
    arguments = ("app:broker", "--workers", "2", "--max-async-tasks", "1")
    supervisor = supervise(*arguments).wait_ready()
    for generation in range(1, 6):
        workers = supervisor.status()["workers"]
        assert {worker["pid"] for worker in workers} <= watched_by(supervisor.pid)
        # Each completes a task: one that dies again before it has done so has to wait.
        tasks = [await client.hold.kiq(name) for name in ("one", "two")]
        assert {bell.wait()[1] for _ in tasks} == {worker["pid"] for worker in workers}
        gate.let_by(2)
        for task in tasks:
            await result_of(task)
        os.kill(workers[0]["pid"], signal.SIGKILL)
        supervisor.log.wait_for(rf"worker=0 gen={generation} .*SIGKILL; again at once")
        supervisor.log.wait_for(rf"worker=0 gen={generation + 1} pid=\d+ ready")
    assert supervisor.stop() == 0
