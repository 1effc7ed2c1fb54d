"""The template in a real systemd: what `systemctl` and `journalctl` make of an instance."""

import json
import logging
import time
from collections.abc import Iterator

import pytest
from tests.systemd.box import Box
from tests.systemd.installation import COMMAND
from tests.systemd.service import ACCOUNT, Service

GATED = """
from taskiq import TaskiqEvents

@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def wait(state: object) -> None:
    wait_at_gate("start")
"""
"""Workers that get ready one by one."""


def version(number: int) -> str:
    return f"\n\n@broker.task\nasync def version() -> int:\n    return {number}\n"


# --- start ----------------------------------------------------------------------------------------


def test_it_is_active_only_once_every_worker_is_ready(service: Service) -> None:
    service.code(GATED)
    with service.pipe("bell") as bell, service.pipe("gate") as gate, service.journal() as journal:
        start = service.begin("start")
        assert {bell.read_line().split()[0] for _ in range(2)} == {"start"}
        gate.write(".")
        journal.wait_for("worker=. gen=1 .* ready$")
        assert service.state == "activating"
        assert start.poll() is None
        gate.write(".")
        assert start.wait() == 0
        assert service.state == "active"
        assert len(service.status()["workers"]) == 2
        assert service.status_text == "2 workers ready · 0 queued · 0 tasks/min"


def test_its_workers_have_a_control_group_of_their_own(service: Service) -> None:
    service.start()
    groups = service.groups()
    assert set(groups) == {".", "supervisor", "workers"}
    assert groups["."] == set()
    assert groups["supervisor"] == {service.main_pid}
    workers = service.worker_pids()
    assert len(workers) == 2
    assert groups["workers"] > workers  # and the zygote
    service.systemctl("restart")
    assert service.groups()["supervisor"] == {service.main_pid}


# --- reload ---------------------------------------------------------------------------------------


def test_a_reload_is_over_when_the_new_code_runs(service: Service) -> None:
    service.code(version(1))
    service.start()
    assert service.call("version")["value"] == 1
    before = service.worker_pids()
    service.code(GATED + version(2))
    with service.pipe("bell") as bell, service.pipe("gate") as gate:
        reload = service.begin("reload")
        bell.read_line()
        assert service.state == "reloading"
        assert reload.poll() is None
        assert before <= service.worker_pids()
        gate.write("..")
        assert reload.wait() == 0
    assert service.state == "active"
    assert not before & service.worker_pids()
    assert service.call("version")["value"] == 2


def test_a_reload_of_broken_code_fails_and_leaves_the_workers_alone(service: Service) -> None:
    service.code(version(1))
    service.start()
    before, main = service.worker_pids(), service.main_pid
    service.code("\nraise LookupError('no such table: orders')\n")
    done = service.box.run("systemctl", "reload", service.unit, check=False)
    assert done.returncode != 0
    assert "failed" in done.stderr
    assert service.state == "active"
    assert (service.worker_pids(), service.main_pid) == (before, main)
    assert "rolled back" in service.status_text
    assert "no such table: orders" in service.status_text
    assert service.status_text.split(" · ")[0] in service.systemctl("status")
    assert service.entries("PRIORITY=3", "PRIORITY=4")

    service.code(version(3))
    assert service.call("version")["value"] == 1
    service.systemctl("reload")
    assert service.call("version")["value"] == 3
    assert "rolled back" not in service.status_text


# --- restart, stop --------------------------------------------------------------------------------


def test_restarts_lose_and_double_nothing(service: Service) -> None:
    service.start()
    mains = {service.main_pid}
    with service.flood() as flood:
        for _ in range(5):
            flood.goes_on()
            service.systemctl("restart")
            mains.add(service.main_pid)
        flood.goes_on()
        outcome = flood.end()
    assert len(mains) == 6
    assert outcome["wrong"] == {}
    assert outcome["right"] == outcome["sent"] > 600
    ran = service.ledger("ran")
    assert set(ran) == {str(number) for number in range(outcome["sent"])}
    assert set(ran.values()) == {1}


def test_what_is_sent_while_it_is_stopped_runs_when_it_starts(service: Service) -> None:
    service.start()
    service.systemctl("stop")
    assert service.show("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    service.send("add", 7)
    assert service.ledger("ran") == {}
    service.start()
    assert service.call("add", 8)["value"] == 8
    assert service.ledger("ran") == {"7": 1, "8": 1}


def test_a_stop_waits_longer_than_its_limit_while_a_task_runs(service: Service) -> None:
    service.drop_in(TimeoutStopSec="1s")
    service.start()
    with service.pipe("bell") as bell, service.pipe("gate") as gate, service.journal() as journal:
        service.send("hold", "long")
        bell.read_line()
        stop = service.begin("stop")
        journal.wait_for(r"^Stopping ")
        # Twice what it has without an extension.
        time.sleep(2)
        assert stop.poll() is None
        assert service.state == "deactivating"
        assert "1 task still runs" in service.status_text
        gate.write(".")
        assert stop.wait() == 0
    assert service.show("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert service.ledger("held") == {"long": 1}
    assert not [entry for entry in service.entries() if "SIGKILL" in str(entry["MESSAGE"])]


# --- what is seen of it ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(box: Box) -> Iterator[Service]:
    """One that is only looked at."""
    service = Service(box, "running")
    service.configure()
    service.start()
    yield service
    service.end()


@pytest.mark.parametrize("user", ["root", ACCOUNT])
def test_status_from_a_shell_finds_it(running: Service, user: str) -> None:
    said = running.box.run(COMMAND, "status", "--json", user=user).stdout
    (instance,) = json.loads(said)["instances"]
    assert (instance["name"], instance["pid"]) == (running.name, running.main_pid)
    for probe in ("live", "ready"):
        running.box.run(COMMAND, "status", "--probe", probe, running.name, user=user)


def test_the_journal_knows_how_bad_it_is_and_which_task_it_was(running: Service) -> None:
    tasks = {
        priority: running.call("log", level, f"it is {priority}")["id"]
        for priority, level in {
            3: logging.ERROR,
            4: logging.WARNING,
            6: logging.INFO,
        }.items()
    }
    for priority, task in tasks.items():
        (entry,) = [
            entry
            for entry in running.entries(f"TASK_ID={task}")
            if entry["MESSAGE"] == f"it is {priority}"
        ]
        assert entry["PRIORITY"] == str(priority)
        assert entry["TASK_NAME"] == "app:log"
        assert entry["LOGGER"] == "shop"
        assert entry["WORKER"] in {"0", "1"}
        assert entry["INSTANCE"] == running.name
        assert int(entry["_PID"]) in running.worker_pids()
        assert {one["TASK_ID"] for one in running.entries(f"TASK_ID={task}")} == {task}
    errors = running.box.run("journalctl", "-q", "-ocat", "-perr", "-u", running.unit).stdout
    assert errors.splitlines() == ["it is 3"]


def test_what_a_task_prints_is_in_the_journal_at_once(running: Service) -> None:
    running.call("say", "printed")
    assert [entry["MESSAGE"] for entry in running.entries()].count("printed") == 2


def test_no_child_speaks_for_it(running: Service) -> None:
    said = running.status_text
    with running.journal() as journal:
        outcome = running.call("speak_for_the_service")["value"]
        assert outcome == {"inherited": [], "sent": True}
        journal.wait_for("reception only permitted for main PID")
    assert running.status_text.split(" · ")[0] == said.split(" · ")[0] == "2 workers ready"
