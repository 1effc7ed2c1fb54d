"""The shell with real processes: what the simulated kernel cannot show."""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from taskiq_supervise.supervisor.client import Client, ControlError, NotRunning, statuses

if TYPE_CHECKING:
    from tests.e2e.conftest import Supervisor

Start = Callable[..., "Supervisor"]

BROKER = "from taskiq_supervise import SharedMemoryBroker\nbroker = SharedMemoryBroker('queue')\n"
NEEDS_SERVER = (
    BROKER
    + "from pathlib import Path\n"
    + "from taskiq import TaskiqEvents\n"
    + "@broker.on_event(TaskiqEvents.WORKER_STARTUP)\n"
    + "async def connect(state):\n"
    + "    if not Path('server').exists():\n"
    + "        raise ConnectionError('no server at localhost:6379')\n"
)
STARTS_A_THREAD = (
    BROKER
    + "import threading\n"
    + "threading.Thread(target=threading.Event().wait, daemon=True, name='metrics').start()\n"
)
# Each worker starts a process in its group, and one that is nobody's and ends by itself.
LEAVES_PROCESSES = (
    BROKER
    + "import os, subprocess\n"
    + "from taskiq import TaskiqEvents\n"
    + "@broker.on_event(TaskiqEvents.WORKER_STARTUP)\n"
    + "async def start(state):\n"
    + "    subprocess.Popen(['sleep', '1000'])\n"
    + "    subprocess.Popen(['sh', '-c', 'sleep 0.01 & exit 0'], start_new_session=True).wait()\n"
)


@pytest.fixture
def write(workdir: Path) -> Callable[[str], None]:
    """Writes the application into the folder of the test."""

    def write(text: str) -> None:
        (workdir / "app.py").write_text(text)

    return write


def zygote_of(supervisor: "Supervisor") -> psutil.Process:
    (zygote,) = [
        process
        for process in psutil.Process(supervisor.pid).children()
        if "zygote" in " ".join(process.cmdline())
    ]
    return zygote


def command_of(process: psutil.Process) -> str:
    """Nothing for one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # and ZombieProcess, which is one
        return ""


def test_a_server_that_is_not_there_is_waited_for_and_said(
    supervise: Start, write: Callable[[str], None], workdir: Path
) -> None:
    write(NEEDS_SERVER)
    supervisor = supervise("app:broker", "--workers", "1")
    for generation in (1, 2, 3):
        supervisor.log.wait_for(rf"worker=0 gen={generation} .*no server at localhost:6379; again")
    status = Client("app-broker").status()
    assert status["state"] == "starting"
    assert "no server at localhost:6379" in status["message"]
    assert status["workers"][0]["last_exit"] == "exited with status 3"
    (workdir / "server").touch()
    supervisor.wait_ready()
    assert Client("app-broker").status()["message"] is None
    assert supervisor.log.text.count("Traceback") == 0
    assert supervisor.stop() == 0


@pytest.mark.parametrize("arguments", [(), ("--no-preload",)], ids=["found out", "asked for"])
def test_an_application_with_threads_is_imported_by_each_worker(
    supervise: Start, write: Callable[[str], None], arguments: tuple[str, ...]
) -> None:
    write(STARTS_A_THREAD)
    supervisor = supervise("app:broker", "--workers", "2", *arguments).wait_ready()
    assert ("threads (metrics)" in supervisor.log.text) == (not arguments)
    assert zygote_of(supervisor).num_threads() == 1
    for pid in supervisor.worker_pids():
        assert psutil.Process(pid).num_threads() > 1
    assert supervisor.stop() == 0


def test_workers_go_on_when_the_zygote_dies_and_the_code_is_broken_since(
    supervise: Start, write: Callable[[str], None]
) -> None:
    write(BROKER)
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    before = supervisor.worker_pids()
    write(BROKER + "this is not Python\n")
    zygote_of(supervisor).kill()
    supervisor.log.wait_for("zygote=2 failed: .*NameError.*; running workers go on; again in")
    status = Client("app-broker").status()
    assert [worker["pid"] for worker in status["workers"]] == before
    assert "cannot be loaded again" in status["message"]

    os.kill(before[0], signal.SIGKILL)
    supervisor.log.wait_for("worker=0 gen=1 .*killed by SIGKILL")
    write(BROKER)
    supervisor.log.wait_for("worker=0 gen=2 .*ready")
    assert Client("app-broker").status()["message"] is None
    assert supervisor.stop() == 0


def test_an_application_that_moved_to_another_queue_needs_a_restart(
    supervise: Start, write: Callable[[str], None]
) -> None:
    write(BROKER)
    supervisor = supervise("app:broker", "--workers", "1").wait_ready()
    write(BROKER.replace("'queue'", "'other'"))
    zygote_of(supervisor).kill()
    supervisor.log.wait_for("'other' in .* instead of .*'queue' in .*; stop and start")
    assert [worker["state"] for worker in Client("app-broker").status()["workers"]] == ["ready"]
    assert supervisor.stop() == 0


def test_storms_leave_no_zombies_no_descriptors_and_a_full_pool(
    supervise: Start, write: Callable[[str], None]
) -> None:
    write(LEAVES_PROCESSES)
    supervisor = supervise("app:broker", "--workers", "3").wait_ready()
    process = psutil.Process(supervisor.pid)
    descriptors = []
    for generation in range(1, 5):
        descriptors.append(process.num_fds())
        for slot, pid in enumerate(supervisor.worker_pids()):
            supervisor.log.wait_for(rf"worker={slot} gen={generation} .*ready")
            os.kill(pid, signal.SIGKILL)
        for slot in range(3):
            supervisor.log.wait_for(rf"worker={slot} gen={generation + 1} .*ready")
    # A request for the status may be on its way out; one for each of nine restarts may not.
    assert max(descriptors) - min(descriptors) < 4
    below = process.children(recursive=True)
    # Whatever has ended or is about to is gone when it has been reaped.
    passing = [child for child in below if command_of(child) in {"", "sleep 0.01"}]
    assert psutil.wait_procs(passing, timeout=10)[1] == []
    # The group of a dead worker died with it.
    assert [command_of(child) for child in below].count("sleep 1000") == 3
    assert [one["restarts"] for one in Client("app-broker").status()["workers"]] == [4, 4, 4]
    assert supervisor.stop() == 0
    assert psutil.wait_procs(below, timeout=10)[1] == []


def test_a_stopped_worker_does_not_hold_up_the_third_signal(
    supervise: Start, write: Callable[[str], None]
) -> None:
    write(BROKER)
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    os.kill(supervisor.worker_pids()[0], signal.SIGSTOP)
    for said in ("stopping:", "stopping now:", "stopping at once:"):
        supervisor.process.send_signal(signal.SIGTERM)
        supervisor.log.wait_for(said)
    assert supervisor.wait() == 0
    assert "stopped" in supervisor.log.wait_for_end(timeout=5)


def test_a_stopped_worker_is_killed_when_its_time_is_over(
    supervise: Start, write: Callable[[str], None]
) -> None:
    write(BROKER)
    arguments = ("--graceful-timeout", "0", "--shutdown-timeout", "0")
    supervisor = supervise("app:broker", "--workers", "1", *arguments).wait_ready()
    os.kill(supervisor.worker_pids()[0], signal.SIGSTOP)
    assert supervisor.stop() == 0
    assert "had not ended 3 s after it was told to stop: killed" in supervisor.log.text


def test_a_stopped_supervisor_is_unresponsive_and_a_dead_one_is_not_listed(
    supervise: Start, write: Callable[[str], None]
) -> None:
    write(BROKER)
    supervisor = supervise("app:broker").wait_ready()
    os.kill(supervisor.pid, signal.SIGSTOP)
    try:
        (found,) = statuses(timeout=0.1)
        assert (found["state"], found["pid"]) == ("unresponsive", supervisor.pid)
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
    supervisor.process.kill()
    supervisor.wait()
    assert statuses() == []
    with pytest.raises(NotRunning):
        Client("app-broker").status()


def test_a_runtime_directory_deeper_than_a_sockets_path_works(
    supervise: Start, write: Callable[[str], None], workdir: Path
) -> None:
    write(BROKER)
    deep = str(workdir / ("deep" * 30))
    environment = {"TASKIQ_SUPERVISE_RUNTIME_DIR": deep}
    supervisor = supervise("app:broker", environment=environment).wait_ready()
    command = [sys.executable, "-m", "taskiq_supervise", "status", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    (found,) = json.loads(done.stdout)["instances"]
    assert found["pid"] == supervisor.pid
    assert supervisor.stop() == 0
    assert list(Path(deep).iterdir()) == []


def test_a_command_that_is_not_known_is_an_error_and_nothing_else(
    supervise: Start, write: Callable[[str], None]
) -> None:
    write(BROKER)
    supervisor = supervise("app:broker", "--workers", "1").wait_ready()
    with pytest.raises(ControlError, match="unknown command 'dance'; known: reload, scale, status"):
        Client("app-broker").request("dance")
    assert supervisor.stop() == 0


def test_the_supervisors_process_has_one_thread_and_has_not_imported_the_application(
    supervise: Start, write: Callable[[str], None]
) -> None:
    write(BROKER)
    supervisor = supervise("app:broker", "--workers", "1").wait_ready()
    process = psutil.Process(supervisor.pid)
    assert process.num_threads() == 1
    mapped = {Path(one.path).name for one in process.memory_maps()}
    assert not [name for name in mapped if "uvloop" in name or "pydantic" in name]
    assert " ".join(process.cmdline()).rstrip() == "taskiq-supervise: supervisor [app:broker]"
    assert supervisor.stop() == 0


def scheduled_ms(pid: int) -> float:
    """CPU time in milliseconds, exact: psutil's is in ticks of ten."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


def test_an_idle_supervisor_costs_next_to_nothing(
    supervise: Start, write: Callable[[str], None]
) -> None:
    write(BROKER)
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    pidfd = os.pidfd_open(supervisor.pid)
    try:
        used, began = scheduled_ms(supervisor.pid), time.monotonic()
        assert select.select([pidfd], [], [], 3.0)[0] == []  # three seconds, if it lives on
        per_second = (scheduled_ms(supervisor.pid) - used) / (time.monotonic() - began)
    finally:
        os.close(pidfd)
    assert per_second < 2.0
    assert supervisor.stop() == 0


def test_a_supervisor_that_cannot_bind_its_socket_says_so_in_one_line(
    write: Callable[[str], None], workdir: Path
) -> None:
    write(BROKER)
    runtime = workdir / "runtime"
    (runtime / "one" / "control.sock").mkdir(parents=True)
    runtime.chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-m", "taskiq_supervise", "app:broker", "--name", "one"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TASKIQ_SUPERVISE_RUNTIME_DIR": str(runtime)},
    )
    assert done.returncode == 1
    assert "control.sock" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_supervisor_may_open_more_descriptors_than_its_workers(
    supervise: Start, write: Callable[[str], None]
) -> None:
    """Each worker takes five of its own; the usual limit of 1,024 would be enough for 200."""
    write(BROKER)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 64), hard))
    try:
        supervisor = supervise("app:broker", "--workers", "12")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    supervisor.wait_ready()
    assert resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE)[0] == hard
    for pid in supervisor.worker_pids():
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (min(soft, 64), hard)
    assert supervisor.stop() == 0
