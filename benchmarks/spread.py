"""Spread before depth: four tasks that block for a second, on four workers, sent one after another.

A worker that took two of them while another had none would make it two seconds.
"""

import asyncio
import statistics
import time

from benchmarks.application import block
from benchmarks.machine import describe, table
from benchmarks.service import supervised

ROUNDS = 7
WORKERS = 4
LIMITS: dict[str, tuple[str, ...]] = {
    "as it comes (100 tasks per worker)": (),
    "`--max-async-tasks 1`": ("--max-async-tasks", "1"),
}


async def once() -> tuple[float, int]:
    """Seconds until all are done, and on how many workers they ran."""
    began = time.perf_counter()
    tasks = [await block.kiq(1.0) for _ in range(WORKERS)]
    pids = {(await task.wait_result(timeout=30)).return_value for task in tasks}
    return time.perf_counter() - began, len(pids)


async def report() -> str:
    rows = []
    for name, options in LIMITS.items():
        async with supervised(WORKERS, *options):
            rounds = [await once() for _ in range(ROUNDS)]
        seconds = [round_[0] for round_ in rounds]
        fewest = min(round_[1] for round_ in rounds)
        rows.append((name, f"{statistics.median(seconds):.3f}", f"{max(seconds):.3f}", str(fewest)))
    title = f"{WORKERS} tasks that block for 1 s on {WORKERS} workers, s, {ROUNDS} rounds\n\n"
    return title + table(("", "median", "longest", "workers used, at least"), rows)


async def main() -> None:
    print(describe())
    print(await report())


if __name__ == "__main__":
    asyncio.run(main())
