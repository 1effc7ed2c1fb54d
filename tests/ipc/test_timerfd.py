"""A timer that one process sets and another one is woken by."""

import os
import select
import time
from collections.abc import Iterator

import pytest

from taskiq_supervise.ipc import timerfd


@pytest.fixture
def fd() -> Iterator[int]:
    fd = timerfd.create()
    yield fd
    os.close(fd)


def rings(fd: int, timeout: float) -> bool:
    return bool(select.select([fd], [], [], timeout)[0])


def test_it_rings_at_its_time_and_not_before(fd: int) -> None:
    at = time.monotonic() + 0.05
    timerfd.arm(fd, at)
    assert rings(fd, 20)
    assert time.monotonic() >= at
    assert int.from_bytes(os.read(fd, 8), "little") == 1


@pytest.mark.parametrize("at", [0.0, -5.0, 1e-12])
def test_a_time_that_has_passed_rings_at_once(fd: int, at: float) -> None:
    timerfd.arm(fd, at)
    assert rings(fd, 0)


def test_another_time_takes_the_place_of_the_first(fd: int) -> None:
    timerfd.arm(fd, 0)
    assert rings(fd, 0)
    timerfd.arm(fd, time.monotonic() + 3600)
    assert not rings(fd, 0)
    timerfd.arm(fd, 0)
    timerfd.arm(fd, None)
    assert not rings(fd, 0)


def test_the_process_that_reads_it_is_not_the_one_that_sets_it(fd: int) -> None:
    pid = os.fork()
    if pid == 0:
        timerfd.arm(fd, 0)
        os._exit(0)
    os.waitpid(pid, 0)
    assert rings(fd, 0)


def test_its_descriptor_is_not_inherited_and_never_blocks(fd: int) -> None:
    assert not os.get_inheritable(fd)
    with pytest.raises(BlockingIOError):
        os.read(fd, 8)


def test_what_is_no_timer_is_an_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        timerfd.arm(-1, 1.0)
