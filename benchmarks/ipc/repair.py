"""Repair of a large queue after a death: 65,536 slots, all held by the dead process, and a few.

The dead process has claimed and started what it held and was killed; the time is that of
`TaskQueue.recover()` in another process, until every message can be claimed again.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, cast

from benchmarks.figure import Effort, Figure, Unit
from benchmarks.ipc.processes import Victim, folder, together
from taskiq_supervise.ipc import Geometry, Role, TaskQueue

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.synchronize import Barrier
    from pathlib import Path

SLOTS = 65_536
FEW = 16
ROUNDS = 7

NOTES = (
    "no peer repairs: who dies with the lock of a multiprocessing.Queue or a faster-fifo stops all",
    "it contains the list of the task ids that were given back",
)


def hold(directory: Path, geometry: Geometry, messages: int, size: int) -> TaskQueue:
    """Start `messages`."""
    queue = TaskQueue.open("repair", directory, geometry=geometry, role=Role.WORKER)
    for number in range(messages):
        queue.put(f"{number:032x}", b"x" * size)
    for _ in range(messages):
        lease = queue.claim()
        assert lease is not None
        lease.start()
    return queue


def recover(geometry: Geometry, messages: int, size: int) -> list[float]:
    with folder() as directory:

        def repairer(_: Barrier) -> list[float]:
            holder = Victim(partial(hold, directory, geometry, messages, size))
            with TaskQueue.open("repair", directory, geometry=geometry) as queue:
                (dead,) = (one.index for one in queue.participants() if one.pid == holder.pid)
                holder.kill()
                holder.reap()
                began = time.perf_counter()
                burial = queue.recover(dead)
                seconds = time.perf_counter() - began
                assert burial is not None
                assert len(burial.redelivered) == messages, burial
                assert queue.stats().ready == messages
            return [seconds]

        return cast("list[float]", together(repairer)[0])


def measure(effort: Effort) -> list[Figure]:
    slots = 1 << (effort.of(SLOTS, 1_024) - 1).bit_length()
    rounds = effort.rounds or ROUNDS
    geometry = Geometry.of_capacity(slots)
    half = slots // 2
    contestants: dict[str, Callable[[], list[float]]] = {
        f"all {slots:,} held, 100 bytes each, in the slots": partial(recover, geometry, slots, 100),
        f"{half:,} held, 600 bytes each, in blocks": partial(recover, geometry, half, 600),
        f"{FEW} held": partial(recover, geometry, FEW, 100),
    }
    title = f"Repair of a queue of {slots:,} slots, median of {rounds} rounds"
    unit = Unit("ms", scale=1e3, digits=2)
    return [Figure("repair", title, unit, NOTES, None).run(contestants, rounds)]
