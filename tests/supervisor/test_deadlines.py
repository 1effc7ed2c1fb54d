"""A timer that one process sets and another is woken by."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator

import pytest

from taskiq_supervise.ipc import timerfd
from taskiq_supervise.supervisor.deadlines import DeadlineTimer


class Rings:
    def __init__(self) -> None:
        self.rung = asyncio.Event()
        self.count = 0
        self.timer = DeadlineTimer(asyncio.get_running_loop(), self._ring)

    def _ring(self) -> None:
        self.count += 1
        self.rung.set()

    async def ring(self) -> None:
        await self.rung.wait()
        self.rung.clear()

    async def settle(self) -> None:
        """Whatever was readable has been handled."""
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.fixture
async def rings() -> AsyncIterator[Rings]:
    rings = Rings()
    yield rings
    rings.timer.close()


async def test_it_rings_when_its_time_has_come_and_once(rings: Rings) -> None:
    at = time.monotonic() + 0.05
    timerfd.arm(rings.timer.fd, at)
    await rings.ring()
    assert time.monotonic() >= at
    await rings.settle()
    assert rings.count == 1


async def test_a_time_that_has_passed_rings_at_once(rings: Rings) -> None:
    timerfd.arm(rings.timer.fd, time.monotonic() - 5)
    await rings.ring()


async def test_what_is_taken_back_does_not_ring(rings: Rings) -> None:
    timerfd.arm(rings.timer.fd, time.monotonic() - 5)
    timerfd.arm(rings.timer.fd, None)
    await rings.settle()
    assert rings.count == 0


async def test_a_later_time_that_is_set_before_we_looked_counts(rings: Rings) -> None:
    """The worker's task has ended in time after all, and its next one has longer."""
    timerfd.arm(rings.timer.fd, time.monotonic() - 5)
    rings.timer._due()  # the loop has seen it as readable ...
    timerfd.arm(rings.timer.fd, time.monotonic() - 5)
    timerfd.arm(rings.timer.fd, time.monotonic() + 1000)  # ... and the worker was faster
    rings.timer._due()
    assert rings.count == 1


async def test_another_process_sets_it_even_if_that_one_is_gone_by_then(rings: Rings) -> None:
    script = (
        "import sys, time; from taskiq_supervise.ipc import timerfd; "
        "timerfd.arm(int(sys.argv[1]), time.monotonic() + 0.2)"
    )
    fd = rings.timer.fd
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(fd), pass_fds=[fd]
    )
    assert await worker.wait() == 0
    await rings.ring()


async def test_its_descriptor_is_not_inherited_by_accident(rings: Rings) -> None:
    assert not os.get_inheritable(rings.timer.fd)
    assert not os.get_blocking(rings.timer.fd)


async def test_closing_is_for_good() -> None:
    rings = Rings()
    fd = rings.timer.fd
    timerfd.arm(rings.timer.fd, time.monotonic() - 5)
    rings.timer.close()
    rings.timer.close()
    await rings.settle()
    assert rings.count == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        timerfd.arm(fd, None)
