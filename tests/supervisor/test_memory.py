"""What a process and its descendants take, beside processes whose size is known."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from taskiq_supervise.supervisor.memory import descendants, resident

MIB = 1 << 20

Start = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a script; it goes on once it has printed a byte, and ends with the test."""
    with ExitStack() as stack:

        def start(script: str) -> "subprocess.Popen[bytes]":
            process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.read(1) == b"."
            return process

        yield start


def size(process: "subprocess.Popen[bytes]") -> int:
    found = resident(process.pid)
    assert found is not None
    return found


SMALL = "import sys; print('.', end='', flush=True); sys.stdin.read()"


def test_what_a_process_takes_for_itself_is_counted(start: Start) -> None:
    large = "data = bytearray(b'x') * (64 << 20)\n" + SMALL
    grown = size(start(large)) - size(start(SMALL))
    assert 60 * MIB < grown < 70 * MIB


def test_shared_memory_is_not_counted(start: Start) -> None:
    shared = """
import mmap
data = mmap.mmap(-1, 64 << 20)
for _ in range(64):
    data.write(b"x" * (1 << 20))
"""
    grown = size(start(shared + SMALL)) - size(start(SMALL))
    assert grown < 5 * MIB


def test_children_of_any_thread_and_their_children_are_counted(start: Start) -> None:
    """The child is forked by a thread, and its own child by the main thread."""
    process = start(
        """
        import os, sys, threading

        def be_a_parent():
            if not os.fork():
                if not os.fork():
                    data = bytearray(b"x") * (64 << 20)
                    print(".", end="", flush=True)
                sys.stdin.read()
                os._exit(0)
            forked.set()
            sys.stdin.read()

        forked = threading.Event()
        threading.Thread(target=be_a_parent, daemon=True).start()
        forked.wait()
        sys.stdin.read()
        """
    )
    assert len(list(descendants(process.pid))) == 2
    assert size(process) > 64 * MIB
    assert process.stdin is not None
    process.stdin.close()


def test_a_process_that_is_gone_has_no_size(start: Start) -> None:
    process = start(SMALL)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert resident(process.pid) is None  # a zombie
    process.wait()
    assert resident(process.pid) is None


def test_a_child_that_is_gone_by_the_time_it_is_read_counts_nothing(tmp_path: Path) -> None:
    """And a number that was used again does not make the walk endless."""
    for pid, children in ((10, "11 12 "), (11, "10 11 ")):
        task = tmp_path / str(pid) / "task" / str(pid)
        task.mkdir(parents=True)
        (task / "children").write_text(children)
        text = f"Name:\tRssAnon: 9 kB\nRssAnon:\t {pid} kB\nRssFile:\t 1 kB\nRssShmem:\t 500 kB\n"
        (tmp_path / str(pid) / "status").write_text(text)
    assert resident(10, tmp_path) == (11 + 12) * 1024
