"""Payload files: what is written is what is read, whoever dies or stands still meanwhile."""

import errno
import fcntl
import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from taskiq_supervise.ipc import files as files_module
from taskiq_supervise.ipc import mappings as mappings_module
from taskiq_supervise.ipc import spares as spares_module
from taskiq_supervise.ipc.errors import FilesFull, QueueError, QueueFull, SegmentError
from taskiq_supervise.ipc.files import PayloadFiles
from taskiq_supervise.ipc.mappings import KEPT_COUNT
from taskiq_supervise.ipc.spares import SPARE_COUNT, file_size, try_lock

if TYPE_CHECKING:
    from tests.ipc.conftest import Peer

SIZE = 50_000


def content(number: int, size: int = SIZE) -> bytes:
    return bytes([number % 251 + 1]) * size


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """On a tmpfs, as in life."""
    path = Path(os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"]) / "files-of-a-test"
    path.mkdir()
    yield path
    subprocess.run(["rm", "-r", path], check=True)


@pytest.fixture
def directory(folder: Path) -> Path:
    return folder / "files"


@pytest.fixture
def make_files(directory: Path) -> Iterator[Callable[[], PayloadFiles]]:
    with ExitStack() as stack:

        def make() -> PayloadFiles:
            made = PayloadFiles(directory)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def files(make_files: Callable[[], PayloadFiles]) -> PayloadFiles:
    return make_files()


@pytest.fixture
def join(new_peer: "Callable[[], Peer]", directory: Path) -> "Callable[[], Peer]":
    """Processes that have the same folder open as `files`."""

    def make() -> "Peer":
        peer = new_peer()
        peer.ask(
            "from pathlib import Path\n"
            "from taskiq_supervise.ipc.files import PayloadFiles\n"
            f"files = PayloadFiles(Path({str(directory)!r}))"
        )
        return peer

    return make


def spares(directory: Path) -> list[Path]:
    return sorted((directory / "spares").iterdir())


def inode(path: Path) -> int:
    return path.stat().st_ino


def read(files: PayloadFiles, name: str, size: int = SIZE) -> bytes:
    (view,) = files.map(name, [size])
    return bytes(view)


def mapped(folder: Path) -> list[str]:
    """Access of what is mapped from the folder in this process."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return sorted(line.split()[1] for line in lines if folder.name in line)


# --- what is written is what is read


def test_every_buffer_comes_back_at_a_multiple_of_64(files: PayloadFiles, directory: Path) -> None:
    buffers: list[bytes | bytearray | memoryview] = [
        b"a",
        b"",
        bytearray(b"b" * 64),
        memoryview(b"c" * 65),
        np.arange(1000.0).data,
        b"end",
    ]
    files.write("q-1-2", buffers)
    lengths = [memoryview(buffer).nbytes for buffer in buffers]
    views = files.map("q-1-2", lengths)
    assert [bytes(view) for view in views] == [bytes(buffer) for buffer in buffers]
    stored = (directory / "q-1-2").read_bytes()
    assert stored[0:1] + stored[64:128] + stored[128:193] == b"a" + b"b" * 64 + b"c" * 65
    array = np.frombuffer(views[4])
    assert array.sum() == 499500.0
    assert array.ctypes.data % 64 == 0


def test_arrays_in_either_order_of_memory_and_nothing_at_all(files: PayloadFiles) -> None:
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    files.write("q-1-1", [array.data, np.zeros((0, 3)).data])
    view, nothing = files.map("q-1-1", [96, 0])
    assert np.array_equal(np.frombuffer(view).reshape((3, 4), order="F"), array)
    assert len(nothing) == 0
    with pytest.raises(BufferError):
        files.write("q-1-2", [np.arange(12)[::2].data])
    files.write("q-1-3", [])
    assert files.map("q-1-3", []) == ()
    assert sorted(files.names()) == ["q-1-1", "q-1-3"]


def test_another_process_reads_it_after_the_writer_was_killed(
    files: PayloadFiles, join: "Callable[[], Peer]"
) -> None:
    peer = join()
    peer.ask(f"files.write('q-7-1', [b'x' * {SIZE}, b'tail'])")
    peer.kill()
    head, tail = files.map("q-7-1", [SIZE, 4])
    assert (bytes(head), bytes(tail)) == (b"x" * SIZE, b"tail")


def test_what_a_reader_writes_is_seen_by_nobody_else(files: PayloadFiles, directory: Path) -> None:
    files.write("q-1-1", [content(1)])
    (first,) = files.map("q-1-1", [SIZE])
    (second,) = files.map("q-1-1", [SIZE])
    np.frombuffer(first, np.uint8)[:] = 0
    assert bytes(first) == bytes(SIZE)
    assert bytes(second) == content(1)
    assert (directory / "q-1-1").read_bytes()[:SIZE] == content(1)
    del first
    assert read(files, "q-1-1") == content(1), "a mapping that was written to is not kept"


def test_folder_and_files_are_for_the_owner_unless_said_otherwise(folder: Path) -> None:
    for mode, of_file in ((0o700, 0o600), (0o770, 0o660)):
        directory = folder / f"files-{mode:o}"
        before = os.umask(0o077)
        try:
            files = PayloadFiles(directory, mode)
            files.write("q-1-1", [b"x"])
        finally:
            os.umask(before)
        assert directory.stat().st_mode & 0o777 == mode
        assert (directory / "q-1-1").stat().st_mode & 0o777 == of_file
        files.close()


# --- spares


def test_a_dropped_file_is_written_again(files: PayloadFiles, directory: Path) -> None:
    for number in range(6):
        files.write("q-1-1", [content(number)])
        assert read(files, "q-1-1") == content(number)
        used = inode(directory / "q-1-1")
        files.drop("q-1-1")
        files.drop("q-1-1")
        assert files.names() == []
        assert [inode(spare) for spare in spares(directory)] == [used]


def test_both_sides_keep_their_mappings(files: PayloadFiles, folder: Path) -> None:
    addresses = set()
    for number in range(4):
        files.write("q-1-1", [content(number)])
        (view,) = files.map("q-1-1", [SIZE])
        addresses.add(np.frombuffer(view, np.uint8).ctypes.data)
        assert bytes(view) == content(number)
        del view
        files.drop("q-1-1")
    assert len(addresses) == 1
    assert mapped(folder) == ["rw-p", "rw-s"]


def test_of_equal_spares_the_one_that_is_mapped_here_is_taken(
    files: PayloadFiles, make_files: Callable[[], PayloadFiles], directory: Path
) -> None:
    other = make_files()
    for number in range(2):
        files.write("q-1-1", [content(number)])  # the second time through a mapping
        files.drop("q-1-1")
    (mine,) = map(inode, spares(directory))
    files.write("q-1-1", [content(1)])
    other.write("q-2-1", [content(2)])
    for _ in range(6):  # their names are random
        files.drop("q-1-1")
        files.drop("q-2-1")
        files.write("q-1-1", [content(1)])
        assert inode(directory / "q-1-1") == mine
        other.write("q-2-1", [content(2)])


@pytest.mark.parametrize(
    ("needed", "chosen"), [(90_000, 100_000), (110_000, 130_000), (60_000, 100_000), (65_000, None)]
)
def test_the_best_fitting_spare_is_taken_and_none_twice_as_large(
    files: PayloadFiles, directory: Path, needed: int, chosen: int | None
) -> None:
    sizes = (130_000, 100_000) if chosen else (20_000, 140_000)
    inodes = {}
    for number, size in enumerate(sizes):
        files.write(f"q-{number}-1", [content(1, size)])
        inodes[size] = inode(directory / f"q-{number}-1")
    for number in range(2):
        files.drop(f"q-{number}-1")
    files.write("q-9-1", [content(2, needed)])
    assert read(files, "q-9-1", needed) == content(2, needed)
    assert (directory / "q-9-1").stat().st_size <= 2 * needed
    if chosen:
        assert inode(directory / "q-9-1") == inodes[chosen]
    else:
        assert inode(directory / "q-9-1") not in inodes.values()


def test_a_new_file_is_hardly_larger_than_needed() -> None:
    for needed in (
        0,
        1,
        4096,
        4097,
        65_537,
        1_000_000,
        100 << 20,
        (100 << 20) + 1,
        10**9,
        2**40 + 1,
    ):
        size = file_size(needed)
        assert size % mmap.PAGESIZE == 0
        assert needed <= size <= max(needed * 17 / 16 + 1, needed + mmap.PAGESIZE)


def test_a_spare_without_all_its_memory_is_not_taken(files: PayloadFiles, directory: Path) -> None:
    files.write("q-1-1", [content(1)])
    files.drop("q-1-1")
    (spare,) = spares(directory)
    size = spare.stat().st_size
    os.truncate(spare, 0)
    os.truncate(spare, size)
    files.write("q-2-1", [content(2)])
    assert inode(directory / "q-2-1") != inode(spare)


def test_spares_are_bounded_in_bytes_in_number_and_in_age(
    files: PayloadFiles, directory: Path
) -> None:
    for number in range(SPARE_COUNT + 5):
        files.write(f"q-{number}-1", [b"x"])
    for number in range(SPARE_COUNT + 5):
        files.drop(f"q-{number}-1")
    assert len(spares(directory)) == SPARE_COUNT
    files.trim(10 * mmap.PAGESIZE)
    assert files.total_bytes() == 10 * mmap.PAGESIZE
    files.trim(seconds=3600)
    assert len(spares(directory)) == 10
    files.trim(seconds=-1)
    assert spares(directory) == []


def test_the_memory_of_a_trimmed_spare_comes_back_although_it_is_mapped(
    files: PayloadFiles, join: "Callable[[], Peer]", directory: Path
) -> None:
    peer = join()
    for _ in range(2):
        files.write("q-1-1", [content(1)])
        assert peer.ask(f"len(bytes(files.map('q-1-1', [{SIZE}])[0]))") == SIZE
        files.drop("q-1-1")
    fd = os.open(spares(directory)[0], os.O_RDONLY)
    with os.fdopen(fd) as watched:
        assert os.fstat(fd).st_blocks > 0
        files.trim(0)
        assert os.fstat(watched.fileno()).st_blocks == 0
    files.write("q-1-1", [content(2)])
    assert peer.ask(f"bytes(files.map('q-1-1', [{SIZE}])[0])[0]") == content(2)[0]


# --- who still looks at it


def test_a_file_is_not_written_again_while_anything_looks_at_it(
    files: PayloadFiles, directory: Path
) -> None:
    files.write("q-1-1", [content(1)])
    (view,) = files.map("q-1-1", [SIZE])
    array = np.frombuffer(view[100:200], np.uint8)[10:20]
    first = inode(directory / "q-1-1")
    files.drop("q-1-1")
    del view
    files.write("q-2-1", [content(2)])
    assert inode(directory / "q-2-1") != first
    assert bytes(array) == content(1, 10)
    del array
    files.write("q-3-1", [content(3)])
    assert inode(directory / "q-3-1") == first


def test_a_stopped_reader_keeps_what_it_sees_and_stops_nobody(
    files: PayloadFiles, join: "Callable[[], Peer]", directory: Path
) -> None:
    peer = join()
    files.write("q-1-1", [content(1)])
    first = inode(directory / "q-1-1")
    peer.ask(f"view, = files.map('q-1-1', [{SIZE}]); len(view)")
    peer.stop()
    files.drop("q-1-1")
    for number in range(3):
        files.write("q-2-1", [content(2)])
        assert inode(directory / "q-2-1") != first
        files.drop("q-2-1")
        files.trim(0 if number else 1 << 30)
    peer.go_on()
    assert peer.ask(f"bytes(view) == bytes([{content(1)[0]}]) * {SIZE}") is True
    assert first in map(inode, spares(directory))
    peer.ask("del view")
    files.write("q-3-1", [content(3)])
    assert inode(directory / "q-3-1") == first


def test_the_death_of_a_reader_frees_the_file(
    files: PayloadFiles, join: "Callable[[], Peer]", directory: Path
) -> None:
    peer = join()
    files.write("q-1-1", [content(1)])
    first = inode(directory / "q-1-1")
    peer.ask(f"view, = files.map('q-1-1', [{SIZE}]); len(view)")
    files.drop("q-1-1")
    peer.kill()
    files.write("q-2-1", [content(2)])
    assert inode(directory / "q-2-1") == first


def test_a_mapping_outlives_close(
    make_files: Callable[[], PayloadFiles], directory: Path, folder: Path
) -> None:
    files = make_files()
    files.write("q-1-1", [content(1)])
    (view,) = files.map("q-1-1", [SIZE])
    files.close()
    make_files().drop("q-1-1")
    assert bytes(view) == content(1)
    del view
    assert mapped(folder) == []


def test_a_mapping_outlives_its_file_and_is_not_kept_then(
    files: PayloadFiles, directory: Path, folder: Path
) -> None:
    files.write("q-1-1", [content(1)])
    (view,) = files.map("q-1-1", [SIZE])
    (directory / "q-1-1").unlink()
    assert bytes(view) == content(1)
    del view
    assert mapped(folder) == []


def test_mappings_that_are_kept_are_bounded(
    files: PayloadFiles, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(KEPT_COUNT + 4):
        files.write(f"q-{number}-1", [b"x"])
        files.map(f"q-{number}-1", [1])
    assert len(mapped(folder)) == KEPT_COUNT
    monkeypatch.setattr(mappings_module, "KEPT_BYTES", 5 * mmap.PAGESIZE)
    files.map("q-0-1", [1])
    assert len(mapped(folder)) == 5


def test_a_reader_that_comes_too_late_gets_nothing_and_not_another_payload(
    files: PayloadFiles, make_files: Callable[[], PayloadFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_files()
    files.write("q-1-1", [content(1)])

    def lock_late(fd: int, operation: int) -> bool:
        monkeypatch.undo()
        other.drop("q-1-1")
        other.write("q-2-1", [content(2)])
        return try_lock(fd, operation)

    monkeypatch.setattr(files_module, "try_lock", lock_late)
    with pytest.raises(FileNotFoundError):
        files.map("q-1-1", [SIZE])
    assert read(files, "q-2-1") == content(2)


def test_a_child_that_was_forked_while_mapped_keeps_what_it_sees(
    files: PayloadFiles, directory: Path
) -> None:
    files.write("q-1-1", [content(1)])
    first = inode(directory / "q-1-1")
    (view,) = files.map("q-1-1", [SIZE])
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with exiting():
            os.read(go_read, 1)
            assert bytes(view) == content(1)
            files.write("q-5-1", [content(5)])  # and can go on by itself
            assert read(files, "q-5-1") == content(5)
            files.drop("q-5-1")
            view = memoryview(b"")
            files.write("q-6-1", [content(6)])
    del view
    files.drop("q-1-1")
    for number in range(3):
        files.write("q-2-1", [content(2)])
        assert inode(directory / "q-2-1") != first, number
        assert read(files, "q-2-1") == content(2)
        files.drop("q-2-1")
    os.write(go_write, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(go_read)
    os.close(go_write)
    taken = set()
    for number in range(3):
        files.write(f"q-3-{number}", [content(3)])
        taken.add(inode(directory / f"q-3-{number}"))
    assert first in taken | {inode(directory / "q-6-1")}


def test_a_child_that_lets_go_does_not_take_the_parents_lock_away(
    files: PayloadFiles, directory: Path
) -> None:
    files.write("q-1-1", [content(1)])
    (view,) = files.map("q-1-1", [SIZE])
    pid = os.fork()
    if pid == 0:
        with exiting():
            view = memoryview(b"")
            files.close()
    assert os.waitpid(pid, 0)[1] == 0
    files.drop("q-1-1")
    files.write("q-2-1", [content(2)])
    assert bytes(view) == content(1)


def test_a_child_has_locks_of_its_own(files: PayloadFiles, directory: Path) -> None:
    files.write("q-1-1", [content(1)])
    assert read(files, "q-1-1") == content(1)  # its mapping is kept
    first = inode(directory / "q-1-1")
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with exiting():
            (view,) = files.map("q-1-1", [SIZE])
            os.write(ready_write, b"x")
            os.read(go_read, 1)
            assert bytes(view) == content(1)
    assert os.read(ready_read, 1) == b"x"
    assert read(files, "q-1-1") == content(1)
    files.drop("q-1-1")
    files.write("q-2-1", [content(2)])
    assert inode(directory / "q-2-1") != first
    os.write(go_write, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    for fd in (ready_read, ready_write, go_read, go_write):
        os.close(fd)


def test_a_lock_that_another_process_tries_in_passing_stops_no_reader(
    files: PayloadFiles, join: "Callable[[], Peer]", directory: Path
) -> None:
    """As one that wanted the spare which the file was before, and was stopped with the lock."""
    peer = join()
    files.write("q-1-1", [content(1)])
    path = str(directory / "q-1-1")
    peer.ask(f"import fcntl; fd = os.open({path!r}, os.O_RDWR); fcntl.flock(fd, fcntl.LOCK_EX)")
    peer.stop()
    (view,) = files.map("q-1-1", [SIZE])
    assert bytes(view) == content(1)
    view[0] = 0
    assert Path(path).read_bytes()[:SIZE] == content(1)
    peer.go_on()
    peer.ask("os.close(fd)")


LEAVES = """
import sys, pathlib
from taskiq_supervise.ipc.files import PayloadFiles
files = PayloadFiles(pathlib.Path(sys.argv[1]))
files.write("q-1-1", [b"x" * 9999])
view, = files.map("q-1-1", [9999])
kept, = files.map("q-1-1", [9999])
del kept
sys.modules["keep"] = cycle = [view]; cycle.append(cycle)
"""


def test_leaving_with_memory_mapped_is_silent(directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-Xdev", "-c", LEAVES, directory],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- death and standstill at every line


@contextmanager
def exiting() -> Iterator[None]:
    """The rest of a forked child's life."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


TRACED = {module.__file__ for module in (files_module, mappings_module, spares_module)}


def at_line(number: int, act: Callable[[], object]) -> None:
    """Calls `act` before the line of the payload files' code that is executed as number such."""
    left = number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                act()
        return trace

    sys.settrace(trace)


def life(files: PayloadFiles) -> None:
    """Everything that can be done with files; with a new one, with a spare, with none free."""
    files.write("q-1-1", [content(11)])
    (first,) = files.map("q-1-1", [SIZE])
    files.drop("q-1-1")
    files.write("q-1-2", [content(12)])
    assert bytes(first) == content(11)
    del first
    files.write("q-1-3", [content(13)])
    files.rename("q-1-3", "q-1-4")
    assert read(files, "q-1-2") == content(12)
    assert read(files, "q-1-4") == content(13)
    files.drop("q-1-2")
    files.drop("q-1-4")
    files.write("q-1-5", [content(15)])
    assert read(files, "q-1-5") == content(15)
    files.trim(0)
    files.drop("q-1-5")


CONTENT_OF = {"q-1-1": 11, "q-1-2": 12, "q-1-3": 13, "q-1-4": 13, "q-1-5": 15}


def fork_life(files: PayloadFiles, line: int, number: int) -> int:
    pid = os.fork()
    if pid == 0:
        with exiting():
            at_line(line, lambda: os.kill(os.getpid(), number))
            life(files)
    return pid


EVERY = pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.stress)])


@EVERY
@pytest.mark.parametrize("with_spares", [False, True])
def test_killed_at_any_line_it_leaves_nothing_wrong_and_nothing_for_good(
    make_files: Callable[[], PayloadFiles], directory: Path, with_spares: bool, stride: int
) -> None:
    files = make_files()
    line, died = 0, True
    while died:
        line += stride
        if with_spares:
            for number in range(3):
                files.write(f"q-9-{number}", [content(9)])
            assert files.sweep(lambda name: False) == 3
        _, status = os.waitpid(fork_life(make_files(), line, signal.SIGKILL), 0)
        died = os.WIFSIGNALED(status)
        assert died or status == 0
        for name in files.names():
            assert read(files, name) == content(CONTENT_OF[name]), f"line {line}: incomplete"
        files.sweep(lambda name: False)
        assert files.names() == []
        files.write("q-8-1", [content(8)])
        assert read(files, "q-8-1") == content(8)
        files.drop("q-8-1")
        assert len(spares(directory)) <= 8
        files.trim(seconds=-1)
        assert spares(directory) == [], f"line {line}: left for good"
    assert line > 200


@EVERY
def test_stopped_at_any_line_it_stops_nobody_and_goes_on_unharmed(
    make_files: Callable[[], PayloadFiles], directory: Path, stride: int
) -> None:
    files = make_files()
    line, stopped = 0, True
    while stopped:
        line += stride
        pid = fork_life(make_files(), line, signal.SIGSTOP)
        _, status = os.waitpid(pid, os.WUNTRACED)
        stopped = os.WIFSTOPPED(status)
        if stopped:
            assert files.sweep(lambda name: name in CONTENT_OF) == 0
            for number in range(3):
                files.write(f"q-8-{number}", [content(number)])
            for name in set(files.names()) & set(CONTENT_OF):
                assert read(files, name) == content(CONTENT_OF[name])
            for number in range(3):
                assert read(files, f"q-8-{number}") == content(number)
                files.drop(f"q-8-{number}")
            if line // stride % 2:
                files.trim(0)
            os.kill(pid, signal.SIGCONT)
            _, status = os.waitpid(pid, 0)
        assert status == 0, f"line {line}"
        assert files.names() == []
        files.trim(seconds=-1)
        assert spares(directory) == []
    assert line > 200


def test_writers_that_want_the_same_spare_never_share_it(
    files: PayloadFiles, join: "Callable[[], Peer]", directory: Path
) -> None:
    peers = [join() for _ in range(3)]
    asked = [
        peer.begin(
            f"for turn in range(300):\n"
            f"    name = 'q-{index}-%d' % turn\n"
            f"    mark = bytes([turn % 80 + 80 * {index}]) * {SIZE}\n"
            f"    files.write(name, [mark])\n"
            f"    view, = files.map(name, [{SIZE}])\n"
            f"    files.drop(name)\n"
            f"    assert view == mark\n"
            f"    view = None\n"
            f"    turn % 50 or files.trim(0)\n"
            "turn"
        )
        for index, peer in enumerate(peers)
    ]
    assert [peer.answer(number) for peer, number in zip(peers, asked, strict=True)] == [299] * 3
    assert files.names() == []
    assert len(spares(directory)) <= 9


def test_threads_do_not_get_in_each_others_way(files: PayloadFiles) -> None:
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            for turn in range(150):
                name, mark = f"q-{index}-{turn}", content(turn + 40 * index)
                files.write(name, [mark])
                (view,) = files.map(name, [SIZE])
                files.drop(name)
                if turn % 3 == 0:
                    assert view[0] == mark[0]
                    view[0] = 0
                    view[0] = mark[0]
                assert view == mark
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- no room


FULL_TMPFS = """
import ctypes, os, sys
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
    sys.exit(77)
if libc.mount(b"tmpfs", sys.argv[1].encode(), b"tmpfs", 0, b"size=4m,mode=700"):
    sys.exit(77)
from taskiq_supervise.ipc.errors import FilesFull
from taskiq_supervise.ipc.files import PayloadFiles
top = Path(sys.argv[1])
files = PayloadFiles(top / "files")
def room():
    found = os.statvfs(top)
    return found.f_bfree * found.f_frsize
files.write("q-0-1", [b"x"])  # the folders are there
files.trim(0)
before = room()
for number in range(3):
    files.write(f"q-1-{number}", [b"a" * 1_000_000])
left = room()
try:
    files.write("q-2-1", [b"b" * 2_000_000])
except FilesFull as error:
    print(error)
else:
    sys.exit("it fitted")
assert room() == left, "something was left behind"
assert sorted(files.names()) == ["q-0-1", "q-1-0", "q-1-1", "q-1-2"]
files.drop("q-1-0")
assert room() == left, "the spare should be kept: a quarter of the file system is allowed"
files.write("q-2-2", [b"c" * 1_300_000])  # the spare is too small; its room is what is needed
assert bytes(files.map("q-2-2", [1_300_000])[0]) == b"c" * 1_300_000
files.sweep(lambda name: name == "q-0-1")
files.trim(0)
assert room() == before
"""


def test_a_full_tmpfs_is_an_error_and_spares_are_given_up_before(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_TMPFS, tmp_path], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("no right to mount a file system")
    assert done.returncode == 0, done.stderr
    assert "no room for a payload of 2.0 MB" in done.stdout
    assert "No space left on device" in done.stdout


def test_a_limit_on_file_sizes_is_an_error(files: PayloadFiles, directory: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(FilesFull, match="File too large") as raised:
            files.write("q-1-1", [bytes(200_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(raised.value, QueueFull)
    assert files.names() == []
    assert spares(directory) == []


# --- what should not be there


def test_a_missing_or_damaged_file_is_an_error(files: PayloadFiles, directory: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.map("q-1-1", [1])
    with pytest.raises(FileNotFoundError):
        files.rename("q-1-1", "q-1-2")
    files.drop("q-1-1")
    files.write("q-1-1", [content(1)])
    assert read(files, "q-1-1") == content(1)  # a mapping is kept now
    with pytest.raises(SegmentError, match="has 53248 bytes, 60000 are needed"):
        files.map("q-1-1", [60_000])
    with pytest.raises(SegmentError, match="are needed"):
        files.map("q-1-1", [53_248, 1])
    with pytest.raises(ValueError, match="must not be negative"):
        files.map("q-1-1", [-1])
    os.truncate(directory / "q-1-1", 5000)
    with pytest.raises(SegmentError, match="has 5000 bytes, 50000 are needed: damaged"):
        files.map("q-1-1", [SIZE])
    assert read(files, "q-1-1", 4000) == content(1, 4000)
    os.truncate(directory / "q-1-1", 70_000)  # longer than the mapping that is kept
    assert read(files, "q-1-1", 60_000) == content(1, 5000) + bytes(55_000)
    os.truncate(directory / "q-1-1", 0)
    with pytest.raises(SegmentError, match="has 0 bytes"):
        files.map("q-1-1", [0])


def test_what_is_not_a_payload_file_is_neither_followed_nor_touched(
    files: PayloadFiles, directory: Path, folder: Path
) -> None:
    files.write("q-1-1", [content(1)])
    (folder / "secret").write_bytes(b"s" * SIZE)
    (directory / "q-2-1").symlink_to(folder / "secret")
    (directory / "q-3-1").mkdir()
    os.mkfifo(directory / "q-4-1")
    for name in ("README", "q-x-1", "q-1-1.bak", "Q-1-1", ".q-1-1"):
        (directory / name).write_bytes(b"foreign")
    (directory / "spares" / "spare-50000-ab").symlink_to(folder / "secret")
    os.mkfifo(directory / "spares" / "spare-50000-cd")
    (directory / "spares" / "spare-50000-ef").mkdir()
    (directory / "spares" / "notes").write_bytes(b"foreign")
    for number in range(2, 5):
        with pytest.raises(SegmentError, match="is not a file"):
            files.map(f"q-{number}-1", [1])
        files.drop(f"q-{number}-1")
    assert files.names() == ["q-1-1"]
    files.write("q-5-1", [content(5)])
    there = {path.name for path in directory.rglob("*")}
    assert files.sweep(lambda name: name == "q-5-1") == 1
    files.trim(0, -1)
    assert {path.name for path in directory.rglob("*")} == there - {"q-1-1"}
    assert (folder / "secret").read_bytes() == b"s" * SIZE
    assert read(files, "q-5-1") == content(5)


@pytest.mark.parametrize(
    "name", ["", "../q-1-1", "q", "spares", "spare-1-1x", "q-1-1\n", "q-1-/1", "1-1"]
)
def test_only_names_of_payload_files_are_accepted(files: PayloadFiles, name: str) -> None:
    for use in (
        lambda: files.write(name, [b"x"]),
        lambda: files.map(name, [1]),
        lambda: files.drop(name),
        lambda: files.rename("q-1-1", name),
    ):
        with pytest.raises(QueueError, match="payload file name"):
            use()


def test_a_folder_that_cannot_be_used_is_an_error(folder: Path) -> None:
    (folder / "files").write_bytes(b"")
    with pytest.raises(SegmentError, match="is not a folder"):
        PayloadFiles(folder / "files").write("q-1-1", [b"x"])
    with pytest.raises(SegmentError, match="cannot write payload file"):
        PayloadFiles(folder / "missing" / "files").write("q-1-1", [b"x"])


def test_without_a_folder_there_is_nothing_and_none_is_made(
    files: PayloadFiles, directory: Path
) -> None:
    assert files.names() == []
    assert files.total_bytes() == 0
    assert files.sweep(lambda name: True) == 0
    files.drop("q-1-1")
    files.trim()
    assert not directory.exists()
    files.write("q-1-1", [content(1)])
    files.rename("q-1-1", "r-1-1-1")
    assert files.names() == ["r-1-1-1"]
    assert files.total_bytes() == file_size(SIZE)


def test_a_failed_copy_leaves_a_spare_and_no_name(
    files: PayloadFiles, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for function in ("pwrite", "rename"):  # into a new file, and when it gets its name
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(SegmentError, match="Input/output error"):
                files.write("q-1-1", [content(1)])
        assert files.names() == []
        (spare,) = spares(directory)
        with spare.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    files.write("q-1-1", [content(1)])
    assert inode(directory / "q-1-1") not in [inode(path) for path in spares(directory)]
