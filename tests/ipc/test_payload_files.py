"""Files of payloads beside processes that die, and on file systems that are small."""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.ipc.events import NewPeer, Open
from tests.ipc.peer import SMALL

from taskiq_supervise.ipc import TaskQueue

if TYPE_CHECKING:
    from tests.ipc.conftest import Peer

LARGE = 200_000
AT_WRITE = """
real = queue.files.write
def write(name, parts):
    {before}
    real(name, parts)
    {after}
queue.files.write = write
"""
STOP = "os.kill(os.getpid(), signal.SIGSTOP)"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
IN_THE_MIDDLE = f"""
import taskiq_supervise.ipc.files as files
class Half:
    def __getattr__(self, name): return getattr(os, name)
    def pwrite(self, fd, data, at):
        os.pwrite(fd, data[:1000], at)
        {KILL}
files.os = Half()
"""


def data(seed: int) -> bytes:
    return bytes([seed % 256]) * LARGE


def gone(peer: "Peer") -> None:
    with pytest.raises(EOFError):
        peer.answer(peer.begin("None"))


@pytest.mark.parametrize("what", ["put", "complete"])
@pytest.mark.parametrize("when", ["before", "after", "in the middle"])
def test_one_that_is_killed_over_a_file_leaves_none(
    open_queue: Open, new_peer: NewPeer, what: str, when: str
) -> None:
    client, peer = open_queue(), new_peer()
    index = peer.join("role=Role.WORKER")
    if what == "complete":
        client.put("id", b"")
        peer.ask("lease = queue.claim(); lease.start()")
    if when == "in the middle":
        peer.ask(IN_THE_MIDDLE)
    else:
        before, after = (KILL, "") if when == "before" else ("", KILL)
        peer.ask(AT_WRITE.format(before=before, after=after))
    source = (
        f"queue.put('id', bytes({LARGE}))" if what == "put" else f"lease.complete(bytes({LARGE}))"
    )
    with pytest.raises((EOFError, BrokenPipeError)):
        peer.answer(peer.begin(source))
    burial = client.recover(index)
    assert burial is not None
    assert client.files.names() == []
    assert burial.redelivered == (() if what == "put" else ("id",))
    assert client.stats().free == SMALL.slots - (what == "complete")
    client.files.trim(0, 0)
    assert client.files.total_bytes() == 0, "nothing leaks for good"


@pytest.mark.parametrize("what", ["put", "complete"])
def test_a_file_of_one_that_stands_still_is_not_swept_away(
    open_queue: Open, new_peer: NewPeer, what: str
) -> None:
    """Between the file and the commit the message is not there yet, and will be."""
    client, peer = open_queue(), new_peer()
    peer.join("role=Role.WORKER")
    if what == "complete":
        client.put("id", b"")
        peer.ask("lease = queue.claim(); lease.start()")
    peer.ask(AT_WRITE.format(before="", after=STOP))
    source = (
        f"queue.put('id', b'x' * {LARGE})" if what == "put" else f"lease.complete(b'x' * {LARGE})"
    )
    begun = peer.begin(f"{source}\nNone")
    peer.wait_stopped()
    client.sweep_files()
    assert len(client.files.names()) == 1
    peer.go_on()
    peer.answer(begun)
    if what == "put":
        lease = client.claim()
        assert lease is not None
        assert lease.payload == b"x" * LARGE
    else:
        outcome = client.outcome("id")
        assert outcome is not None
        assert outcome.data == b"x" * LARGE


def test_a_worker_that_is_killed_with_the_file_in_its_hands_gives_it_back(
    open_queue: Open, new_peer: NewPeer
) -> None:
    client = open_queue()
    client.put("id", b"payload", buffers=[data(1), data(2)])
    for attempt in range(2):
        worker = new_peer()
        index = worker.join("role=Role.WORKER")
        assert (
            worker.ask(
                "lease = queue.claim(); lease.start()\n"
                "lease.buffers[0][:] = bytes(len(lease.buffers[0]))\n"  # its own copy
                "lease.attempt"
            )
            == attempt + 1
        )
        worker.kill()
        assert client.recover(index) is not None
    lease = client.claim()
    assert lease is not None
    lease.start()
    assert [bytes(one) for one in lease.buffers] == [data(1), data(2)]
    lease.finish(keep=False)
    assert client.files.names() == []


def test_files_of_everybody_who_was_killed_are_found_by_the_next(
    open_queue: Open, new_peer: NewPeer
) -> None:
    peers = [new_peer() for _ in range(3)]
    for number, peer in enumerate(peers):
        peer.join()
        peer.ask(f"queue.put('{number}', b'', buffers=[bytes([{number}]) * {LARGE}]).slot")
        peer.ask(AT_WRITE.format(before="", after=KILL))
        with pytest.raises((EOFError, BrokenPipeError)):
            peer.answer(peer.begin(f"queue.put('lost', bytes({LARGE}))"))
    client = open_queue()
    for index in range(1, 5):
        client.recover(index)
    assert len(client.files.names()) == 3
    for number in range(3):
        lease = client.claim()
        assert lease is not None
        assert lease.buffers[0] == data(number)
        lease.start()
        lease.finish(keep=False)
    assert client.files.names() == []


def test_what_is_not_ours_is_left_alone(queue: TaskQueue) -> None:
    queue.put("id", b"", buffers=[data(1)])
    folder = queue.directory / "files"
    orphans = ["q-1-77", "r-1-77-1", f"q-{SMALL.slots}-1", "r-99999999-1-1"]
    foreign = ["backup-1", "r-1-2", "q-1-2-3", "README", "x.tmp"]
    for name in orphans + foreign:
        (folder / name).write_bytes(b"x")
    queue.sweep_files()
    left = {path.name for path in folder.iterdir() if path.is_file()}
    assert left >= set(foreign)
    assert not left & set(orphans)
    assert queue.claim() is not None


SMALL_FILE_SYSTEM = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
    sys.exit(77)
if libc.mount(b"tmpfs", sys.argv[1].encode(), b"tmpfs", 0, b"size=4m,mode=700"):
    sys.exit(77)
from taskiq_supervise.ipc import FilesFull, Geometry, QueueFull, TaskQueue, UnknownTask
SMALL = Geometry(slots=64, inline_size=256, participants=64, blocks=((64, 64), (256, 64)))
queue = TaskQueue.open("q", sys.argv[1], geometry=SMALL)
def free():
    found = os.statvfs(sys.argv[1])
    return found.f_bfree * found.f_frsize
def run(task_id, size):
    ticket = queue.put(task_id, b"")
    lease = queue.claim()
    lease.start()
    lease.complete(bytes(size))
    return ticket
def known(task_id):
    try: return queue.find(task_id)
    except UnknownTask: return None
exec(sys.argv[2])
queue.close()
"""
RESULTS = """
for number in range(20):
    run(str(number), 500_000)
there = [number for number in range(20) if known(str(number))]
assert there and there[-1] == 19, there
assert there == list(range(there[0], 20)), f"the oldest go: {there}"
assert len(queue.files.names()) == len(there)
for number in there:
    assert queue.outcome(str(number)).data == bytes(500_000)
"""
PAYLOADS = """
count = 0
try:
    for count in range(20):
        queue.put(str(count), bytes(500_000))
except FilesFull as error:
    assert isinstance(error, QueueFull) and "no room for a payload of 0.5 MB" in str(error), error
assert 2 < count < 10, count
assert queue.stats().ready == count
assert len(queue.files.names()) == count
for number in range(count):
    lease = queue.claim()
    assert (lease.task_id, lease.payload) == (str(number), bytes(500_000))
    lease.start()
    lease.finish(keep=False)
for number in range(3):
    queue.put(str(number), bytes(800_000))
"""
ROOM_FROM_RESULTS = """
run("old", 1_000_000), run("new", 1_000_000)
queue.put("id", bytes(2_000_000))
assert known("old") is None
"""
AWAITED = """
ticket = run("awaited", 2_000_000)
queue.core.watch(queue.participant, ticket.slot)
try: queue.put("id", bytes(3_000_000))
except FilesFull: pass
else: raise AssertionError("there was room")
assert queue.outcome("awaited").data == bytes(2_000_000)
queue.put("id", bytes(3_000_000))
assert known("awaited") is None
"""
TOO_LARGE = """
before = queue.stats()
for _ in range(3):
    try: queue.put("id", bytes(50_000_000))
    except FilesFull: pass
    else: raise AssertionError("there was room")
assert queue.stats() == before
queue.put("id", b"")
lease = queue.claim()
lease.start()
try: lease.complete(bytes(50_000_000))
except FilesFull: pass
else: raise AssertionError("there was room")
assert lease.held
lease.complete(bytes(500_000))
assert queue.outcome("id").data == bytes(500_000)
"""


@pytest.mark.parametrize(
    "what",
    [RESULTS, PAYLOADS, ROOM_FROM_RESULTS, AWAITED, TOO_LARGE],
    ids=["the oldest results make room", "payloads wait", "results make room for payloads",
         "awaited results stay", "too large leaves nothing"],
)  # fmt: skip
def test_on_a_small_file_system(tmp_path: Path, what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SMALL_FILE_SYSTEM, tmp_path, what],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("no right to mount a file system")
    assert done.returncode == 0, done.stderr
