"""What a tree of four idle workers costs: CPU time of all its processes, and their memory.

Beside it, at the same time, taskiq's own process manager: four workers on taskiq's ZeroMQBroker.
"""

import asyncio
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from benchmarks.machine import describe, table
from benchmarks.service import supervised

WORKERS = 4
SECONDS = 20.0
PEER = """
from taskiq import ZeroMQBroker
broker = ZeroMQBroker(zmq_pub_host="ipc://{0}/pub", zmq_sub_host="ipc://{0}/pub")
"""


def tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Time on a CPU, to the nanosecond; the clock ticks of /proc/PID/stat are 10 ms."""
    nanoseconds = 0
    for process in processes:
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            nanoseconds += int((thread / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


@asynccontextmanager
async def taskiq_worker() -> AsyncIterator[int]:
    """`taskiq worker` with its own manager; yields its pid once four workers wait for tasks."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "peer.py").write_text(PEER.format(folder))
        manager = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "taskiq", "worker", "peer:broker", "--workers", str(WORKERS)),
            cwd=folder,
            stderr=asyncio.subprocess.PIPE,
        )
        assert manager.stderr is not None
        listening = 0
        while listening < WORKERS and (line := await manager.stderr.readline()):
            listening += b"Listening started" in line
        try:
            yield manager.pid
        finally:
            manager.send_signal(signal.SIGTERM)
            await manager.communicate()


async def report() -> str:
    async with taskiq_worker() as theirs, supervised(WORKERS) as ours:
        trees = {"taskiq worker": tree(theirs), "taskiq-supervise": tree(ours)}
        before = {name: cpu_seconds(processes) for name, processes in trees.items()}
        await asyncio.sleep(SECONDS)
        rows = []
        for name, processes in trees.items():
            used = cpu_seconds(processes) - before[name]
            unique = sum(process.memory_full_info().pss for process in processes)
            rows.append(
                (name, str(len(processes)), f"{used / SECONDS * 1e3:.2f}", f"{unique / 1e6:.0f}")
            )
    header = ("", "processes", "CPU ms per second", "memory, MB (PSS)")
    return f"Idle for {SECONDS:.0f} s, {WORKERS} workers\n\n" + table(header, rows)


async def main() -> None:
    print(describe())
    print(await report())


if __name__ == "__main__":
    asyncio.run(main())
