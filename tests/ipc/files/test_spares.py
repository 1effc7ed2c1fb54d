"""Payload files that are not needed any more: written again, and bounded."""

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.ipc.files.conftest import SIZE, content, inode, mapped, read, spares

from taskiq_supervise.ipc.files import PayloadFiles
from taskiq_supervise.ipc.spares import SPARE_COUNT, file_size

if TYPE_CHECKING:
    from tests.ipc.conftest import Peer


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
