"""Payload files are not written again while anything looks at them."""

import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.ipc.files.conftest import SIZE, content, exiting, inode, mapped, read, spares

from taskiq_supervise.ipc import files as files_module
from taskiq_supervise.ipc import mappings as mappings_module
from taskiq_supervise.ipc.files import PayloadFiles
from taskiq_supervise.ipc.mappings import KEPT_COUNT
from taskiq_supervise.ipc.spares import try_lock

if TYPE_CHECKING:
    from tests.ipc.conftest import Peer


@pytest.fixture
def reader(files: PayloadFiles, join: "Callable[[], Peer]") -> "Peer":
    """A process that looks at q-1-1, which is content(1)."""
    peer = join()
    files.write("q-1-1", [content(1)])
    peer.ask(f"view, = files.map('q-1-1', [{SIZE}]); len(view)")
    return peer


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
    files: PayloadFiles, reader: "Peer", directory: Path
) -> None:
    first = inode(directory / "q-1-1")
    reader.stop()
    files.drop("q-1-1")
    for number in range(3):
        files.write("q-2-1", [content(2)])
        assert inode(directory / "q-2-1") != first
        files.drop("q-2-1")
        files.trim(0 if number else 1 << 30)
    reader.go_on()
    assert reader.ask(f"bytes(view) == bytes([{content(1)[0]}]) * {SIZE}") is True
    assert first in map(inode, spares(directory))
    reader.ask("del view")
    files.write("q-3-1", [content(3)])
    assert inode(directory / "q-3-1") == first


def test_the_death_of_a_reader_frees_the_file(
    files: PayloadFiles, reader: "Peer", directory: Path
) -> None:
    first = inode(directory / "q-1-1")
    files.drop("q-1-1")
    reader.kill()
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
