"""The segment's file: who makes it, who may have it, and what becomes of a damaged one."""

import fcntl
import os
import random
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.ipc.conftest import run_one
from tests.ipc.events import NewPeer
from tests.ipc.peer import SMALL

from taskiq_supervise.ipc import Geometry, QueueError, SegmentError, TaskQueue, segment
from taskiq_supervise.ipc._core import segment_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.ipc.conftest import Peer

# struct header of ipc/core/layout.h
VERSION, ARCH, LAYOUT, TOTAL, BOOT_ID, GEOMETRY, SHARED = 8, 12, 16, 24, 32, 48, 128
HEADER_SIZE = 256


@pytest.fixture
def folder() -> Path:
    return Path(os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"]) / "q"


@pytest.fixture
def segment_file(folder: Path) -> Path:
    """Of a queue that nobody has open; one message is in it."""
    with TaskQueue.open("q", geometry=SMALL) as queue:
        queue.put("id", b"payload")
    return folder / "segment"


def change(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def refusal(sentence: str) -> "pytest.RaisesExc[SegmentError]":
    return pytest.raises(SegmentError, match=sentence)


@pytest.mark.parametrize(
    ("offset", "data", "sentence"),
    [
        (0, b"\0", "does not start with the magic number"),
        (VERSION, struct.pack("<I", 1), "it has format 1 .*, this program reads format 4"),
        (LAYOUT, b"\0\0", "this program reads format 4 .layout "),
        (ARCH, b"\xff", "made on another architecture"),
        (TOTAL, struct.pack("<Q", 1 << 40), "its header says"),
        (GEOMETRY, struct.pack("<I", 0), "geometry is out of range"),
        (GEOMETRY, struct.pack("<I", 128), "its header says"),
        (GEOMETRY + 8, struct.pack("<I", 1 << 31), "geometry is out of range"),
        (GEOMETRY + 12, struct.pack("<I", 7), "geometry is out of range"),
    ],
)
def test_a_segment_that_does_not_fit_is_refused_and_left_alone(
    segment_file: Path, offset: int, data: bytes, sentence: str
) -> None:
    change(segment_file, offset, data)
    before = segment_file.read_bytes()
    with refusal(sentence) as caught:
        TaskQueue.open("q")
    assert str(segment_file) in str(caught.value)
    assert "nothing was changed" in str(caught.value)
    assert segment_file.read_bytes() == before


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (0, "it is empty"),
        (100, "less than a header"),
        (8192, "its header says"),
        (-4096, "its header says"),
    ],
)
def test_a_segment_of_another_size_is_refused(segment_file: Path, size: int, sentence: str) -> None:
    os.truncate(segment_file, size if size >= 0 else segment_file.stat().st_size - size)
    with refusal(sentence):
        TaskQueue.open("q")


def test_the_geometry_is_the_segments_own(segment_file: Path) -> None:
    with TaskQueue.open("q", geometry=Geometry()) as queue:
        assert queue.geometry == SMALL


def test_the_default_stays_below_64_mb() -> None:
    assert segment_size(Geometry().as_tuple()) < 64_000_000


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(slots=63),
        Geometry(slots=1 << 20),
        Geometry(inline_size=65),
        Geometry(inline_size=64),
        Geometry(participants=0),
        Geometry(participants=8192),
        Geometry(blocks=()),
        Geometry(blocks=((64, 3),)),
        Geometry(blocks=((128, 64), (64, 64))),
        Geometry(blocks=((100, 64),)),
        Geometry(blocks=tuple((64 << n, 64) for n in range(7))),
        Geometry(slots=-1),
        Geometry(slots=1 << 40),
    ],
)
def test_an_impossible_geometry_is_refused(geometry: Geometry, folder: Path) -> None:
    with pytest.raises(QueueError, match="out of range"):
        TaskQueue.open("q", geometry=geometry)
    assert not (folder / "segment").exists()


WORK = """
def work(queue):
    '''All that a client and a worker do. They may raise an error that says something.'''
    errors = (QueueError, ValueError, LookupError)
    from contextlib import suppress
    with suppress(*errors):
        queue.put("new", bytes(700))
    for task_id in ("id", "new", "other"):
        with suppress(*errors):
            queue.outcome(task_id)
    for _ in range(70):
        with suppress(*errors):
            lease = queue.claim()
            if lease is None:
                break
            lease.start()
            lease.complete(bytes(600))
    for slot in range(64):
        with suppress(*errors):
            queue.core.outcome(slot, 1)
    with suppress(*errors):
        queue.core.audit(queue.participant, 1, 1)
    for index in range(2, 64):
        with suppress(*errors):
            queue.recover(index)
    with suppress(*errors):
        queue.core.completions(queue.participant)
        queue.core.pick_sleeper(queue.participant, False)
        queue.core.empty_others(queue.participant)
    list(queue.participants())
    queue.stats()
"""


def test_each_byte_of_the_header_is_checked_or_harmless(
    segment_file: Path, new_peer: NewPeer
) -> None:
    peer = new_peer()
    peer.ask(WORK)
    whole = segment_file.read_bytes()
    for offset in range(HEADER_SIZE):
        damaged = bytearray(whole)
        damaged[offset] ^= 0xFF
        segment_file.write_bytes(damaged)
        said = peer.ask(
            "try:\n"
            "    with TaskQueue.open('q') as queue: work(queue)\n"
            "    said = ''\n"
            "except SegmentError as error:\n"
            "    said = str(error)\n"
            "said"
        )
        constant = offset < GEOMETRY + 16 + 2 * 8 and not BOOT_ID <= offset < GEOMETRY
        assert bool(said) == constant, f"byte {offset}: {said!r}"


@pytest.mark.parametrize("seed", range(60))
def test_garbage_behind_the_header_crashes_nobody(
    segment_file: Path, fuzzed: "Peer", seed: int
) -> None:
    """A damaged queue may lose its messages; it may not take the processes with it."""
    rng = random.Random(seed)
    data = bytearray(segment_file.read_bytes())
    for _ in range(rng.choice([1, 10, 1000])):
        at = rng.randrange(SHARED, len(data) - 8)
        kind = rng.randrange(4)
        data[at : at + 8] = (
            rng.randbytes(8),
            b"\xff" * 8,
            # A slot or block word: a state with an owner, and whatever generation was there.
            bytes(data[at : at + 6]) + rng.randbytes(2),
            struct.pack("<Q", rng.choice([0, 1, 63, 64, 127, 128, 1 << 31, (1 << 32) - 1])),
        )[kind]
    segment_file.write_bytes(data)
    base = str(segment_file.parents[1])
    fuzzed.ask(f"with TaskQueue.open('q', {base!r}) as queue: work(queue)", timeout=20)


@pytest.fixture(scope="module")
def fuzzed() -> "Iterator[Peer]":
    from tests.ipc.conftest import Peer

    peer = Peer()
    peer.ask(WORK)
    yield peer
    peer.end()


def test_a_folder_of_somebody_else_is_refused(folder: Path, segment_file: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(folder, 12345, 12345)
    with refusal(r"belongs to user 12345, not to 0: refused"):
        TaskQueue.open("q")


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_others_can_write_is_refused(
    folder: Path, segment_file: Path, mode: int
) -> None:
    folder.chmod(mode)
    with refusal(f"writable for others .mode {mode:04o}.*chmod 700"):
        TaskQueue.open("q")


def test_only_the_owner_can_read_it(folder: Path, segment_file: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_links_are_not_followed(folder: Path, segment_file: Path) -> None:
    elsewhere = folder / "elsewhere"
    segment_file.rename(elsewhere)
    segment_file.symlink_to(elsewhere)
    with refusal("cannot open the queue segment"):
        TaskQueue.open("q")
    folder.rename(folder.with_name("real"))
    folder.symlink_to(folder.with_name("real"))
    with refusal("is not a folder"):
        TaskQueue.open("q")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "x" * 101, "a\nb", "ä"])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(QueueError, match="queue name"):
        TaskQueue.open(name)


def test_no_room_is_said_before_anything_is_used(folder: Path, new_peer: NewPeer) -> None:
    peer = new_peer()
    peer.ask("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))")
    said = peer.ask(
        "try: TaskQueue.open('q')\nexcept SegmentError as error: said = str(error)\nsaid"
    )
    size = segment_size(Geometry().as_tuple()) / 1e6
    assert f"no room for a queue of {size:.0f} MB" in said
    assert str(folder) in said
    assert "TASKIQ_SUPERVISE_QUEUE_DIR" in said
    assert list(folder.iterdir()) == [], "nothing is left behind"


FULL_TMPFS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
    sys.exit(77)
if libc.mount(b"tmpfs", sys.argv[1].encode(), b"tmpfs", 0, b"size=1m,mode=700"):
    sys.exit(77)
from taskiq_supervise.ipc import SegmentError, TaskQueue
try:
    TaskQueue.open("q", sys.argv[1])
except SegmentError as error:
    assert "no room for a queue of" in str(error), error
    assert os.listdir(f"{sys.argv[1]}/q") == []
    print(error)
"""


def test_a_full_tmpfs_is_an_error_and_not_a_bus_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_TMPFS, tmp_path], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("no right to mount a file system")
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout


def test_two_who_make_it_at_once_share_it(folder: Path, new_peer: NewPeer) -> None:
    peers = [new_peer(), new_peer()]
    for number in range(50):
        name = f"q{number}"
        # As close together as it gets: both wait for the same file to appear.
        go = folder.parent / f"go-{number}"
        asked = [
            peer.begin(
                f"while not os.path.exists({str(go)!r}): pass\n"
                f"queue = TaskQueue.open({name!r}, geometry=SMALL)\nqueue.participant"
            )
            for peer in peers
        ]
        go.touch()
        indexes = {peer.answer(number) for peer, number in zip(peers, asked, strict=True)}
        assert indexes == {1, 2}
        peers[0].ask("queue.put('id', b'x').slot")
        assert peers[1].ask("queue.claim().task_id") == "id"
        files = {path.name for path in (folder.parent / name).iterdir()}
        assert files == {"segment", "lock", "bell-1", "bell-2"}
        for peer in peers:
            peer.ask("queue.close()")


def test_what_a_killed_maker_left_is_cleared_by_the_next(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True)
    left, in_work = folder / "segment.new-1-left", folder / "segment.new-2-in-work"
    left.write_bytes(b"half of one")
    with in_work.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with TaskQueue.open("q", geometry=SMALL):
            assert sorted(folder.glob("segment*")) == [folder / "segment", in_work]


def test_a_segment_of_another_boot_is_set_aside(
    folder: Path, segment_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(segment_file, BOOT_ID, b"\1" * 16)
    before = segment_file.read_bytes()
    with TaskQueue.open("q", geometry=SMALL) as queue:
        assert queue.stats().ready == 0
        queue.put("id", b"")
        run_one(queue)
    assert "earlier boot" in caplog.text
    [aside] = folder.glob("segment.boot-*")
    assert aside.read_bytes() == before


def test_a_segment_that_is_set_aside_by_two_is_not_lost(
    folder: Path, segment_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two start after a reboot. The slower one must not set aside what the faster one has made."""
    change(segment_file, BOOT_ID, b"\1" * 16)
    opened: list[TaskQueue] = []
    real = segment.boot_id

    def faster_one_comes_between() -> bytes:
        monkeypatch.setattr(segment, "boot_id", real)
        opened.append(TaskQueue.open("q", geometry=SMALL))
        opened[0].put("of the faster one", b"")
        return real()

    # The slower one has the old segment open and looks which boot it is of.
    monkeypatch.setattr(segment, "boot_id", faster_one_comes_between)
    slower = TaskQueue.open("q", geometry=SMALL)
    try:
        lease = slower.claim()
        assert lease is not None, "the two are in different queues"
        assert lease.task_id == "of the faster one"
        assert len(list(folder.glob("segment.boot-*"))) == 1
    finally:
        slower.close()
        opened[0].close()
