"""From `kiq()` to the result, one task after the other."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.figure import Figure, Unit
from benchmarks.zmq.contestants import OWN_IPC, OWN_TCP, SHARED, Contestant, play

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.figure import Effort

COUNT = 2_000
ROUNDS = 5


def measure(effort: Effort) -> Sequence[Figure]:
    count = effort.of(COUNT, least=20)

    def once(contestant: Contestant) -> Sequence[float]:
        samples: Sequence[float] = play(contestant, "roundtrip", count).said["samples"]
        return samples

    figure = Figure(
        "roundtrip",
        f"From `kiq()` to the result, {count:,} tasks that do nothing, one after the other",
        Unit("µs", scale=1e6, percentiles=(50, 95, 99)),
        [
            "taskiq's own broker has no results without a server for them, so it is not here.",
        ],
        SHARED.name,
    )
    contestants = {one.name: partial(once, one) for one in (SHARED, OWN_IPC, OWN_TCP)}
    return [figure.run(contestants, effort.rounds or ROUNDS)]
