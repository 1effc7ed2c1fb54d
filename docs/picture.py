"""Makes docs/status.svg, the picture of `status`: python docs/picture.py"""

import asyncio
import io
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from taskiq_supervise.broker import SharedMemoryBroker
from taskiq_supervise.supervisor.client import statuses
from taskiq_supervise.supervisor.commands.render import show

APPLICATION = """
import threading
from taskiq_supervise import SharedMemoryBroker

broker = SharedMemoryBroker("shop")

@broker.task
async def receipt(order: int) -> None: ...

@broker.task
def thumbnail(name: str) -> None:
    threading.Event().wait()

@broker.task
def report(month: str) -> None:
    threading.Event().wait()
"""
# The fonts that rich links to are on another host; a reader's own will do.
TEMPLATE = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


async def record(console: Console) -> None:
    options = ("--workers", "4", "--name", "shop", "--graceful-timeout", "0")
    supervisor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "taskiq_supervise", "shop:broker", *options)
    )
    broker = SharedMemoryBroker("shop")
    tasks = {
        name: broker.register_task(lambda _: None, task_name=f"shop:{name}")
        for name in ("receipt", "thumbnail", "report")
    }
    await broker.startup()
    for order in range(500):
        sent = await tasks["receipt"].kiq(order)
        await sent.wait_result(timeout=10)
    for name in ("thumbnail", "thumbnail", "report"):
        await tasks[name].kiq("november")
        await asyncio.sleep(0.8)  # so that they have been running for different times
    console.print("$ taskiq-supervise status")
    show(statuses(), console)
    await broker.shutdown()
    supervisor.send_signal(signal.SIGTERM)
    await supervisor.wait()


def main() -> None:
    target = Path(__file__).with_name("status.svg")
    console = Console(record=True, width=96, file=io.StringIO(), highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["TASKIQ_SUPERVISE_RUNTIME_DIR"] = f"{folder}/runtime"
        os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"] = f"{folder}/queues"
        Path("shop.py").write_text(APPLICATION)
        asyncio.run(record(console))
    console.save_svg(str(target), title="taskiq-supervise", code_format=TEMPLATE)


if __name__ == "__main__":
    main()
