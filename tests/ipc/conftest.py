"""The core as C, compiled for its tests; queues and processes for the tests of the Python face."""

import asyncio
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.ipc.peer import SMALL

from taskiq_supervise.ipc import AsyncTaskQueue, TaskQueue

# Who is not root runs it in a namespace of users, from test_access.py.
collect_ignore = [] if os.geteuid() == 0 else ["test_sharing.py"]

HARNESS = Path(__file__).parent / "core"
CORE = Path(__file__).parents[2] / "ipc" / "core"
PROGRAMS = {
    "stepkill": (
        *("stepkill.c", "scenarios.c", "operations.c", "leavings.c", "sending.c"),
        *("trace.c", "world.c", "books.c"),
    ),
    "stress": ("stress.c", "load.c"),
    "threads": ("threads.c",),
    "fuzz": ("fuzz.c",),
}


class CoreBuild:
    """Compiles the core and the programs that test it, each source once per set of flags."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._compiler = os.environ.get("CC", "cc")

    def program(
        self, name: str, *flags: str, mutated: Mapping[str, tuple[str, str]] | None = None
    ) -> Path:
        """The program's path.

        Args:
            flags: for compiling and linking.
            mutated: file of the core: (text, what to put in its place), to break it on purpose.
        """
        mutated = mutated or {}
        key = "_".join(flag.strip("-").replace("=", "-").replace(",", "-") for flag in flags)
        folder = self._folder / key
        folder.mkdir(exist_ok=True)
        sources = [*sorted(CORE.glob("*.c")), *(HARNESS / source for source in PROGRAMS[name])]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: self._object(source, flags, folder), sources))
        for number, (file, (old, new)) in enumerate(mutated.items()):
            text = (CORE / file).read_text(encoding="utf-8")
            assert text.count(old) == 1, f"{file} has changed: adapt the mutant ({old!r})"
            broken = self._folder / f"mutant-{len(list(self._folder.iterdir()))}-{number}"
            broken.mkdir()
            (broken / file).write_text(text.replace(old, new), encoding="utf-8")
            objects = [path for path in objects if path.stem != Path(file).stem]
            objects.append(self._object(broken / file, flags, broken))
            folder = broken
        program = folder / name
        if not program.exists():
            self._run(*flags, *objects, "-o", program, "-pthread", "-Wl,-z,now")
        return program

    def _object(self, source: Path, flags: tuple[str, ...], folder: Path) -> Path:
        target = folder / f"{source.stem}.o"
        if not target.exists():
            self._run(
                "-std=c11", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", "-Werror", "-pthread",
                f"-I{CORE}", f"-I{HARNESS}", *flags, "-c", source, "-o", target,
            )  # fmt: skip
        return target

    def _run(self, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self._compiler, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def core_build(tmp_path_factory: pytest.TempPathFactory) -> CoreBuild:
    if shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no C compiler")
    return CoreBuild(tmp_path_factory.mktemp("core"))


PATIENCE = 30.0
"""Seconds that an event may take on a busy machine; on an idle one it takes less than one."""


class PeerError(Exception):
    """What was raised over there."""


class Peer:
    """A process that runs peer.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HARNESS.with_name("peer.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        self._answers: dict[int, tuple[Any, str | None]] = {}
        self._pending = b""
        self._number = 0

    def begin(self, source: str) -> int:
        """Starts to run the source; answer() takes the number."""
        assert self._process.stdin is not None
        self._number += 1
        self._process.stdin.write(json.dumps([self._number, source]).encode() + b"\n")
        self._process.stdin.flush()
        return self._number

    def answer(self, number: int, timeout: float = PATIENCE) -> Any:
        """The value of the source's last expression. PeerError: what it raised."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while number not in self._answers:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._process.stdout], [], [], left)
            if not ready:
                raise TimeoutError(f"process {self.pid} has not answered within {timeout} s")
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise EOFError(f"process {self.pid} has ended: {self._process.wait()}")
            *lines, self._pending = (self._pending + data).split(b"\n")
            for done, value, error in map(json.loads, lines):
                self._answers[done] = value, error
        value, error = self._answers.pop(number)
        if error is not None:
            raise PeerError(error)
        return value

    def ask(self, source: str, timeout: float = PATIENCE) -> Any:
        return self.answer(self.begin(source), timeout)

    def join(self, arguments: str = "", name: str = "q") -> int:
        """Opens the queue as `queue`; returns the participant's index."""
        index: int = self.ask(
            f"queue = TaskQueue.open({name!r}, geometry=SMALL, {arguments}); queue.participant"
        )
        return index

    def join_async(self, arguments: str = "", name: str = "q") -> int:
        """As join(), and `waiting` is the AsyncTaskQueue on it."""
        index = self.join(arguments, name)
        self.ask("waiting = AsyncTaskQueue(queue); await waiting.start()")
        return index

    def kill(self, number: int = signal.SIGKILL) -> None:
        """And waits until it is gone."""
        self._process.send_signal(number)
        self._process.wait(PATIENCE)

    def stop(self) -> None:
        """Stands still (SIGSTOP) when this returns."""
        self._process.send_signal(signal.SIGSTOP)
        self.wait_stopped()

    def wait_stopped(self) -> None:
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(PATIENCE)


@pytest.fixture
def new_peer() -> Iterator[Callable[[], Peer]]:
    """Makes processes; they are gone after the test."""
    peers: list[Peer] = []

    def make() -> Peer:
        peers.append(Peer())
        return peers[-1]

    yield make
    for peer in peers:
        peer.end()


@pytest.fixture
def open_queue() -> Iterator[Callable[..., TaskQueue]]:
    """Opens queues of this process (small ones, called q); they are closed after the test."""
    queues: list[TaskQueue] = []

    def make(name: str = "q", **arguments: Any) -> TaskQueue:
        arguments.setdefault("geometry", SMALL)
        queues.append(TaskQueue.open(name, **arguments))
        return queues[-1]

    yield make
    for queue in queues:
        queue.close()


@pytest.fixture
def queue(open_queue: Callable[..., TaskQueue]) -> TaskQueue:
    return open_queue()


@pytest.fixture
async def start_queue() -> AsyncIterator[Callable[..., Awaitable[AsyncTaskQueue]]]:
    """As open_queue, on the event loop of the test."""
    started: list[AsyncTaskQueue] = []

    async def make(name: str = "q", **arguments: Any) -> AsyncTaskQueue:
        arguments.setdefault("geometry", SMALL)
        waiting = AsyncTaskQueue(TaskQueue.open(name, **arguments))
        started.append(waiting)
        await waiting.start()
        return waiting

    yield make
    for waiting in started:
        await waiting.close()


async def settled() -> None:
    """All rings so far have been heard: each turn of the loop looks at every doorbell."""
    for _ in range(5):
        await asyncio.sleep(0)


def is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def wait_until(queue: TaskQueue, happened: Callable[[], bool]) -> None:
    """Looks again whenever the queue's doorbell rings: repairs ring everybody."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        left = deadline - time.monotonic()
        assert left > 0, "it did not happen"
        assert select.select([queue], [], [], left)[0], "nobody rang"
        queue.answer_bell()


async def rung(queue: TaskQueue, happened: Callable[[], bool]) -> None:
    """As wait_until(), for a queue that has no event loop beside one that has."""
    loop = asyncio.get_running_loop()
    while not happened():
        ring = loop.create_future()
        loop.add_reader(queue, ring.set_result, None)
        try:
            await asyncio.wait_for(ring, PATIENCE)
        finally:
            loop.remove_reader(queue)
        queue.answer_bell()


def run_one(queue: TaskQueue, result: bytes = b"result") -> str:
    """Claims, starts and completes a message; returns its id."""
    lease = queue.claim()
    assert lease is not None
    lease.start()
    lease.complete(result)
    return lease.task_id
