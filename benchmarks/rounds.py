"""Rounds of several contestants in turn, so that a slow minute of the machine hits all of them."""

import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

Once = Callable[[], Awaitable[object]]


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def time_each(once: Once, count: int) -> list[float]:
    """Seconds of each of `count` calls, one after another."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        await once()
        seconds.append(time.perf_counter() - began)
    return seconds


async def interleave(
    contestants: Mapping[str, Once], *, rounds: int, count: int
) -> dict[str, list[list[float]]]:
    """For each contestant: the seconds of `count` calls in each round, after one that warms up."""
    measured: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for once in contestants.values():
        await time_each(once, count // 10 + 1)
    for _ in range(rounds):
        for name, once in contestants.items():
            measured[name].append(await time_each(once, count))
    return measured


def median_of_rounds(rounds: Sequence[Sequence[float]], percent: int) -> float:
    """The percentile of each round, and of these the median."""
    return statistics.median(percentile(one, percent) for one in rounds)
