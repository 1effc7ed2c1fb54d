"""A client of the service in a box, below its user: `python client.py FOLDER COMMAND …`.

flood              sends tasks until its standard input ends, then waits for all results; says
                   "+" for every 50 that have come, and in the end what became of each
call TASK [JSON]   one task; what it returned
send TASK [JSON]   one task; its id. Its result is not waited for
"""

import asyncio
import importlib
import json
import sys
from typing import Any

AT_ONCE = 8
STEP = 50
PATIENCE = 60.0


class Flood:
    def __init__(self, application: Any) -> None:
        self._app = application
        self._ended = asyncio.Event()
        self._next = 0
        self.wrong: dict[int, str] = {}
        self.right = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), self._ended.set)
        await asyncio.gather(*(self._send() for _ in range(AT_ONCE)))
        loop.remove_reader(sys.stdin.fileno())
        print(json.dumps({"sent": self._next, "right": self.right, "wrong": self.wrong}))

    async def _send(self) -> None:
        while not self._ended.is_set():
            number, self._next = self._next, self._next + 1
            try:
                task = await self._app.add.kiq(number)
                result = await task.wait_result(timeout=PATIENCE)
                result.raise_for_error()
                assert result.return_value == number, result.return_value
            except Exception as error:
                self.wrong[number] = repr(error)
                continue
            self.right += 1
            if self.right % STEP == 0:
                print("+", flush=True)


async def main(folder: str, command: str, name: str = "", values: str = "[]") -> None:
    sys.path.insert(0, folder)
    application = importlib.import_module("app")
    async with application.broker:
        if command == "flood":
            await Flood(application).run()
            return
        task = await getattr(application, name).kiq(*json.loads(values))
        if command == "send":
            print(task.task_id)
            return
        result = await task.wait_result(timeout=PATIENCE)
        result.raise_for_error()
        print(json.dumps({"id": task.task_id, "value": result.return_value}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
