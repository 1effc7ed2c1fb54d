"""The client process of one round: `python -m benchmarks.zmq.client throughput|roundtrip COUNT`.

Prints one line of JSON: when it began to send (time.monotonic()), or its samples in seconds.
"""

import asyncio
import itertools
import json
import os
import sys
import time
from pathlib import Path

from benchmarks import ledger
from benchmarks.zmq.application import broker, note, nothing

AT_ONCE = 100
"""Tasks that are being sent at the same time."""
PATIENCE = 60.0
_LOOK = 0.01


def runs() -> int:
    """How many tasks have run, by the ledger."""
    try:
        return Path(os.environ[ledger.PLACE]).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


async def warm_up() -> int:
    """Sends until something arrives: a subscriber that comes late misses what was published.

    Returns how many runs there are when nothing more comes.
    """
    until = time.monotonic() + PATIENCE
    while not runs():
        if time.monotonic() > until:
            raise TimeoutError("no task was run")
        await note.kiq(-1)
        await asyncio.sleep(0.05)
    before = -1
    while before != (now := runs()):
        before = now
        await asyncio.sleep(0.3)
    return before


async def throughput(count: int) -> dict[str, float]:
    """Sends `count` tasks as fast as the broker takes them, and waits until no more are run."""
    before = await warm_up()
    numbers = iter(range(count))

    async def send() -> None:
        for number in numbers:
            await note.kiq(number)

    began = time.monotonic()
    await asyncio.gather(*(send() for _ in range(AT_ONCE)))
    sent = time.monotonic()
    seen, quiet = -1, sent
    while (now := runs() - before) < count and time.monotonic() - quiet < 2.0:
        if now != seen:
            seen, quiet = now, time.monotonic()
        await asyncio.sleep(_LOOK)
    return {"began": began, "sent": sent - began}


async def roundtrip(count: int) -> dict[str, list[float]]:
    samples = []
    for turn in itertools.count(-100):  # the first ones are not counted
        if turn == count:
            break
        began = time.perf_counter()
        task = await nothing.kiq()
        await task.wait_result(timeout=PATIENCE)
        if turn >= 0:
            samples.append(time.perf_counter() - began)
    return {"samples": samples}


async def main(what: str, count: str) -> None:
    await broker.startup()
    measured = await (throughput if what == "throughput" else roundtrip)(int(count))
    print(json.dumps(measured), flush=True)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
