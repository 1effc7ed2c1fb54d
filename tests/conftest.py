"""Every test has its own runtime and queue directories, and leaves the machine as it found it.

Processes are recognised by a marker in the environment that all descendants inherit, so that one
which was orphaned and went to PID 1 is still found. Files are looked for in the directories of this
run, descriptors in the test process, around each module. Something left is an error of the module's
last test.
"""

import gc
import os
import shutil
import tempfile
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

MARKER = "TASKIQ_SUPERVISE_TEST_ID"
DEV_SHM = Path("/dev/shm")
# A process that was told to end may still be doing so when its test is over; one that takes longer
# was forgotten.
GRACE_SECONDS = 5.0

# How long an example takes says more about the machine than about the code.
settings.register_profile("without-deadlines", deadline=None)
settings.load_profile("without-deadlines")


class Isolation:
    """Directories and marker of this test process; each of pytest-xdist's has its own."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        shm = DEV_SHM if os.access(DEV_SHM, os.W_OK) else None
        # Short names: a control socket's path has to fit into 107 bytes.
        self.runtime = Path(tempfile.mkdtemp(prefix="tsr-"))
        self.queues = Path(tempfile.mkdtemp(prefix="tsq-", dir=shm))
        self._descriptors: dict[int, str] = {}

    def enter(self) -> None:
        os.environ[MARKER] = self.id
        os.environ["TASKIQ_SUPERVISE_RUNTIME_DIR"] = str(self.runtime)
        os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"] = str(self.queues)
        # setproctitle would otherwise overwrite the environment that /proc shows, marker included.
        os.environ["SPT_NOENV"] = "1"
        # A test writes an application anew within the second; its bytecode would count as current.
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

    def leave(self) -> None:
        shutil.rmtree(self.runtime)
        shutil.rmtree(self.queues)

    def begin_module(self) -> None:
        self._descriptors = descriptors()

    def end_module(self) -> list[str]:
        """What the module left behind, in words; and the next one starts clean."""
        left = [f"process {text}" for text in self._end_processes()]
        for directory in (self.runtime, self.queues):
            for path in sorted(directory.iterdir()):
                left.append(f"file {path}")
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        gc.collect()
        left += [
            f"descriptor {fd} -> {target}"
            for fd, target in descriptors().items()
            if self._descriptors.get(fd) != target
        ]
        return left

    def _end_processes(self) -> list[str]:
        ours = [process for process in psutil.process_iter() if self._is_ours(process)]
        found = [f"{process.pid} (not waited for)" for process in ours if is_zombie(process)]
        _, alive = psutil.wait_procs(ours, timeout=GRACE_SECONDS)
        for process in alive:
            try:
                found.append(f"{process.pid} ({process.status()}): {' '.join(process.cmdline())}")
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(alive, timeout=GRACE_SECONDS)
        return found

    def _is_ours(self, process: psutil.Process) -> bool:
        if process.pid == os.getpid():
            return False
        try:
            return process.ppid() == os.getpid() or process.environ().get(MARKER) == self.id
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            return False


def is_zombie(process: psutil.Process) -> bool:
    return process.is_running() and process.status() == psutil.STATUS_ZOMBIE


def descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - not paths
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - "pipe:[123]"
        except FileNotFoundError:  # the one that listdir itself had open
            continue
    return found


ISOLATION = pytest.StashKey[Isolation]()


CURRENT_MODULE = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    isolation = config.stash[ISOLATION] = Isolation()
    isolation.enter()
    config.add_cleanup(isolation.leave)


def module_of(item: pytest.Item | None) -> Path | None:
    return None if item is None else item.path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    isolation = item.config.stash[ISOLATION]
    if item.config.stash.get(CURRENT_MODULE, None) != item.path:
        item.config.stash[CURRENT_MODULE] = item.path
        isolation.begin_module()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    yield
    if module_of(nextitem) != item.path:
        left = item.config.stash[ISOLATION].end_module()
        if left:
            pytest.fail(f"{item.path.name} left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def own_directories(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A runtime and a queue directory for this test alone, removed after it."""
    isolation = request.config.stash[ISOLATION]
    runtime = Path(tempfile.mkdtemp(prefix="r", dir=isolation.runtime))
    queues = Path(tempfile.mkdtemp(prefix="q", dir=isolation.queues))
    monkeypatch.setenv("TASKIQ_SUPERVISE_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("TASKIQ_SUPERVISE_QUEUE_DIR", str(queues))
    yield
    shutil.rmtree(runtime)
    shutil.rmtree(queues)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the current one: in the repository's root `broker` would be our room."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
