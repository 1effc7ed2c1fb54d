"""Dumps that real processes write, and what becomes of them when the process or we end."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from taskiq_supervise.supervisor.stacks import StackReader

THREAD = "most recent call first"
WRITER = """
import faulthandler, os, signal, sys, threading
fd, depth = int(sys.argv[1]), int(sys.argv[2])
faulthandler.register(signal.SIGUSR1, file=fd, all_threads=True)

def here(levels):
    if levels:
        here(levels - 1)
    else:
        threads_are_deep.wait()
        signal.sigwait([signal.SIGTERM])

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
threads_are_deep = threading.Barrier(2 if depth == 1 else 31)
for _ in range(threads_are_deep.parties - 1):
    threading.Thread(target=here, args=(depth,), daemon=True).start()
threads_are_deep.wait()
print("ready", flush=True)
signal.sigwait([signal.SIGTERM])
"""


def fill(fd: int) -> None:
    """Until it takes no more, instead of making us wait."""
    with suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(65536))


class Texts:
    def __init__(self) -> None:
        self.arrived: asyncio.Queue[str] = asyncio.Queue()
        self.reader = StackReader(asyncio.get_running_loop(), self.arrived.put_nowait)

    async def dump(self, threads: int) -> str:
        """Until that many threads have been named; more than one text if it was interrupted."""
        text = ""
        while text.count(THREAD) < threads:
            text += await self.arrived.get()
        return text

    def start(self, depth: int = 1) -> "subprocess.Popen[str]":
        """A process that has the writing end, and waits for signals by now."""
        fd = self.reader.write_fd
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(fd), str(depth)],
            pass_fds=[fd],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdout.close()
        return process


@pytest.fixture
async def texts() -> AsyncIterator[Texts]:
    texts = Texts()
    yield texts
    texts.reader.close()


async def test_a_dump_arrives_whole_and_every_one_by_itself(texts: Texts) -> None:
    process = texts.start()
    texts.reader.release()
    for _ in range(2):
        process.send_signal(signal.SIGUSR1)
        text = await texts.dump(threads=2)
        assert text.count(THREAD) == 2
        assert "in here" in text
    process.kill()
    process.wait()


async def test_a_dump_larger_than_a_usual_pipe_is_not_cut(texts: Texts) -> None:
    process = texts.start(depth=90)
    texts.reader.release()
    process.send_signal(signal.SIGUSR1)
    text = await texts.dump(threads=31)
    assert len(text) > 65536
    assert text.count(THREAD) == 31
    process.kill()
    process.wait()


async def test_a_worker_that_dies_leaves_its_last_dump(texts: Texts) -> None:
    os.write(texts.reader.write_fd, b"last words")
    texts.reader.release()
    assert await texts.arrived.get() == "last words"


async def test_what_arrived_is_delivered_by_closing(texts: Texts) -> None:
    os.write(texts.reader.write_fd, b"still in the pipe")
    texts.reader.close()
    assert texts.arrived.get_nowait() == "still in the pipe"
    texts.reader.close()  # again: nothing


async def test_a_writer_is_not_held_up_by_us(texts: Texts) -> None:
    fill(texts.reader.write_fd)
    assert not os.get_inheritable(texts.reader.write_fd)


async def test_a_flood_is_delivered_in_parts(texts: Texts) -> None:
    for _ in range(100):  # the pipe is never empty, so that it does not seem to be over
        fill(texts.reader.write_fd)
        await asyncio.sleep(0)
    assert len(texts.arrived.get_nowait()) >= 1 << 20


async def test_a_user_with_too_many_large_pipes_gets_a_small_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_fd: int, _command: int, _size: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    texts = Texts()
    os.write(texts.reader.write_fd, b"text")
    assert await texts.arrived.get() == "text"
    texts.reader.close()


async def test_bytes_that_are_no_text_are_no_error(texts: Texts) -> None:
    os.write(texts.reader.write_fd, b"\xff\xfe!")
    assert (await texts.arrived.get()).endswith("!")
