"""Payload files: what is written is what is read."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.ipc.files.conftest import SIZE, content, read

from taskiq_supervise.ipc.files import PayloadFiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.ipc.conftest import Peer


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
