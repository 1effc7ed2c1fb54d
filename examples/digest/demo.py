"""The whole of it on real input: `make demo`, or `python demo.py` once it is installed.

Starts a supervisor with four workers in directories of its own, sends one task per file of Python's
standard library, compares the answers with those of a plain loop in this process, stops the
supervisor, and looks whether anything was left behind. Exit status 0 only if all of it was right.
"""

import asyncio
import hashlib
import os
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from app import Digest, broker, digest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

HERE = Path(__file__).resolve().parent
WORKERS = 4
COMMAND = [sys.executable, "-m", "taskiq_supervise"]
console = Console()


class DemoFailed(Exception):
    """Something was not as promised; the message says what."""


@contextmanager
def own_directories() -> Iterator[Path]:
    """Keeps the demo out of the places of real services; yields the runtime directory."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with ExitStack() as stack:
        runtime = stack.enter_context(tempfile.TemporaryDirectory(prefix="taskiq-demo-"))
        queues = stack.enter_context(tempfile.TemporaryDirectory(prefix="taskiq-demo-", dir=shm))
        os.environ["TASKIQ_SUPERVISE_RUNTIME_DIR"] = runtime
        os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"] = queues
        yield Path(runtime)


def standard_library() -> list[str]:
    top = Path(sysconfig.get_path("stdlib"))
    foreign = {"site-packages", "dist-packages"}
    return sorted(
        str(path)
        for path in top.rglob("*.py")
        if path.is_file() and foreign.isdisjoint(path.relative_to(top).parts)
    )


async def digest_in_workers(paths: list[str]) -> dict[str, Digest]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress("{task.description}", *columns, console=console) as progress:
        bar = progress.add_task(f"{WORKERS} workers", total=len(paths))

        async def one(path: str) -> Digest:
            task = await digest.kiq(path)
            result = await task.wait_result()
            result.raise_for_error()
            progress.advance(bar)
            return result.return_value

        answers = await asyncio.gather(*(one(path) for path in paths))
    return dict(zip(paths, answers, strict=True))


def totals(answers: Mapping[str, Digest]) -> dict[str, str]:
    """One number each, and one digest over the digests of all files in the order of their names."""
    combined = hashlib.sha256("".join(answers[path].sha256 for path in sorted(answers)).encode())
    return {
        "files": f"{len(answers):,}",
        "lines": f"{sum(answer.lines for answer in answers.values()):,}",
        "bytes, compressed": f"{sum(answer.compressed for answer in answers.values()):,}",
        "SHA-256 of all": combined.hexdigest()[:16],
    }


def show(workers: dict[str, str], serial: dict[str, str], seconds: tuple[float, float]) -> None:
    table = Table("", f"{WORKERS} workers", "this process alone")
    for name, value in workers.items():
        table.add_row(name, value, serial[name])
    table.add_row("seconds", *(f"{value:.2f}" for value in seconds))
    console.print(table)


async def stop(supervisor: asyncio.subprocess.Process, runtime: Path) -> None:
    """SIGTERM, as a service manager would; then nothing of the tree may be left."""
    root = psutil.Process(supervisor.pid)
    tree = [root, *root.children(recursive=True)]
    supervisor.send_signal(signal.SIGTERM)
    status = await supervisor.wait()
    if status != 0:
        raise DemoFailed(f"the supervisor's exit status was {status}")
    if left := [process.pid for process in tree if process.is_running()]:
        raise DemoFailed(f"processes were left behind: {left}")
    if files := [str(path) for path in runtime.rglob("*") if not path.is_dir()]:
        raise DemoFailed(f"files were left behind: {files}")
    console.print(f"stopped: {len(tree)} processes ended, none left")


async def run(supervisor: asyncio.subprocess.Process) -> None:
    paths = standard_library()
    async with broker:
        # The first answer says that workers are up; their start is not part of the comparison.
        await (await digest.kiq(paths[0])).wait_result()
        began = time.perf_counter()
        answers = await digest_in_workers(paths)
        in_workers = time.perf_counter() - began

    began = time.perf_counter()
    expected = {path: digest.original_func(path) for path in paths}
    alone = time.perf_counter() - began

    show(totals(answers), totals(expected), (in_workers, alone))
    if wrong := [path for path in paths if answers[path] != expected[path]]:
        raise DemoFailed(f"{len(wrong)} answers are wrong, the first for {wrong[0]}")

    status = await asyncio.create_subprocess_exec(*COMMAND, "status")
    if await status.wait() != 0:
        raise DemoFailed(f"status says that nothing runs, but pid {supervisor.pid} does")


async def main() -> int:
    with own_directories() as runtime:
        supervisor = await asyncio.create_subprocess_exec(
            *(*COMMAND, "app:broker", "--app-dir", str(HERE), "--name", "digest-demo"),
            # At INFO there is a line per task, across the progress bar.
            *("--workers", str(WORKERS), "--log-level", "WARNING"),
        )
        ended = asyncio.create_task(supervisor.wait())
        work = asyncio.create_task(run(supervisor))
        try:
            await asyncio.wait((work, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise DemoFailed(f"the supervisor ended by itself with status {ended.result()}")
            await work
            await stop(supervisor, runtime)
        except DemoFailed as failure:
            console.print(f"[bold red]failed[/]: {failure}")
            return 1
        finally:
            work.cancel()
            if supervisor.returncode is None:
                supervisor.send_signal(signal.SIGQUIT)
            await asyncio.gather(work, ended, return_exceptions=True)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
