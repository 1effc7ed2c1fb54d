"""A supervisor with workers for the time of a measurement, in directories of its own."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from benchmarks.application import broker, nothing


@asynccontextmanager
async def supervised(workers: int, *options: str) -> AsyncIterator[int]:
    """Yields the supervisor's pid, with the broker started as a client and every worker warm."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with ExitStack() as stack:
        for variable, place in (("RUNTIME", None), ("QUEUE", shm)):
            directory = tempfile.TemporaryDirectory(prefix="taskiq-bench-", dir=place)
            os.environ[f"TASKIQ_SUPERVISE_{variable}_DIR"] = stack.enter_context(directory)
        supervisor = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "taskiq_supervise", "benchmarks.application:broker"),
            *("--workers", str(workers), "--log-level", "WARNING", *options),
        )
        try:
            async with broker:
                tasks = [await nothing.kiq() for _ in range(100 * workers)]
                for task in tasks:
                    await task.wait_result(timeout=60)
                yield supervisor.pid
        finally:
            supervisor.send_signal(signal.SIGTERM)
            await supervisor.wait()
