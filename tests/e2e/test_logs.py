"""The log: one line per happening that programs can read, and the tasks' own output as it is."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskiq.kicker import AsyncKicker

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Supervisor

Start = Callable[..., "Supervisor"]

SERVICE = """
import logging, os, sys, warnings
from app import append, broker

@broker.task
def say(text):
    print(text, flush=True)
    print(text, file=sys.stderr, flush=True)
    os.write(1, f"{text}\\n".encode())
    logging.getLogger("service").warning("said %s", text, extra={"length": len(text)})
"""
OWN = 'taskiq-supervise: not "JSON" {at all}'


async def run(client: Any, name: str, *arguments: object) -> Any:
    kicker: Any = AsyncKicker(name, client.broker, {})
    task = await kicker.kiq(*arguments)
    return await task.wait_result(timeout=30)


async def test_in_json_every_line_of_ours_says_who_and_tasks_write_what_they_like(
    supervise: Start, client: Any, workdir: Path
) -> None:
    (workdir / "service.py").write_text(SERVICE)
    options = ("--log-style", "json", "--log-level", "DEBUG", "--name", "shop")
    supervisor = supervise("app:broker", "service", "--workers", "2", *options).wait_ready()
    (await run(client, "service:say", OWN)).raise_for_error()
    assert (await run(client, "app:divide", 1, 0)).is_err
    first = supervisor.status()["workers"][0]["pid"]
    os.kill(first, signal.SIGUSR1)
    supervisor.log.wait_for("stands at")
    os.kill(first, signal.SIGKILL)
    supervisor.log.wait_for(r"worker=0 gen=2 pid=\d+ ready")
    code = (workdir / "service.py").read_text()
    (workdir / "service.py").write_text(code + "\nraise RuntimeError('no settings')\n")
    supervisor.process.send_signal(signal.SIGHUP)
    supervisor.log.wait_for("reload 1: nothing is left of the new code")
    workers = {worker["pid"]: worker["slot"] for worker in supervisor.status()["workers"]}
    assert supervisor.stop() == 0

    lines = supervisor.log.text.splitlines()
    assert lines.count(OWN) == 3
    records = [json.loads(line) for line in lines if line != OWN]
    for record in records:
        assert {"time", "level", "logger", "message", "process", "pid", "worker"} <= set(record)
        assert record["instance"] == "shop"
    by_supervisor = [record for record in records if record["process"] == "supervisor"]
    assert {record["pid"] for record in by_supervisor} == {supervisor.pid}
    by_workers = [record for record in records if record["process"].startswith("worker-")]
    for record in by_workers:
        if record["pid"] in workers:
            assert record["worker"] == workers[record["pid"]]
    assert {record["worker"] for record in by_workers} == {0, 1}

    (said,) = [record for record in records if record["message"] == f"said {OWN}"]
    assert (said["logger"], said["level"], said["length"]) == ("service", "WARNING", len(OWN))
    (begun,) = [one for one in by_workers if one["message"].startswith("Executing task service:")]
    assert said["task_id"] == begun["task_id"]
    assert said["task_name"] == begun["task_name"] == "service:say"
    (failed,) = [record for record in by_workers if "exception" in record]
    assert "ZeroDivisionError: division by zero" in failed["exception"]
    assert failed["task_name"] == "app:divide"
    assert failed["task_id"] != said["task_id"]
    assert all("task_id" not in record for record in by_supervisor)

    def events(name: str) -> list[dict[str, Any]]:
        return [record for record in by_supervisor if record.get("event") == name]

    ready = [(one["worker"], one["gen"]) for one in events("worker_ready")]
    assert ready in ([(0, 1), (1, 1), (0, 2)], [(1, 1), (0, 1), (0, 2)])
    (crash,) = [one for one in events("worker_exited") if one["reason"] == "crash"]
    assert (crash["worker"], crash["gen"], crash["worker_pid"]) == (0, 1, first)
    assert (crash["exit"], crash["delay"]) == ("killed by SIGKILL", 0)
    (stacks,) = [record["stacks"] for record in by_supervisor if "stacks" in record]
    assert "most recent call first" in stacks
    (broken,) = events("reload_failed")
    assert (broken["reload"], broken["level"]) == (1, "ERROR")
    assert "RuntimeError: no settings" in broken["message"]
    assert "service.py" in broken["exception"]


async def test_a_line_from_a_process_for_sync_tasks_says_which_task_it_is(
    supervise: Start, client: Any, workdir: Path
) -> None:
    (workdir / "service.py").write_text(SERVICE)
    options = ("--workers", "1", "--use-process-pool", "--max-process-pool-processes", "1")
    supervisor = supervise("app:broker", "service", *options, "--log-style", "json").wait_ready()
    for text in ("one", "two"):
        (await run(client, "service:say", text)).raise_for_error()
    assert supervisor.stop() == 0
    lines = [line for line in supervisor.log.text.splitlines() if line.startswith("{")]
    records = [json.loads(line) for line in lines]
    said = {one["message"]: one for one in records if one["logger"] == "service"}
    assert set(said) == {"said one", "said two"}
    assert len({one["task_id"] for one in said.values()}) == 2
    assert {one["task_name"] for one in said.values()} == {"service:say"}


CONFIGURES = """
import logging
logging.basicConfig(format="MINE %(levelname)s %(message)s", level=logging.INFO)
from app import *
"""


async def test_an_application_that_configures_logging_is_left_to_do_so(
    supervise: Start, client: Any, workdir: Path
) -> None:
    (workdir / "configures.py").write_text(CONFIGURES)
    (workdir / "service.py").write_text(SERVICE)
    arguments = ("configures:broker", "service", "--workers", "1", "--no-configure-logging")
    supervisor = supervise(*arguments).wait_ready()
    (await run(client, "service:say", OWN)).raise_for_error()
    assert supervisor.stop() == 0
    lines = supervisor.log.text.splitlines()
    assert lines.count(OWN) == 3
    assert f"MINE WARNING said {OWN}" in lines
    assert any(re.match("MINE INFO Executing task service:say", line) for line in lines)
    # The supervisor has no application in it, and keeps its own.
    ours = [line for line in lines if line != OWN and not line.startswith("MINE ")]
    assert ours
    assert all(line.startswith("[") and "][supervisor]" in line for line in ours)


async def test_sigusr1_shows_where_all_workers_stand_and_sigusr2_ends_nothing(
    supervise: Start, client: Any, bell: "Bell", gate: "Gate"
) -> None:
    arguments = ("app:broker", "--workers", "2", "--max-async-tasks", "1")
    supervisor = supervise(*arguments).wait_ready()
    held = [await client.hold.kiq(name) for name in ("one", "two")]
    pids = {bell.wait()[1] for _ in held}
    supervisor.process.send_signal(signal.SIGUSR1)
    for pid in pids:
        supervisor.log.wait_for(rf"worker=\d gen=1 pid={pid} stands at")
    supervisor.process.send_signal(signal.SIGUSR2)
    supervisor.log.wait_for("SIGUSR2 does nothing: .* stop and start it")
    for pid in pids:
        _, _, after = supervisor.log.text.partition(f"pid={pid} stands at\n")
        stacks, _, _ = after.partition("][supervisor] ")
        assert re.search(r'app\.py", line \d+ in hold\n', stacks)
    gate.let_by(2)
    results = [await task.wait_result(timeout=30) for task in held]
    assert [result.return_value for result in results] == ["one", "two"]
    assert set(supervisor.worker_pids()) == pids
    assert supervisor.stop() == 0
