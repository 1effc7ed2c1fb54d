"""A forked child is not its parent: it has no part in the queue, and does not hide its death."""

import asyncio
import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from tests.ipc.conftest import PATIENCE
from tests.ipc.events import NewPeer, Open, Start

if TYPE_CHECKING:
    from tests.ipc.conftest import Peer


FORK = """
def fork(child):
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(1)
    return pid

def sleep_for_ever():
    while True:
        signal.pause()
"""
POOL = """
import multiprocessing
child = multiprocessing.get_context("fork").Process(target=sleep_for_ever)
child.start()
child.pid
"""


@pytest.fixture
def orphans() -> Iterator[list[int]]:
    """Processes that nobody waits for any more when their parent was killed."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            select.select([pidfd], [], [], PATIENCE)
            os.close(pidfd)


@pytest.mark.parametrize("how", ["fork(sleep_for_ever)", POOL], ids=["fork", "multiprocessing"])
async def test_a_death_is_seen_at_once_though_a_forked_child_lives_on(
    start_queue: Start, new_peer: NewPeer, orphans: list[int], how: str
) -> None:
    client, worker = await start_queue(), new_peer()
    worker.join_async("role=Role.WORKER")
    worker.ask(FORK)
    orphans.append(worker.ask(how))
    await client.put("id", b"")
    worker.ask("lease = await waiting.claim(); lease.start()")
    claim = asyncio.ensure_future(client.claim())
    await asyncio.sleep(0)
    began = asyncio.get_running_loop().time()
    worker.kill()
    lease = await asyncio.wait_for(claim, PATIENCE)
    assert lease.task_id == "id"
    assert asyncio.get_running_loop().time() - began < 1
    os.kill(orphans[0], 0)  # it is there


def in_child(peer: "Peer", source: str) -> "list[str]":
    """Runs the source in a forked child of the peer; the lines that it says."""
    peer.ask(FORK)
    body = "".join(f"    {line}\n" for line in source.splitlines())
    text: str = peer.ask(
        "reading, writing = os.pipe()\n"
        "def say(what): os.write(writing, f'{what}\\n'.encode())\n"
        f"def child():\n{body}    os._exit(0)\n"
        "pid = fork(child)\n"
        "os.close(writing)\n"
        "with open(reading) as pipe: said = pipe.read()\n"
        "said += str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
        "\nsaid"
    )
    *lines, status = text.split("\n")
    assert status == "0", lines
    return lines


def test_a_forked_child_has_no_part_in_the_queue(open_queue: Open, new_peer: NewPeer) -> None:
    client, peer = open_queue(), new_peer()
    index = peer.join()
    client.put("id", b"")
    peer.ask("lease = queue.claim(); lease.start()")
    said = in_child(
        peer,
        "for step in (queue.claim, queue.stats, lease.release, lambda: queue.put('x', b'')):\n"
        "    try: step()\n"
        "    except ValueError as error: say(error)\n"
        "queue.close()",
    )
    assert said == ["operation on a closed queue"] * 4
    assert [one.index for one in client.participants()] == [client.participant, index]
    assert client.recover(index) is None, "the parent lives"
    peer.ask("lease.complete(b'result')")
    outcome = client.outcome("id")
    assert outcome is not None
    assert outcome.data == b"result"


@pytest.mark.parametrize("size", [16 << 20, 50 << 20], ids=["in a block", "in a file"])
def test_a_forked_child_has_no_part_in_what_another_thread_was_doing(
    new_peer: NewPeer, size: int
) -> None:
    """One that copies a large payload has let the interpreter go, and is not there in the child."""
    peer = new_peer()
    peer.ask(
        "import threading\n"
        "large = Geometry(slots=64, participants=64, blocks=((16 << 20, 2),))\n"
        "queue = TaskQueue.open('large', geometry=large)\n"
        f"payload = bytes({size})\n"
        "def put():\n"
        "    while len(pids) < 20:\n"
        "        queue.put('id', payload)\n"
        "        lease = queue.claim(); lease.start(); lease.finish(keep=False)\n"
        "pids = []\n"
        "thread = threading.Thread(target=put)"
    )
    peer.ask(FORK)
    said = peer.ask(
        "def child():\n"
        "    try: queue.core.counts()\n"
        "    except ValueError: os._exit(0)\n"
        "thread.start()\n"
        "while thread.is_alive() and len(pids) < 20: pids.append(fork(child)); time.sleep(0.002)\n"
        "statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]\n"
        "thread.join()\n"
        "sum(statuses), len(statuses)"
    )
    assert said == [0, 20], "some child could still use the parent's mapping"


def test_a_forked_child_joins_as_itself(open_queue: Open, new_peer: NewPeer) -> None:
    client, peer = open_queue(), new_peer()
    index = peer.join()
    client.put("id", b"")
    said = in_child(
        peer,
        "mine = TaskQueue.open('q')\n"
        "say(mine.participant != queue.participant)\n"
        "lease = mine.claim(); lease.start(); lease.complete(b'of the child')\n"
        "mine.close()",
    )
    assert said == ["True"]
    outcome = client.outcome("id")
    assert outcome is not None
    assert outcome.data == b"of the child"
    assert client.recover(index) is None, "the child's leaving is not the parent's"
    client.put("another", b"")
    assert peer.ask("queue.claim().task_id") == "another"


def test_a_forked_child_that_is_killed_gives_back_what_it_held(
    open_queue: Open, new_peer: NewPeer
) -> None:
    client, peer = open_queue(), new_peer()
    peer.join()
    client.put("id", b"")
    [index] = in_child(
        peer,
        "mine = TaskQueue.open('q')\nlease = mine.claim(); lease.start()\nsay(mine.participant)",
    )
    burial = client.recover(int(index))
    assert burial is not None
    assert burial.redelivered == ("id",)


def test_who_has_two_queues_open_keeps_one_when_the_other_is_closed(
    open_queue: Open, new_peer: NewPeer
) -> None:
    """Closing any descriptor of the lock file would drop all the locks of the process."""
    client, peer = open_queue(), new_peer()
    index = peer.join()
    peer.ask("other = TaskQueue.open('q'); other.close()")
    assert client.recover(index) is None
    client.put("id", b"")
    assert peer.ask("queue.claim().task_id") == "id"
