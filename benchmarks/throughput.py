"""Tasks per second through the queue: one client that keeps a window of tasks in flight.

The tasks do nothing, so this is what the machinery takes, not what workers can do. Beside it:
`ProcessPoolExecutor`, which is what people use on one machine without a server, and taskiq alone
in one process.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor

from benchmarks.application import nothing
from benchmarks.machine import describe, table
from benchmarks.roundtrip import nothing_in_memory
from benchmarks.service import supervised

ROUNDS = 5
COUNT = 5_000
WINDOW = 200
WORKERS = (1, 2, 4)


def nothing_in_pool() -> None:
    return None


async def per_second(once: Callable[[], Awaitable[object]]) -> float:
    remaining = iter(range(COUNT))

    async def keep_one_in_flight() -> None:
        for _ in remaining:
            await once()

    began = time.perf_counter()
    await asyncio.gather(*(keep_one_in_flight() for _ in range(WINDOW)))
    return COUNT / (time.perf_counter() - began)


async def through_queue() -> None:
    await (await nothing.kiq()).wait_result(timeout=60)


async def in_one_process() -> None:
    await (await nothing_in_memory.kiq()).wait_result(timeout=60)


async def report() -> str:
    measured: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        measured.setdefault(name, []).append(value)

    loop = asyncio.get_running_loop()
    for _ in range(ROUNDS):
        note("taskiq `InMemoryBroker`, one process", await per_second(in_one_process))
        for workers in WORKERS:
            with ProcessPoolExecutor(workers) as pool:
                loop.run_in_executor(pool, nothing_in_pool)
                rate = await per_second(lambda: loop.run_in_executor(pool, nothing_in_pool))
            note(f"`ProcessPoolExecutor`, {workers}", rate)
            async with supervised(workers):
                note(f"`SharedMemoryBroker`, {workers}", await per_second(through_queue))
    rows = [(name, f"{statistics.median(values):,.0f}") for name, values in measured.items()]
    title = f"Tasks per second, {WINDOW} in flight, median of {ROUNDS} rounds of {COUNT:,}\n\n"
    return title + table(("what, number of workers", "tasks/s"), rows)


async def main() -> None:
    print(describe())
    print(await report())


if __name__ == "__main__":
    asyncio.run(main())
