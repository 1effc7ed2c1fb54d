"""The worker board: what a reader sees of a writer, whatever the writer does."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from tests.ipc.events import NewPeer

from taskiq_supervise.ipc import Board, RunningTask, board


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "board"


@pytest.fixture
def written(path: Path) -> Iterator[Board]:
    made = Board.create(path, 3, 4)
    yield made
    made.close()


@pytest.fixture
def read(path: Path, written: Board) -> Iterator[Board]:
    opened = Board.open(path)
    yield opened
    opened.close()


def names(board: Board, slot: int = 0) -> "list[tuple[str, str, int]]":
    return [(task.task_id, task.task_name, task.attempt) for task in board.read(slot).running]


def test_what_is_written_is_read(written: Board, read: Board) -> None:
    writer = written.writer(1)
    writer.reset(pid=4711, generation=3)
    entry = writer.begin("id", "module:task", 2)
    writer.begin("other", "module:other", 1)
    view = read.read(1)
    assert (view.pid, view.generation, view.done, view.failed, view.in_flight) == (4711, 3, 0, 0, 2)
    assert names(read, 1) == [("id", "module:task", 2), ("other", "module:other", 1)]
    assert view.heartbeat <= view.running[0].started <= view.running[1].started
    writer.end(entry, failed=False)
    writer.end(writer.begin("third", "module:task", 1), failed=True)
    view = read.read(1)
    assert (view.done, view.failed, view.in_flight) == (1, 1, 1)
    assert names(read, 1) == [("other", "module:other", 1)]
    before = view.heartbeat
    writer.beat()
    assert read.read(1).heartbeat > before


def test_sections_are_apart(written: Board, read: Board) -> None:
    writers = [written.writer(slot) for slot in range(3)]
    for slot, writer in enumerate(writers):
        writer.reset(pid=slot + 1, generation=1)
        for number in range(4):
            writer.begin(f"{slot}-{number}", "x" * 128, 1)
    for slot in range(3):
        assert [task_id for task_id, _, _ in names(read, slot)] == [f"{slot}-{n}" for n in range(4)]
    for slot in (-1, 3):
        with pytest.raises(IndexError, match="the board has 3"):
            read.read(slot)


def test_more_tasks_than_entries_are_counted(written: Board, read: Board) -> None:
    writer = written.writer(0)
    writer.reset(1, 1)
    entries = [writer.begin(str(number), "task", 1) for number in range(6)]
    assert entries[4:] == [-1, -1]
    view = read.read(0)
    assert (view.in_flight, len(view.running)) == (6, 4)
    for entry in entries:
        writer.end(entry, failed=False)
    view = read.read(0)
    assert (view.in_flight, view.done, view.running) == (0, 6, ())
    assert writer.begin("again", "task", 1) >= 0


def test_long_and_foreign_text_is_cut_and_shown(written: Board, read: Board) -> None:
    writer = written.writer(0)
    writer.reset(1, 1)
    writer.begin("ü" * 150, "任務" * 100, 1)
    [(task_id, name, _)] = names(read)
    assert task_id == "ü" * 100
    assert name.startswith("任務" * 20)
    assert len(name.encode()) <= 131  # the last character may be a replacement


def test_a_new_worker_begins_with_nothing(written: Board, read: Board) -> None:
    old = written.writer(0)
    old.reset(1, 1)
    old.begin("left behind", "task", 1)
    old.end(old.begin("done", "task", 1), failed=True)
    new = written.writer(0)
    new.reset(2, 2)
    view = read.read(0)
    assert (view.pid, view.generation, view.in_flight, view.done, view.failed) == (2, 2, 0, 0, 0)
    assert view.running == ()


@pytest.mark.parametrize("byte", [0, 5, 15, 23, 32, 37])  # checksum, attempt, times, id, name
def test_what_a_killed_writer_left_half_written_is_left_out(
    path: Path, written: Board, read: Board, byte: int
) -> None:
    writer = written.writer(0)
    writer.reset(pid=7, generation=1)
    writer.begin("whole", "task", 1)
    writer.begin("torn!!", "task", 1)
    at = board._HEADER_SIZE + board._HEAD_SIZE + board._ENTRY_SIZE + byte
    with path.open("r+b") as file:
        file.seek(at)
        [there] = file.read(1)
        file.seek(at)
        file.write(bytes([there ^ 1]))
    view = read.read(0)
    assert (view.pid, view.in_flight) == (7, 2)
    assert [task.task_id for task in view.running] == ["whole"]
    successor = written.writer(0)
    successor.reset(pid=8, generation=2)
    successor.begin("next", "task", 1)
    assert names(read) == [("next", "task", 1)]
    assert read.read(0).pid == 8


def test_readers_see_no_mixture_while_a_process_writes_and_is_killed(
    path: Path, written: Board, read: Board, new_peer: NewPeer
) -> None:
    """Id, name and attempt belong together in every entry that is shown."""
    peer = new_peer()
    peer.ask(
        f"board = Board.open({str(path)!r})\nwriter = board.writer(0)\nwriter.reset(os.getpid(), 1)"
    )
    peer.begin(
        "number = 0\n"
        "while True:\n"
        "    number = number % 999 + 1\n"
        "    entry = writer.begin(str(number), str(number) * 9, number)\n"
        "    writer.end(entry, failed=False)"
    )
    shown = 0

    def look() -> None:
        nonlocal shown
        for task in read.read(0).running:
            shown += 1
            assert task.task_id == str(task.attempt), task
            assert task.task_name == task.task_id * 9, task

    while shown < 300:
        look()
    peer.kill()
    look()
    assert read.read(0).pid == peer.pid


def test_an_empty_section_reads_as_nothing(read: Board) -> None:
    view = read.read(2)
    assert (view.pid, view.in_flight, view.running) == (0, 0, ())


def test_a_file_that_is_no_board_is_refused(tmp_path: Path, path: Path, written: Board) -> None:
    short = tmp_path / "short"
    short.write_bytes(b"TSQBOARD")
    with pytest.raises(board.BoardError, match="8 bytes are no board"):
        Board.open(short)
    whole = path.read_bytes()
    for offset in range(24):  # magic, version, workers, tasks, bytes of a section
        other = tmp_path / "other"
        other.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x5A]) + whole[offset + 1 :])
        with pytest.raises(board.BoardError, match="not a board of this version"):
            Board.open(other)
    os.truncate(path, len(whole) - 1)
    with pytest.raises(board.BoardError, match="not a board of this version"):
        Board.open(path)


def test_a_task_may_have_a_deadline(written: Board, read: Board) -> None:
    writer = written.writer(0)
    writer.reset(1, 1)
    writer.begin("limited", "task", 1, 1234.5)
    writer.begin("unlimited", "task", 1)
    assert [task.deadline for task in read.read(0).running] == [1234.5, None]


def test_a_deadline_may_come_after_the_start(written: Board, read: Board) -> None:
    writer = written.writer(0)
    writer.reset(1, 1)
    entries = [writer.begin(str(number), "module:task", number + 1) for number in range(5)]
    before = read.read(0).running
    writer.set_deadline(entries[2], 77.5)
    writer.set_deadline(entries[4], 88.5)  # the table was full
    expected = [*before[:2], replace(before[2], deadline=77.5), before[3]]
    assert list(read.read(0).running) == expected


def test_a_board_grows_under_those_who_use_it(path: Path, written: Board, read: Board) -> None:
    """Writers made before go on, readers that mapped it before see them, newcomers see it all."""
    early = written.writer(2)
    early.reset(pid=30, generation=1)
    written.grow(9)
    assert (written.seats, read.seats) == (9, 3)
    early.begin("early", "task", 1)
    late = written.writer(8)
    late.reset(pid=90, generation=1)
    late.begin("late", "task", 1)
    grown = Board.open(path)
    for one in (written, grown):
        assert (one.seats, one.tasks_per_seat) == (9, 4)
        assert names(one, 2) == [("early", "task", 1)]
        assert names(one, 8) == [("late", "task", 1)]
        assert one.read(7).pid == 0
    assert names(read, 2) == [("early", "task", 1)]
    with pytest.raises(IndexError, match="the board has 3"):
        read.read(8)
    grown.close()
    written.grow(5)
    assert (written.seats, names(written, 8)) == (9, [("late", "task", 1)])


def test_a_board_that_cannot_grow_stays_as_it_was(path: Path, written: Board) -> None:
    written.writer(0).reset(pid=5, generation=1)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        written.grow(4)
    assert (written.seats, written.read(0).pid) == (3, 5)


def test_a_board_that_is_just_growing_can_be_opened(path: Path, written: Board) -> None:
    written.writer(2).reset(pid=5, generation=1)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size * 2)
    with_room = Board.open(path)
    assert (with_room.seats, with_room.read(2).pid) == (3, 5)
    with_room.close()


def test_old_mappings_do_not_pile_up(written: Board) -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text(encoding="utf-8").count("/board")

    before = mappings()
    for seats in range(4, 20):
        written.grow(seats)
    assert mappings() == before


def test_an_entry_is_a_value(written: Board) -> None:
    one, other = RunningTask("id", "name", 1.0, 1), RunningTask("id", "name", 1.0, 1)
    assert one == other
    with pytest.raises(AttributeError):
        one.attempt = 2  # type: ignore[misc]


def test_a_task_that_stays_is_seen_whatever_begins_and_ends_beside_it(tmp_path: Path) -> None:
    """By another process, at any moment: what is not seen is not ended when its time is over."""
    with closing(Board.create(tmp_path / "board", 1, 8)) as board:
        writer = board.writer(0)
        writer.reset(os.getpid(), 1)
        others = [writer.begin(f"t{number}", "app:short", 1) for number in range(3)]
        writer.begin("stays", "app:long", 1)
        for entry in others:
            writer.end(entry, failed=False)
        pid = os.fork()
        if pid == 0:
            while True:
                writer.end(writer.begin("short", "app:short", 1), failed=False)
        try:
            for _ in range(3000):
                assert "stays" in [task.task_id for task in board.read(0).running]
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
