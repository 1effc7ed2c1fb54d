"""What a worker's death costs: SIGKILL of the worker that runs a task, with nothing else to do.

Measured from the signal: until the task has been run again and its client has the result, and until
the pool is back to its size, as `status` tells.
"""

import asyncio
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.application import block, hold
from benchmarks.machine import describe, table
from benchmarks.service import supervised
from taskiq_supervise.supervisor.client import statuses

ROUNDS = 25
WORKERS = 4
PAUSE = 0.001


async def pid_in(path: Path) -> int:
    text = ""
    while not text.endswith("\n"):
        await asyncio.sleep(PAUSE)
        text = path.read_text() if path.exists() else ""
    return int(text)


async def pool_ready(without: int) -> None:
    while True:
        workers = statuses()[0]["workers"]
        pids = {worker["pid"] for worker in workers if worker["state"] == "ready"}
        if len(pids) == WORKERS and without not in pids:
            return
        await asyncio.sleep(PAUSE)


async def once(folder: Path) -> tuple[float, float]:
    task = await hold.kiq(str(folder / "pid"))
    worker = await pid_in(folder / "pid")
    began = time.perf_counter()
    os.kill(worker, signal.SIGKILL)
    (await task.wait_result(timeout=30)).raise_for_error()
    again = time.perf_counter() - began
    await pool_ready(worker)
    ready = time.perf_counter() - began
    # A worker that dies again before it has completed a task waits longer each time.
    for one in [await block.kiq(0.05) for _ in range(WORKERS)]:
        await one.wait_result(timeout=30)
    return again, ready


async def report() -> str:
    rounds = []
    async with supervised(WORKERS, "--log-level", "CRITICAL"):
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder:
                rounds.append(await once(Path(folder)))
    rows = []
    for name, column in (("result of the second run", 0), (f"{WORKERS} workers ready again", 1)):
        milliseconds = sorted(round_[column] * 1e3 for round_ in rounds)
        rows.append((name, f"{statistics.median(milliseconds):.1f}", f"{milliseconds[-1]:.1f}"))
    title = f"After SIGKILL of a worker, ms, {ROUNDS} rounds, {WORKERS} workers\n\n"
    return title + table(("", "median", "longest"), rows)


async def main() -> None:
    print(describe())
    print(await report())


if __name__ == "__main__":
    asyncio.run(main())
