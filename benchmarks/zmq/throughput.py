"""Tasks per second: a client sends as fast as the broker takes them, the workers run them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.figure import Figure, Unit
from benchmarks.zmq.contestants import FED, OWN_IPC, OWN_TCP, SHARED, STOCK, Contestant, play

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.figure import Effort

COUNT = 20_000
ROUNDS = 5
ABOUT = (
    "From the first task sent to the last one run. taskiq's own broker publishes: `kiq()` returns "
    "before anybody has the task, and what a slow subscriber has no room for is dropped. Ours "
    "returns when the queue has it."
)


def measure(effort: Effort) -> Sequence[Figure]:
    count = effort.of(COUNT, least=50)
    losses: dict[str, list[str]] = {}

    def once(contestant: Contestant) -> Callable[[], Sequence[float]]:
        def measured() -> Sequence[float]:
            played = play(contestant, "throughput", count)
            numbers = [number for number, _ in played.runs]
            lost, doubled = count - len(set(numbers)), len(numbers) - len(set(numbers))
            losses.setdefault(contestant.name, []).append(f"{lost} / {doubled}")
            seconds = max(at for _, at in played.runs) - played.said["began"]
            return [len(set(numbers)) / seconds]

        return measured

    figure = Figure(
        "throughput",
        f"Tasks per second, {count:,} tasks that do nothing, 100 being sent at once",
        Unit("tasks/s", higher_is_better=True),
        [],
        STOCK.name,
    )
    contestants = {one.name: once(one) for one in (STOCK, FED, OWN_TCP, OWN_IPC, SHARED)}
    figure.run(contestants, effort.rounds or ROUNDS)
    figure.notes = [
        ABOUT,
        *(f"{name}: lost / run twice: {', '.join(found)}" for name, found in losses.items()),
    ]
    return [figure]
