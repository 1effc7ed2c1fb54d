"""What a machine can do to a pool: no room for processes or memory, odd parents, lost children."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from taskiq.kicker import AsyncKicker
from tests.e2e import conftest

from taskiq_supervise import WorkerLostError

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Supervisor

Start = Callable[..., "Supervisor"]

# Not a user of any machine; one with processes of its own would have a limit for them too.
STRANGER = 54_321


async def run(client: Any, name: str, *arguments: object) -> Any:
    kicker: Any = AsyncKicker(name, client.broker, {})
    task = await kicker.kiq(*arguments)
    return await task.wait_result(timeout=30)


def zygote_of(supervisor: "Supervisor") -> psutil.Process:
    children = psutil.Process(supervisor.pid).children()
    (zygote,) = [child for child in children if "zygote" in " ".join(child.cmdline())]
    return zygote


# --- what workers start ---------------------------------------------------------------------------

STARTS = """
import os, signal, time
from app import append, broker

@broker.task
async def start():
    if os.fork() == 0:
        # A child that hears nothing, and its child.
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        os.fork()
        append("bell", "started", "-", os.getpid())
        time.sleep(1000)
    return os.getpid()
"""


async def test_what_a_worker_has_started_ends_with_it_killed_or_told_by_hand_to_end(
    supervise: Start, client: Any, workdir: Path, bell: "Bell"
) -> None:
    (workdir / "starts.py").write_text(STARTS)
    supervisor = supervise("app:broker", "starts", "--workers", "1").wait_ready()
    for end, said, reason in (
        (signal.SIGKILL, "killed by SIGKILL", "crash"),
        (signal.SIGTERM, "exited with status 0", "operator"),
    ):
        pid = (await run(client, "starts:start")).return_value
        started = {bell.wait()[1] for _ in range(2)}
        assert pid not in started
        os.kill(pid, end)
        supervisor.log.wait_for(rf"pid={pid} {said}; again at once")
        assert all(conftest.ended(child, timeout=5) for child in started)
        (worker,) = supervisor.status()["workers"]
        assert worker["last_exit_reason"] == reason
    supervisor.log.wait_for("worker=0 gen=2 .* drains, on a signal that was not ours")
    assert supervisor.stop() == 0


# --- how workers run ------------------------------------------------------------------------------


@pytest.mark.usefixtures("app")
def test_workers_are_nicer_pinned_and_more_expendable_than_the_supervisor(
    supervise: Start,
) -> None:
    supervisor = supervise("app:broker", "--workers", "3", "--nice", "5", "--pin").wait_ready()
    own = psutil.Process()
    workers = {worker["slot"]: worker["pid"] for worker in supervisor.status()["workers"]}
    for process in (psutil.Process(supervisor.pid), zygote_of(supervisor)):
        assert process.nice() == own.nice()
        assert process.cpu_affinity() == own.cpu_affinity()
        assert oom_score(process.pid) == oom_score(own.pid)
    allowed = sorted(own.cpu_affinity())
    for slot, pid in workers.items():
        assert psutil.Process(pid).cpu_affinity() == [allowed[slot % len(allowed)]]
        assert psutil.Process(pid).nice() == min(19, own.nice() + 5)
        assert oom_score(pid) == min(1000, oom_score(own.pid) + 100)
    # Its successor is like it.
    os.kill(workers[1], signal.SIGKILL)
    pid = int(supervisor.log.wait_for(r"worker=1 gen=2 pid=(\d+) ready")[1])
    assert psutil.Process(pid).nice() == min(19, own.nice() + 5)
    assert psutil.Process(pid).cpu_affinity() == [allowed[1 % len(allowed)]]
    assert oom_score(pid) == min(1000, oom_score(own.pid) + 100)
    assert supervisor.stop() == 0


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


# --- no process can be started --------------------------------------------------------------------


@pytest.fixture
def user_with_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """Limits on processes do not bind root: supervisors are started as a user that is none.

    The beginning of a command line that does so.
    """
    tools = shutil.which("setpriv"), shutil.which("prlimit")
    if None in tools:
        pytest.skip("there is no setpriv to be another user, or no prlimit to limit its processes")
    if os.geteuid() != 0:
        yield ()
        return
    # The folders of the tests are root's alone: it may read them all, and has its own to write to.
    rights = ("--inh-caps", "-all,+dac_override", "--ambient-caps", "-all,+dac_override")
    user = ("--reuid", str(STRANGER), "--regid", str(STRANGER), "--clear-groups")
    command = ("setpriv", *user, *rights)
    monkeypatch.setattr(conftest, "COMMAND", (*command, *conftest.COMMAND))
    with ExitStack() as stack:
        for variable in ("TASKIQ_SUPERVISE_RUNTIME_DIR", "TASKIQ_SUPERVISE_QUEUE_DIR"):
            folder = stack.enter_context(TemporaryDirectory(prefix="ts-"))
            os.chown(folder, STRANGER, STRANGER)
            monkeypatch.setenv(variable, folder)
        yield command


@pytest.fixture
def supervise_with_limits(user_with_limits: tuple[str, ...], supervise: Start) -> Start:
    """Ended before the folders are removed."""
    assert user_with_limits is not None
    return supervise


@pytest.mark.usefixtures("app")
def test_a_fork_that_fails_for_want_of_processes_is_tried_again(
    supervise_with_limits: Start, user_with_limits: tuple[str, ...]
) -> None:
    supervisor = supervise_with_limits("app:broker", "--workers", "2").wait_ready()
    first, second = supervisor.worker_pids()
    zygote = zygote_of(supervisor)
    limit = (*user_with_limits, "prlimit", "--pid", str(zygote.pid))
    show = [*limit, "--nproc", "--output", "SOFT", "--noheadings", "--raw"]
    before = subprocess.run(show, capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run([*limit, "--nproc=1:"], check=True)
    os.kill(first, signal.SIGKILL)
    supervisor.log.wait_for("worker=0 gen=2 could not be forked: .*temporarily unavailable")
    supervisor.log.wait_for(
        r"worker=0 gen=\d+ could not be forked: .*temporarily unavailable; again in \d+ ms"
    )
    status = supervisor.status()
    assert [worker["state"] for worker in status["workers"]] in (
        ["backoff", "ready"],
        ["forking", "ready"],
    )
    assert "1 of 2 workers cannot start: fork failed" in status["message"]
    subprocess.run([*limit, f"--nproc={before}:"], check=True)
    supervisor.log.wait_for(r"worker=0 gen=([2-9]|\d\d) pid=\d+ ready")
    status = supervisor.status()
    assert [worker["state"] for worker in status["workers"]] == ["ready", "ready"]
    assert status["message"] is None
    assert second in supervisor.worker_pids()
    assert zygote_of(supervisor) == zygote
    assert supervisor.stop() == 0


async def test_when_the_zygote_is_killed_the_workers_go_on_and_the_next_one_replaces_them(
    supervise: Start, client: Any, bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    held = await client.hold.kiq("held")
    _, pid = bell.wait()
    (other,) = set(supervisor.worker_pids()) - {pid}
    zygote_of(supervisor).kill()
    os.kill(other, signal.SIGKILL)
    supervisor.log.wait_for("zygote=1 killed by SIGKILL; again at once")
    supervisor.log.wait_for(r"worker=\d gen=[2-9] pid=\d+ ready")
    gate.let_by(1)
    assert (await held.wait_result(timeout=30)).return_value == "held"
    assert pid in supervisor.worker_pids()
    assert [worker["state"] for worker in supervisor.status()["workers"]] == ["ready"] * 2
    assert supervisor.stop() == 0


# --- no memory ------------------------------------------------------------------------------------

EATS = """
import os
from app import append, broker

@broker.task
def eat():
    append("ledger", "eat", "-", os.getpid())
    eaten = []
    while True:
        eaten.append(os.urandom(1024) * 16384)
"""


@pytest.fixture
def in_a_cgroup_of_256_mib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Supervisors are started in a cgroup of their own with so much memory."""
    base = Path("/sys/fs/cgroup")
    controllers = base / "cgroup.subtree_control"
    if not controllers.exists() or "memory" not in controllers.read_text().split():
        pytest.skip("there is no cgroup v2 at /sys/fs/cgroup that shares out memory")
    cgroup = base / f"taskiq-supervise-test-{os.getpid()}"
    try:
        cgroup.mkdir()
        (cgroup / "memory.max").write_text("256M")
        (cgroup / "memory.swap.max").write_text("0")
    except OSError as error:
        if cgroup.exists():
            cgroup.rmdir()
        pytest.skip(f"a cgroup with limited memory cannot be made: {error}")
    enter = f'echo $$ > {cgroup}/cgroup.procs && exec "$@"'
    monkeypatch.setattr(conftest, "COMMAND", ("sh", "-c", enter, "sh", *conftest.COMMAND))
    yield
    cgroup.rmdir()


@pytest.fixture
def supervise_in_256_mib(in_a_cgroup_of_256_mib: None, supervise: Start) -> Start:
    """Ended before the cgroup is removed."""
    return supervise


async def test_a_worker_killed_for_want_of_memory_is_said_to_be_so(
    supervise_in_256_mib: Start, client: Any, workdir: Path
) -> None:
    (workdir / "eats.py").write_text(EATS)
    arguments = ("app:broker", "eats", "--workers", "1", "--max-deliveries", "1")
    supervisor = supervise_in_256_mib(*arguments).wait_ready()
    result = await run(client, "eats:eat")
    with pytest.raises(WorkerLostError, match="out of memory") as caught:
        result.raise_for_error()
    assert caught.value.oom
    supervisor.log.wait_for("worker=0 gen=1 .* killed by SIGKILL: out of memory; again at once")
    (worker,) = supervisor.status()["workers"]
    assert worker["last_exit_reason"] == "oom"
    assert supervisor.stop() == 0


# --- PID 1 ----------------------------------------------------------------------------------------

LEAVES = """
import os
from taskiq import TaskiqEvents
from app import append, broker

@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def leave_an_orphan(state):
    child = os.fork()
    if child == 0:
        os.setsid()  # beyond the reach of the worker's process group
        if os.fork() == 0:
            append("bell", "orphan", "-", os.getpid())
            os.read(os.open("gate", os.O_RDONLY), 1)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture
def as_pid_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Supervisors are started as the first process of a namespace."""
    command = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no namespace for processes can be made: {tried.stderr.strip()}")
    monkeypatch.setattr(conftest, "COMMAND", (*command, *conftest.COMMAND))


@pytest.mark.usefixtures("app", "as_pid_1")
def test_as_pid_1_it_reaps_strangers_replaces_workers_and_hears_sigterm(
    supervise: Start, workdir: Path, bell: "Bell", gate: "Gate"
) -> None:
    (workdir / "leaves.py").write_text(LEAVES)
    unshare = supervise("leaves:broker", "--workers", "2", "--log-level", "DEBUG").wait_ready()
    unshare.log.wait_for(r"taskiq-supervise \S+ pid=1: ")
    orphans = {bell.wait()[1] for _ in range(2)}
    gate.let_by(2)
    for orphan in orphans:
        unshare.log.wait_for(rf"reaped pid={orphan}, which somebody left to us")

    (supervisor,) = psutil.Process(unshare.pid).children()
    assert all(child.status() != psutil.STATUS_ZOMBIE for child in supervisor.children())
    titles = {" ".join(child.cmdline()): child for child in supervisor.children()}
    (worker,) = [child for title, child in titles.items() if "worker 0" in title]
    worker.kill()
    unshare.log.wait_for(r"worker=0 gen=2 pid=\d+ ready")
    bell.wait()
    gate.let_by(1)
    supervisor.send_signal(signal.SIGTERM)
    assert unshare.wait() == 0
    unshare.log.wait_for_end(timeout=1)
    assert re.search(r"\] stopped\n", unshare.log.text)
