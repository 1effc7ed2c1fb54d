"""How long a client waits for one task: `kiq()` and `wait_result()`, nothing else going on.

Side by side with what it can't be faster than: two processes that wake each other through pipes
with no task at all (what the kernel takes), and taskiq alone in one process (what taskiq takes).
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE

from taskiq import InMemoryBroker

from benchmarks.application import nothing, nothing_sync, same
from benchmarks.machine import describe, table
from benchmarks.rounds import Once, interleave, median_of_rounds
from benchmarks.service import supervised

ROUNDS = 9
COUNT = 400
in_memory = InMemoryBroker(await_inplace=True)


@in_memory.task
async def nothing_in_memory() -> None:
    return None


@contextmanager
def pipe_echo() -> Iterator[Once]:
    """A process that answers each byte with one byte, asked from this event loop."""
    code = "import os\nwhile byte := os.read(0, 1): os.write(1, byte)"
    loop = asyncio.get_running_loop()
    with subprocess.Popen([sys.executable, "-c", code], bufsize=0, stdin=PIPE, stdout=PIPE) as echo:
        assert echo.stdin is not None
        assert echo.stdout is not None
        question, answer = echo.stdin.fileno(), echo.stdout.fileno()

        async def once() -> None:
            answered = loop.create_future()
            loop.add_reader(answer, answered.set_result, None)
            os.write(question, b".")
            await answered
            os.read(answer, 1)
            loop.remove_reader(answer)

        yield once
        echo.stdin.close()


async def report() -> str:
    megabyte = os.urandom(1 << 20)

    async def run_async() -> None:
        await (await nothing.kiq()).wait_result(timeout=10)

    async def run_sync() -> None:
        await (await nothing_sync.kiq()).wait_result(timeout=10)

    async def run_megabyte() -> None:
        await (await same.kiq(megabyte)).wait_result(timeout=10)

    async def run_in_memory() -> None:
        await (await nothing_in_memory.kiq()).wait_result(timeout=10)

    with pipe_echo() as echo:
        contestants = {
            "two processes and two pipes, no task": echo,
            "taskiq `InMemoryBroker`, one process": run_in_memory,
            "`SharedMemoryBroker`, async task": run_async,
            "`SharedMemoryBroker`, sync task (a thread of the worker)": run_sync,
            "`SharedMemoryBroker`, 1 MiB of bytes there and back": run_megabyte,
        }
        async with supervised(4):
            measured = await interleave(contestants, rounds=ROUNDS, count=COUNT)
    rows = [
        (name, *(f"{median_of_rounds(rounds, percent) * 1e6:,.0f}" for percent in (50, 90, 99)))
        for name, rounds in measured.items()
    ]
    title = f"Round trip of one task, µs, median of {ROUNDS} rounds of {COUNT}, 4 workers\n\n"
    return title + table(("", "p50", "p90", "p99"), rows)


async def main() -> None:
    print(describe())
    print(await report())


if __name__ == "__main__":
    asyncio.run(main())
