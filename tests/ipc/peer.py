"""A participant in a process of its own, that does what a test tells it to.

Reads lines of [number, Python source] from standard input, runs each as a task on one event loop
(`await` is allowed), and answers with [number, value of the last expression, or null, error]. The
names of taskiq_supervise.ipc are there, and what a line assigns stays for the next. When standard
input ends the process is gone at once, without leaving the queue: as if it had been killed.
"""

import ast
import asyncio
import inspect
import json
import os
import signal
import sys
import time
from typing import Any

from taskiq_supervise import ipc

SMALL = ipc.Geometry(slots=64, inline_size=256, participants=64, blocks=((64, 64), (256, 64)))
"""Small enough to be filled, and so that every way of storing a payload is within reach."""
ROOM = SMALL.slots - SMALL.slots // 64
"""Of its slots; the others are kept for what workers send again."""


def compiled(number: int, source: str) -> Any:
    tree = ast.parse(source)
    last = tree.body[-1]
    if isinstance(last, ast.Expr):
        name = ast.Name(f"_value_{number}", ast.Store())
        tree.body[-1] = ast.copy_location(ast.Assign([name], last.value), last)
        ast.fix_missing_locations(tree)
    return compile(tree, f"<line {number}>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


async def run(number: int, source: str, names: dict[str, Any]) -> None:
    answer: list[Any] = [number, None, None]
    try:
        result = eval(compiled(number, source), names)
        if inspect.iscoroutine(result):
            await result
        answer[1] = names.pop(f"_value_{number}", None)
        json.dumps(answer)
    except (Exception, asyncio.CancelledError) as error:
        answer[1:] = None, f"{type(error).__name__}: {error}"
    os.write(1, json.dumps(answer).encode() + b"\n")


async def main() -> None:
    names: dict[str, Any] = {name: getattr(ipc, name) for name in ipc.__all__}
    names |= {"SMALL": SMALL, "asyncio": asyncio, "os": os, "signal": signal, "time": time}
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    tasks = set()
    while line := await reader.readline():
        number, source = json.loads(line)
        task = asyncio.create_task(run(number, source, names))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
