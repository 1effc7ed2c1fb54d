"""Payload files that are missing or damaged, and what else lies in the folder."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from tests.ipc.files.conftest import SIZE, content, inode, read, spares

from taskiq_supervise.ipc.errors import QueueError, SegmentError
from taskiq_supervise.ipc.files import PayloadFiles
from taskiq_supervise.ipc.spares import file_size


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
