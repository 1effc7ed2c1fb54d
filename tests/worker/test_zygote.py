"""The zygote imports once and forks workers, which are the supervisor's children."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.e2e.chaos import starving
from tests.e2e.chaos_aftermath import descriptors

from taskiq_supervise import __version__

if TYPE_CHECKING:
    from tests.worker.conftest import Nursery

Start = Callable[[str], "Nursery"]

APP = """
import os
from taskiq_supervise import SharedMemoryBroker
broker = SharedMemoryBroker("nursery")
with open("imports", "a") as file:
    file.write(f"{os.getpid()}\\n")
"""


def imports() -> list[int]:
    return [int(line) for line in Path("imports").read_text().split()]


def test_it_says_what_the_application_is(nursery: Start) -> None:
    answer = nursery(APP).load()
    assert answer["op"] == "loaded"
    assert answer["version"] == __version__
    assert answer["threads"] == []
    assert answer["broadcast"] is None
    assert answer["transport"]["kind"] == "shm"
    assert answer["transport"]["name"] == "nursery"
    assert answer["transport"]["directory"] == os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"]
    assert answer["transport"]["geometry"]["slots"] == 16384


BROADCASTING = (
    "from taskiq import AsyncBroker\n"
    "class Own(AsyncBroker):\n"
    "    taskiq_supervise_broadcast = True\n"
    "    async def kick(self, message): ...\n"
    "    async def listen(self): yield b''\n"
    "broker = Own()\n"
)


def test_a_broker_that_hands_each_task_to_each_worker_gets_a_listener_and_a_queue(
    nursery: Start,
) -> None:
    answer = nursery(BROADCASTING).load(instance="app", pool="mail")
    assert answer["broadcast"] is None
    transport = answer["transport"]
    assert (transport["kind"], transport["class"], transport["own"]) == (
        "listener",
        "app.Own",
        False,
    )
    assert "taskiq_supervise_broadcast" in transport["reason"]
    assert (transport["name"], transport["store"]) == ("listener-app-mail", "shm")
    assert transport["directory"] == os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"]
    assert transport["geometry"]["slots"] == 16384


def test_without_shared_memory_a_listener_has_no_queue(nursery: Start) -> None:
    transport = nursery(BROADCASTING).load(transport="zmq", instance="app")["transport"]
    assert (transport["kind"], transport["name"]) == ("listener", "listener-app")
    assert (transport["store"], transport["directory"]) == ("zmq", "")


def test_without_a_listener_it_says_why_there_can_be_one_worker_only(nursery: Start) -> None:
    answer = nursery(BROADCASTING).load(single_listener=False)
    assert answer["transport"] == {"kind": "broker", "class": "app.Own"}
    assert "taskiq_supervise_broadcast" in answer["broadcast"]


def test_a_queue_in_shared_memory_without_shared_memory_is_refused(nursery: Start) -> None:
    answer = nursery(APP).load(transport="zmq")
    assert (answer["op"], answer["kind"]) == ("load_failed", "invalid")
    assert "taskiq_supervise.ZeroMQBroker" in answer["message"]


@pytest.mark.parametrize("preload", [True, False])
def test_an_application_that_fails_is_reported_with_its_traceback(
    nursery: Start, preload: bool
) -> None:
    answer = nursery("def f():\n    return 1 / 0\nf()\n").load(preload=preload)
    assert (answer["op"], answer["kind"]) == ("load_failed", "user")
    assert answer["message"] == "importing 'app' failed: ZeroDivisionError: division by zero"
    assert 'app.py", line 2, in f' in answer["traceback"]
    assert "taskiq_supervise" not in answer["traceback"]


def test_a_missing_module_is_reported_in_one_line(nursery: Start) -> None:
    answer = nursery("").load("nowhere:broker")
    assert (answer["op"], answer["kind"], answer["traceback"]) == ("load_failed", "missing", None)


def test_an_application_that_kills_the_importing_process_is_reported(nursery: Start) -> None:
    answer = nursery("import os; os.kill(os.getpid(), 11)").load(preload=False)
    assert answer["op"] == "load_failed"
    assert "was killed by SIGSEGV" in answer["message"]


def test_options_that_are_wrong_are_reported(nursery: Start) -> None:
    from taskiq_supervise.ipc.framing import send

    zygote = nursery(APP)
    send(zygote.socket, {"op": "load", "config": {"app": "app:broker", "colour": 1}})
    answer = zygote.next()
    assert (answer["op"], answer["kind"]) == ("load_failed", "invalid")
    assert "colour" in answer["message"]


def test_threads_started_by_the_import_are_named(nursery: Start) -> None:
    answer = nursery(
        APP + "import threading\n"
        "threading.Thread(target=threading.Event().wait, name='ticker', daemon=True).start()\n"
    ).load()
    assert answer["threads"] == ["ticker"]


def test_the_application_is_imported_once_for_all_workers(nursery: Start) -> None:
    zygote = nursery(APP)
    zygote.load()
    for slot in range(3):
        zygote.fork(slot).wait_ready()
    assert imports() == [zygote.process.pid]


def test_without_preload_each_worker_imports_for_itself(nursery: Start) -> None:
    zygote = nursery(APP)
    assert zygote.load(preload=False)["op"] == "loaded"
    workers = [zygote.fork(slot).wait_ready() for slot in range(2)]
    assert set(imports()[1:]) == {worker.pid for worker in workers}
    assert zygote.process.pid not in imports()


def test_a_worker_whose_own_import_fails_says_so(nursery: Start) -> None:
    zygote = nursery(APP + "assert len(open('imports').readlines()) == 1, 'once only'\n")
    assert zygote.load(preload=False)["op"] == "loaded"
    worker = zygote.fork()
    event = worker.next()
    assert (event["event"], event["kind"]) == ("boot_failed", "import")
    assert "once only" in event["message"]
    assert worker.wait() == 3


def test_a_worker_is_the_supervisors_child_in_a_group_of_its_own(nursery: Start) -> None:
    zygote = nursery(APP)
    zygote.load()
    worker = zygote.fork(2).wait_ready()
    process = psutil.Process(worker.pid)
    assert process.ppid() == os.getpid()
    assert os.getpgid(worker.pid) == worker.pid
    assert os.getpgid(zygote.process.pid) == zygote.process.pid
    assert worker.title == "taskiq-supervise: worker 2 [app:broker]"
    title = Path(f"/proc/{zygote.process.pid}/cmdline").read_bytes().rstrip(b"\0")
    assert title == b"taskiq-supervise: zygote [app:broker]"
    assert process.num_threads() >= 1
    assert psutil.Process(zygote.process.pid).num_threads() == 1
    assert not psutil.Process(zygote.process.pid).children()


def test_a_worker_has_none_of_the_zygotes_sockets(nursery: Start) -> None:
    zygote = nursery(APP)
    zygote.load()
    first = zygote.fork(0).wait_ready()
    second = zygote.fork(1).wait_ready()

    def sockets(pid: int) -> set[str]:
        found = set()
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = str(entry.readlink())
            if target.startswith("socket:"):
                found.add(target)
        return found

    assert len(sockets(zygote.process.pid)) == 1
    assert not sockets(zygote.process.pid) & sockets(first.pid)
    assert not sockets(first.pid) & sockets(second.pid)


def test_a_fork_is_ready_much_faster_than_a_start(nursery: Start) -> None:
    zygote = nursery(APP)
    zygote.load()
    begin = time.monotonic()
    for slot in range(4):
        zygote.fork(slot).wait_ready()
    each = (time.monotonic() - begin) / 4
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "import taskiq_supervise.broker"], check=True)
    assert each < (time.monotonic() - begin) / 2


def test_it_ends_with_its_socket(nursery: Start) -> None:
    zygote = nursery(APP)
    zygote.load()
    zygote.socket.close()
    assert zygote.process.wait(20) == 0


def test_it_ignores_sigint_and_ends_on_sigterm_whatever_the_application_set(
    nursery: Start,
) -> None:
    zygote = nursery(
        APP + "import signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
    )
    zygote.load()
    zygote.process.send_signal(signal.SIGINT)
    worker = zygote.fork().wait_ready()
    worker.order("drain")
    zygote.process.send_signal(signal.SIGTERM)
    assert zygote.process.wait(20) == 0
    assert worker.wait() == 0


def test_a_worker_of_a_supervisor_that_is_gone_ends_at_once(nursery: Start) -> None:
    zygote = nursery(APP)
    zygote.load()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert zygote.fork(supervisor_pid=gone.pid).wait() == 0


def test_an_order_that_is_none_ends_it_with_a_line_in_the_log(nursery: Start) -> None:
    from taskiq_supervise.ipc.framing import send

    zygote = nursery(APP)
    send(zygote.socket, {"op": "dance"})
    assert zygote.process.wait(20) == 1
    assert "an order 'dance', which is unknown here" in zygote.log


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_without_room_for_the_descriptors_of_an_order_it_fails_and_the_next_ones_get_theirs(
    nursery: Start, spare: int
) -> None:
    zygote = nursery(APP)
    zygote.load()
    before = descriptors(zygote.process.pid)
    with starving(zygote.process.pid, spare):
        refused = zygote.ask(0)
        answer = zygote.next()
    refused.close()
    assert (answer["op"], answer["slot"], answer["generation"]) == ("fork_failed", 0, 1)
    assert answer["errno"] == errno.EMFILE
    assert f"{spare} of 3 descriptors" in answer["message"]
    assert descriptors(zygote.process.pid) == before
    for slot in (1, 2):
        zygote.fork(slot).wait_ready()


def test_a_worker_that_cannot_begin_says_why(nursery: Start) -> None:
    """Before it is the runtime that does."""
    zygote = nursery(
        APP + "from taskiq_supervise.worker import child\n"
        "def refuse(*_): raise RuntimeError('no CPU today')\n"
        "child.pin_to_cpu = refuse\n"
    )
    zygote.load(pin=True)
    assert zygote.fork().wait() == 1
    assert "The worker could not begin" in zygote.log
    assert "RuntimeError: no CPU today" in zygote.log


def test_random_numbers_of_workers_differ(nursery: Start) -> None:
    zygote = nursery(
        APP + "import random, taskiq\n"
        "@broker.on_event(taskiq.TaskiqEvents.WORKER_STARTUP)\n"
        "async def up(state):\n"
        "    open(f'random-{os.getpid()}', 'w').write(str(random.random()))\n"
    )
    zygote.load()
    pids = [zygote.fork(slot).wait_ready().pid for slot in range(3)]
    assert len({Path(f"random-{pid}").read_text() for pid in pids}) == 3
