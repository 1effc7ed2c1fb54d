"""The processes of the hub's tests: `python hub_programs.py listener|worker FOLDER [MOST]`.

A listener reads orders as lines of JSON and answers each with one. A worker does what the payload
of each message says, and tells of each start.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop

from taskiq_supervise.broker.labels import Schedule
from taskiq_supervise.ipc import DeathCause, Outcome
from taskiq_supervise.worker.hub_client import HubLease, HubQueue
from taskiq_supervise.worker.listener.intake import Incoming
from taskiq_supervise.worker.listener.store_intake import StoreIntake


def say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


# --- the listener ---------------------------------------------------------------------------------


async def listen(folder: Path) -> None:
    intake = await StoreIntake.open(folder)
    say(ready=os.getpid())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    tasks = set()
    while line := await reader.readline():
        order = json.loads(line)
        task = asyncio.ensure_future(obey(intake, order))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await intake.close()


async def obey(intake: StoreIntake, order: dict[str, Any]) -> None:
    number = order["number"]
    if order["op"] == "put":
        message = Incoming(
            order["id"], order["payload"].encode(), (), Schedule(**order["schedule"])
        )
        await intake.accept(message)
        say(number=number, accepted=order["id"])
    elif order["op"] == "wait":
        say(number=number, **as_json(await intake.wait(order["id"])))
    elif order["op"] == "gone":
        intake.gone(
            DeathCause(order["pid"], worker=3, signal=signal.SIGKILL),
            explained=order["explained"],
            overdue=tuple(order["overdue"]),
        )
        say(number=number)


def as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "kind": outcome.kind.name,
        "data": outcome.data.decode(),
        "attempts": outcome.attempts,
        "cause": None if outcome.cause is None else str(outcome.cause),
        "worker": None if outcome.cause is None else outcome.cause.worker,
    }


# --- a worker -------------------------------------------------------------------------------------


async def work(folder: Path, most: int) -> None:
    queue = HubQueue(folder, takes=True, most=most)
    await queue.start()
    finish = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, finish.set)
    say(ready=os.getpid())
    free = asyncio.Semaphore(most)
    running = set()

    async def take() -> None:
        while True:
            await free.acquire()
            task = asyncio.ensure_future(run(queue, await queue.claim()))
            running.add(task)
            task.add_done_callback(running.discard)
            task.add_done_callback(lambda _: free.release())

    taking = asyncio.ensure_future(take())
    await finish.wait()
    taking.cancel()
    for task in running:
        task.cancel()
    await queue.close()
    say(closed=True)


async def run(queue: HubQueue, lease: HubLease) -> None:
    what = lease.payload.decode().split()
    attempt = lease.start()
    gate = os.open(what[1], os.O_RDONLY | os.O_NONBLOCK) if what[0] == "until" else -1
    say(started=lease.task_id, attempt=attempt)
    if what[0] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what[0] == "acknowledge-and-die":
        await queue.acknowledge(lease)
        os.kill(os.getpid(), signal.SIGKILL)
    elif what[0] == "leave":
        queue.explain_end()
        os._exit(0)
    elif what[0] == "hang":
        await asyncio.Event().wait()
    elif what[0] == "until":
        await opened(gate)
    elif what[0] == "send":
        await queue.put(what[1], b"work")
    await queue.complete(lease, f"{os.getpid()}".encode())
    say(ended=lease.task_id)


async def opened(gate: int) -> None:
    """Until somebody has written into the pipe, or has opened and closed it."""
    loop = asyncio.get_running_loop()
    change = loop.create_future()
    loop.add_reader(gate, change.set_result, None)
    change.add_done_callback(lambda _: loop.remove_reader(gate))
    await change
    os.close(gate)


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    uvloop.run(listen(folder) if kind == "listener" else work(folder, int(sys.argv[3])))
