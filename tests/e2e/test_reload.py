"""Reloading: the new code takes over without a task lost or doubled, or nothing changes at all."""

import asyncio
import itertools
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from taskiq.kicker import AsyncKicker
from tests.e2e.conftest import COMMAND

from taskiq_supervise.supervisor.client import Client

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor

Start = Callable[..., "Supervisor"]

INSTANCE = "app-broker"


class Code:
    """The workers' `service.py`, whose task `version` says which one it is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, version: int, addition: str = "") -> None:
        self._path.write_text(
            "import asyncio, os, signal, time\n"
            "from taskiq import TaskiqEvents\n"
            "from app import append, broker, pass_gate\n"
            "@broker.task\n"
            "async def version(number):\n"
            '    append("ledger", "version", number, os.getpid())\n'
            f"    return {version}\n"
            f"{addition}\n"
            # Python takes a cached module for the new one if size and second are the same.
            f"#{'.' * version}\n"
        )


IMPORT_WAITS = """
append("bell", "import", "-", os.getpid())
os.read(os.open("gate", os.O_RDONLY), 1)
"""
AT_STARTUP = "@broker.on_event(TaskiqEvents.WORKER_STARTUP)\nasync def connect(state):\n    {}"


@pytest.fixture
def code(workdir: Path) -> Code:
    code = Code(workdir / "service.py")
    code.write(1)
    return code


async def version(client: Any, number: int) -> int:
    """Of the code that runs this task."""
    kicker: Any = AsyncKicker("service:version", client.broker, {})
    task = await kicker.kiq(number)
    result = await task.wait_result(timeout=30)
    result.raise_for_error()
    return int(result.return_value)


class Reload:
    """`reload --wait`, under way."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def begin(cls) -> "Reload":
        pipe = asyncio.subprocess.PIPE
        command = (*COMMAND, "reload", "--wait")
        return cls(await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe))

    async def end(self) -> tuple[int | None, str]:
        """Its exit status, and what it says on stderr."""
        _, errors = await self.process.communicate()
        return self.process.returncode, errors.decode()


async def reload() -> tuple[int | None, str]:
    return await (await Reload.begin()).end()


def pids(supervisor: "Supervisor") -> set[int]:
    return {process.pid for process in supervisor.tree()}


def only_the_pool(supervisor: "Supervisor", workers: int) -> None:
    """What a reload needed meanwhile is gone."""
    status = supervisor.status()
    slots = [(worker["slot"], worker["state"]) for worker in status["workers"]]
    assert slots == [(slot, "ready") for slot in range(workers)]
    assert status["pools"][0]["reload"] is None
    assert len(pids(supervisor)) == 2 + workers  # supervisor and zygote


# --- it works -------------------------------------------------------------------------------------


async def test_under_load_nothing_is_lost_and_nothing_doubled(
    supervise: Start, client: Any, code: Code, ledger: "Ledger"
) -> None:
    supervisor = supervise("app:broker", "service", "--workers", "3").wait_ready()
    before = supervisor.worker_pids()
    ended = asyncio.Event()
    numbers = iter(range(1_000_000))
    versions: dict[int, int] = {}

    async def send() -> None:
        while not ended.is_set():
            number = next(numbers)
            versions[number] = await version(client, number)

    senders = [asyncio.create_task(send()) for _ in range(8)]
    code.write(2)
    supervisor.process.send_signal(signal.SIGHUP)
    # In a thread: the senders go on.
    await asyncio.to_thread(supervisor.log.wait_for, "reload 1 done: 3 workers")
    for slot in range(3):
        gone = rf"worker={slot} gen=1 pid=\d+ exited with status 0: reload"
        await asyncio.to_thread(supervisor.log.wait_for, gone)
    ended.set()
    await asyncio.gather(*senders)

    assert set(supervisor.worker_pids()).isdisjoint(before)
    assert set(versions.values()) == {1, 2}
    assert {await version(client, -number) for number in range(1, 10)} == {2}
    ran = ledger.counts("version")
    assert set(ran.values()) == {1}
    assert len(ran) == len(versions) + 9
    assert [worker["restarts"] for worker in supervisor.status()["workers"]] == [0, 0, 0]
    assert not re.search("WARNING|ERROR", supervisor.log.without_tasks)
    assert supervisor.stop() == 0


async def test_a_long_task_ends_in_the_old_code_while_the_new_is_at_work(
    supervise: Start, client: Any, code: Code, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    arguments = ("app:broker", "service", "--workers", "2", "--graceful-timeout", "600")
    supervisor = supervise(*arguments).wait_ready()
    held = await client.hold.kiq("long")
    _, pid = bell.wait()
    code.write(2)
    under_way = await Reload.begin()
    supervisor.log.wait_for("reload 1 done: 2 workers")
    supervisor.log.wait_for(r"worker=\d gen=1 pid=\d+ exited with status 0: reload")
    workers = supervisor.status()["workers"]
    states = {(worker["generation"], worker["state"]) for worker in workers}
    assert states == {(1, "draining"), (2, "ready")}
    assert [worker["pid"] for worker in workers if worker["generation"] == 1] == [pid]
    assert {await version(client, number) for number in range(10)} == {2}
    assert under_way.process.returncode is None

    gate.let_by(1)
    assert (await held.wait_result(timeout=30)).return_value == "long"
    assert await under_way.end() == (0, "")
    assert ledger.entries("hold") == [("long", pid)]
    only_the_pool(supervisor, 2)
    assert supervisor.stop() == 0


async def test_a_task_that_takes_too_long_for_it_runs_again_in_the_new_code_uncounted(
    supervise: Start, client: Any, code: Code, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    limits = ("--graceful-timeout", "0", "--max-deliveries", "1")
    supervisor = supervise("app:broker", "service", "--workers", "1", *limits).wait_ready()
    held = [await client.hold.kiq("sync"), await client.hold_async.kiq("async")]
    (old,) = {bell.wait()[1] for _ in held}
    code.write(2)
    assert await reload() == (0, "")
    (new,) = supervisor.worker_pids()
    assert new != old
    assert {bell.wait() for _ in held} == {("sync", new), ("async", new)}
    gate.let_by(2)
    results = [await task.wait_result(timeout=30) for task in held]
    assert [result.return_value for result in results] == ["sync", "async"]
    assert ledger.counts("hold") == {"sync": 2, "async": 2}
    assert ledger.counts("held") == {"sync": 1, "async": 1}
    assert supervisor.stop() == 0


async def test_of_those_asked_for_during_one_there_is_one_more_with_the_last_code(
    supervise: Start, client: Any, code: Code, bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:broker", "service", "--workers", "2").wait_ready()
    code.write(2, IMPORT_WAITS)
    first = await Reload.begin()
    bell.wait()
    code.write(3)
    for _ in range(3):
        assert Client(INSTANCE).reload(wait=False)["ok"] is None
    second = asyncio.create_task(asyncio.to_thread(Client(INSTANCE).reload, wait=True))
    gate.let_by(1)
    assert await first.end() == (0, "")
    assert (await second)["ok"] is True
    assert {await version(client, number) for number in range(10)} == {3}
    only_the_pool(supervisor, 2)
    assert supervisor.stop() == 0
    done = re.findall(r"reload (\d) done", supervisor.log.text)
    # The one that waits may have come when the second had begun; then it is a third.
    assert done in (["1", "2"], ["1", "2", "3"])


async def test_a_stop_meanwhile_ends_it_too_and_leaves_nothing(
    supervise: Start, client: Any, code: Code, bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:broker", "service", "--workers", "2").wait_ready()
    code.write(2, IMPORT_WAITS)
    under_way = await Reload.begin()
    bell.wait()
    tree = supervisor.tree()
    assert len(tree) == 5  # with the second zygote
    assert await asyncio.to_thread(supervisor.stop) == 0
    assert supervisor.alive(tree) == []
    status, errors = await under_way.end()
    assert status == 1
    assert "not reloaded: the supervisor was stopped" in errors


# --- it fails -------------------------------------------------------------------------------------

DIES_SOON = "asyncio.get_running_loop().call_later(0.5, os.kill, os.getpid(), signal.SIGSEGV)"
SETTINGS = "def settings():\n    return 1 / 0\n\nsettings()"


async def test_whatever_breaks_it_is_said_once_and_the_pool_is_as_before(
    supervise: Start, client: Any, code: Code
) -> None:
    # So much for the start, which has the same limit, on a machine that has much else to do.
    arguments = ("app:broker", "service", "--workers", "2", "--boot-timeout", "5")
    supervisor = supervise(*arguments).wait_ready()
    before = pids(supervisor)
    reloads = itertools.count(1)

    async def fails(addition: str) -> tuple[str, str]:
        """Of such code: what is said on stderr, and in the log."""
        written = len(supervisor.log.text)
        code.write(2, addition)
        status, errors = await reload()
        assert status == 1
        supervisor.log.wait_for(f"reload {next(reloads)}: nothing is left of the new code")
        assert pids(supervisor) == before
        only_the_pool(supervisor, 2)
        assert await version(client, 0) == 1
        return errors, supervisor.log.text[written:]

    errors, log = await fails(SETTINGS)
    for text in (errors, log):
        assert text.count("Traceback") == 1
        assert text.count("ZeroDivisionError: division by zero") == 2  # above it, and its end
        assert re.search(r'service\.py", line \d+, in settings', text)
    (line,) = [line for line in log.splitlines() if "ERROR" in line]
    assert "reload 1 rolled back, the old code goes on: " in line
    assert "ZeroDivisionError" in line

    errors, log = await fails(AT_STARTUP.format("raise ConnectionError('no server')"))
    for text in (errors, log):
        assert text.count("Traceback") == 1
        assert re.search(r'service\.py", line \d+, in connect', text)
        assert "ConnectionError: no server" in text

    errors, log = await fails(AT_STARTUP.format("time.sleep(1000)"))
    assert "not ready within 5 s" in errors
    assert re.search(r"worker=0 gen=\d+ pid=\d+ stands at", log)
    assert re.search(r'service\.py", line \d+ in connect', log)

    errors, log = await fails(AT_STARTUP.format(DIES_SOON))
    assert "SIGSEGV" in errors
    # It had been READY.
    assert re.search(r"worker=0 gen=(\d+) pid=(\d+) ready\n", log)

    code.write(3)
    assert await reload() == (0, "")
    assert await version(client, 1) == 3
    assert supervisor.stop() == 0


async def test_new_code_that_fails_after_its_first_worker_goes_back_to_the_old(
    supervise: Start, client: Any, code: Code, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    supervisor = supervise("app:broker", "service", "--workers", "2").wait_ready()
    held = await client.hold.kiq("held")
    bell.wait()
    # There is only one of something that each worker needs.
    code.write(2, AT_STARTUP.format('os.close(os.open("only", os.O_CREAT | os.O_EXCL))'))
    under_way = await Reload.begin()
    supervisor.log.wait_for("reload 1 rolled back, the old code goes on: .*FileExistsError")
    gate.let_by(1)
    status, errors = await under_way.end()
    assert status == 1
    assert "FileExistsError" in errors
    only_the_pool(supervisor, 2)
    assert {await version(client, number) for number in range(10)} == {1}
    assert (await held.wait_result(timeout=30)).return_value == "held"
    assert ledger.counts("hold") == {"held": 1}
    assert set(ledger.counts("version").values()) == {1}
    assert supervisor.stop() == 0


# --- on changes -----------------------------------------------------------------------------------


async def test_a_file_that_changes_is_reloaded_if_it_is_in_a_watched_folder_and_git_knows_it(
    supervise: Start, client: Any, code: Code, workdir: Path
) -> None:
    settings = workdir / "settings"
    settings.mkdir()
    (settings / ".gitignore").write_text("local.toml\n")
    watch = ("--reload", "--reload-dir", "settings")
    supervisor = supervise("app:broker", "service", "--workers", "1", *watch).wait_ready()
    code.write(2)
    (settings / "settings.toml").write_text("mode = 1\n")
    supervisor.log.wait_for("reload 1: importing")
    # What is noticed while one reload is under way would be seen to be followed by another.
    code.write(3)
    (settings / "local.toml").write_text("mode = 2\n")
    supervisor.log.wait_for("worker=0 gen=1 .* exited with status 0: reload")
    assert await version(client, 1) in {2, 3}
    (settings / "settings.toml").write_text("mode = 3\n")
    supervisor.log.wait_for("worker=0 gen=2 .* exited with status 0: reload")
    assert await version(client, 2) == 3
    assert supervisor.stop() == 0
    assert "reload 3" not in supervisor.log.text
