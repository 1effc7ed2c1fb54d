"""Who takes part in tests; waiting there for events, with an end, and counting what it costs."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.ipc.conftest import PATIENCE, Peer, wait_until

from taskiq_supervise.ipc import AsyncTaskQueue, Lease, Role, TaskQueue

NewPeer = Callable[[], Peer]
Open = Callable[..., TaskQueue]
Start = Callable[..., Awaitable[AsyncTaskQueue]]
"""The fixtures new_peer, open_queue and start_queue."""

WORKER = {"role": Role.WORKER}
HOUR = 3600.0


def joined(new_peer: NewPeer, count: int, arguments: str = "") -> list[Peer]:
    """Processes that opened the queue one after the other, each on an event loop of its own."""
    peers = [new_peer() for _ in range(count)]
    for peer in peers:
        peer.join_async(arguments)
    return peers


async def soon(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, PATIENCE)


async def pending(awaitable: Awaitable[Any]) -> "asyncio.Task[Any]":
    """Begun, and as far as it gets without an event."""
    task = asyncio.ensure_future(awaitable)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


def claimed_when_there(queue: TaskQueue) -> Lease:
    """Sleeps as a worker does, in a process without an event loop and so without an office."""
    leases: list[Lease] = []

    def take() -> bool:
        lease = queue.claim_or_sleep()
        if lease is not None:
            leases.append(lease)
        return lease is not None

    wait_until(queue, take)
    queue.core.wake_up(queue.participant)
    return leases[0]


def eventually(happens: Callable[[], bool], what: str = "it did not happen") -> None:
    """For what rings nobody here: looks again and again."""
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


async def later(happens: Callable[[], bool], what: str = "it did not happen") -> None:
    """As eventually(), while the loop goes on."""
    for _ in range(int(PATIENCE / 0.001)):
        if happens():
            return
        await asyncio.sleep(0.001)
    raise AssertionError(what)


class Clockwork:
    """Counts the timers that a loop is asked for, and how often it looks at a doorbell."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, waiting: AsyncTaskQueue) -> None:
        loop = asyncio.get_running_loop()
        self.timers: list[float] = []
        self.rings = 0
        monkeypatch.setattr(loop, "call_at", self._counting(loop.call_at))  # call_later's too
        loop.remove_reader(waiting.queue.fileno())
        loop.add_reader(waiting.queue.fileno(), self._ring, waiting)

    def _counting(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(when: float, *arguments: Any, **more: Any) -> Any:
            self.timers.append(when)
            return real(when, *arguments, **more)

        return counted

    def _ring(self, waiting: AsyncTaskQueue) -> None:
        self.rings += 1
        waiting._on_bell()


class WallClock:
    """Stands in for the module `time` in a module of the queue, and can be set."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.looks = 0

    def time(self) -> float:
        self.looks += 1
        return time.time() + self.ahead

    def time_ns(self) -> int:
        self.looks += 1
        return time.time_ns() + int(self.ahead * 1e9)
