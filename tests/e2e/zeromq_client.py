"""A client process: `python client.py NAME COUNT`.

Sends COUNT tasks, ten at a time, and writes down each whose `kiq()` has returned; then waits for
all results. Exit status 0: each was what it should be.
"""

import asyncio
import sys
from typing import Any

from app import append, broker, record  # type: ignore[import-not-found]


async def send(name: str, numbers: "asyncio.Queue[int]", tasks: dict[str, Any]) -> None:
    while not numbers.empty():
        what = f"{name}-{numbers.get_nowait()}"
        tasks[what] = await record.kiq(what)
        append("accepted", "accepted", what, 0)
        print(what, flush=True)  # for who waits for it


async def main(name: str, count: int) -> None:
    numbers: asyncio.Queue[int] = asyncio.Queue()
    for number in range(count):
        numbers.put_nowait(number)
    tasks: dict[str, Any] = {}
    async with broker:
        await asyncio.gather(*(send(name, numbers, tasks) for _ in range(10)))
        for what, task in tasks.items():
            result = await task.wait_result(timeout=60)
            assert result.return_value == what, result


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
