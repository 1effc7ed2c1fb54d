"""The worker board: what each worker does right now, readable when the worker is not.

One file per instance. Each worker process writes its own section, its seat, and nobody else's; the
supervisor and `status` read. The file can grow while it is used: who mapped it before goes on with
what it mapped. A section's counters are one aligned 8-byte word each, stored and
loaded in one piece through a memoryview (struct.pack_into clears its room first, and writes byte by
byte). An in-flight entry is a row of bytes with a checksum, so a reader that meets a write, or what
a killed writer left half written, takes another look and then leaves the entry out. Times are
CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

_MAGIC = b"TSQBOARD"
_HEADER = struct.Struct("<8sIIII")  # magic, version, seats, tasks per seat, bytes of a section
_SEATS = 3  # its place in the header, in units of 4 bytes
# words of a section's head
_PID, _GENERATION, _IN_FLIGHT, _HEARTBEAT, _DONE, _FAILED, _RECEIVED = range(7)
_CHECKSUM = struct.Struct("<I")  # of the rest of the entry
# attempt (0: free), started, deadline (infinite: none), bytes of id, bytes of name
_ENTRY = struct.Struct("<IddHH")
_VERSION = 3
_WORD = 8
_HEADER_SIZE = 64
_HEAD_SIZE = 64
_ID_ROOM, _NAME_ROOM = 200, 128
_ENTRY_SIZE = (_CHECKSUM.size + _ENTRY.size + _ID_ROOM + _NAME_ROOM + _WORD - 1) // _WORD * _WORD
_TRIES = 3


class BoardError(Exception):
    """The file is not a board of this version."""


@dataclass(frozen=True, slots=True)
class RunningTask:
    """One task in flight.

    Attributes:
        started: monotonic seconds.
        attempt: 1 for the first start.
        deadline: monotonic seconds when it has to be over, None: it may take its time.
    """

    task_id: str
    task_name: str
    started: float
    attempt: int
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What one worker's section says.

    Attributes:
        heartbeat: monotonic seconds of its loop's last beat.
        received: messages that it has put into the queue; a listener's, which runs no tasks.
    """

    pid: int
    generation: int
    heartbeat: float
    done: int
    failed: int
    in_flight: int
    running: tuple[RunningTask, ...]
    received: int = 0


class Board:
    """A mapped board. Made by create() or open(); to be closed.

    Attributes:
        seats: how many workers can have a section at a time, as far as this process has mapped it.
        tasks_per_seat: entries of tasks in flight in each.
    """

    def __init__(
        self, path: str | os.PathLike[str], memory: mmap.mmap, seats: int, tasks_per_seat: int
    ) -> None:
        self._path = path
        self._section = _section(tasks_per_seat)
        self.tasks_per_seat = tasks_per_seat
        self._use(memory, seats)

    def _use(self, memory: mmap.mmap, seats: int) -> None:
        self._memory = memory
        self._bytes = memoryview(memory)
        self._words = self._bytes.cast("Q")
        self._times = self._bytes.cast("d")
        self.seats = seats

    @classmethod
    def create(cls, path: str | os.PathLike[str], seats: int, tasks_per_seat: int) -> Self:
        """Make the file, its memory allocated. OSError: no room."""
        section = _section(tasks_per_seat)
        fd = _open_file(path, os.O_CREAT | os.O_TRUNC)
        try:
            memory = _allocated(fd, _HEADER_SIZE + seats * section)
        finally:
            os.close(fd)
        _HEADER.pack_into(memory, 0, _MAGIC, _VERSION, seats, tasks_per_seat, section)
        return cls(path, memory, seats, tasks_per_seat)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Map an existing board. BoardError: it is not one."""
        fd = _open_file(path)
        try:
            while True:
                size = os.fstat(fd).st_size
                if size < _HEADER_SIZE:
                    raise BoardError(f"{os.fspath(path)}: {size} bytes are no board")
                memory = mmap.mmap(fd, size)
                magic, version, seats, tasks, section = _HEADER.unpack_from(memory, 0)
                known = magic == _MAGIC and version == _VERSION and section == _section(tasks)
                # More than that: it is just being made larger.
                if known and size >= _HEADER_SIZE + seats * section:
                    return cls(path, memory, seats, tasks)
                memory.close()
                if not known or size == os.fstat(fd).st_size:
                    raise BoardError(f"{os.fspath(path)}: not a board of this version")
        finally:
            os.close(fd)

    def grow(self, seats: int) -> None:
        """Have so many seats at least; for the one process that created the board.

        What is written and read goes on meanwhile, and writers made before stay good.
        OSError: no room (the board stays as it was), or the file is not there any more.
        """
        if seats <= self.seats:
            return
        fd = _open_file(self._path)
        try:
            memory = _allocated(fd, _HEADER_SIZE + seats * self._section)
        finally:
            os.close(fd)
        # The old mapping goes with the last writer that uses it.
        self._use(memory, seats)
        # Last, in one piece: who reads a number finds that many seats in the file.
        with self._bytes.cast("I") as header:
            header[_SEATS] = seats

    def writer(self, seat: int) -> BoardWriter:
        return BoardWriter(
            self._bytes, self._words, self._times, self._start(seat), self.tasks_per_seat
        )

    def read(self, seat: int) -> WorkerView:
        start = self._start(seat)
        word = start // _WORD
        pid, generation, in_flight = self._words[word + _PID : word + _IN_FLIGHT + 1]
        done, failed = self._words[word + _DONE], self._words[word + _FAILED]
        # All of them: while one ends and another begins, the count says nothing about places.
        running: list[RunningTask] = []
        for index in range(self.tasks_per_seat):
            task = self._read_entry(start + _HEAD_SIZE + index * _ENTRY_SIZE)
            if task is not None:
                running.append(task)
        heartbeat, received = self._times[word + _HEARTBEAT], self._words[word + _RECEIVED]
        return WorkerView(
            pid, generation, heartbeat, done, failed, in_flight, tuple(running), received
        )

    def _read_entry(self, at: int) -> RunningTask | None:
        if not self._words[at // _WORD]:  # checksum and attempt: free
            return None
        for _ in range(_TRIES):
            raw = bytes(self._bytes[at : at + _ENTRY_SIZE])
            attempt, started, deadline, id_len, name_len = _ENTRY.unpack_from(raw, _CHECKSUM.size)
            if not attempt:
                return None
            text = _CHECKSUM.size + _ENTRY.size
            end = text + id_len + name_len
            [checksum] = _CHECKSUM.unpack_from(raw)
            if end > len(raw) or zlib.crc32(raw[_CHECKSUM.size : end]) != checksum:
                continue
            task_id, name = raw[text : text + id_len], raw[text + id_len : end]
            return RunningTask(
                task_id.decode(errors="replace"),
                name.decode(errors="replace"),
                started,
                attempt,
                None if deadline == math.inf else deadline,
            )
        return None

    def _start(self, seat: int) -> int:
        if not 0 <= seat < self.seats:
            raise IndexError(f"seat {seat}: the board has {self.seats}")
        return _HEADER_SIZE + seat * self._section

    def close(self) -> None:
        for view in (self._words, self._times, self._bytes):
            view.release()
        self._memory.close()


class BoardWriter:
    """The section of one worker, for the one process that is this worker. Not for threads."""

    def __init__(
        self,
        memory: memoryview,
        words: memoryview[int],
        times: memoryview[float],
        start: int,
        tasks: int,
    ) -> None:
        self._memory = memory
        self._words = words
        self._times = times
        self._head = start // _WORD
        self._entries = start + _HEAD_SIZE
        self._free = list(range(tasks - 1, -1, -1))
        self._tasks = tasks
        self._in_flight = self._done = self._failed = 0

    def reset(self, pid: int, generation: int) -> None:
        """Begin anew: whoever wrote here before is gone."""
        for index in range(self._tasks):
            self._clear_entry(index)
        self._free = list(range(self._tasks - 1, -1, -1))
        self._in_flight = self._done = self._failed = 0
        self._set(_IN_FLIGHT, 0)
        self._set(_DONE, 0)
        self._set(_FAILED, 0)
        self._set(_RECEIVED, 0)
        self.beat()
        self._set(_GENERATION, generation)
        self._set(_PID, pid)

    def begin(
        self, task_id: str, task_name: str, attempt: int, deadline: float | None = None
    ) -> int:
        """A task starts. deadline: monotonic seconds. Returns what end() wants; -1 when the table
        is full, which end() takes too."""
        self._in_flight += 1
        index = self._free.pop() if self._free else -1
        if index >= 0:
            raw_id, raw_name = task_id.encode()[:_ID_ROOM], task_name.encode()[:_NAME_ROOM]
            end = math.inf if deadline is None else deadline
            self._write_entry(index, max(attempt, 1), time.monotonic(), end, raw_id, raw_name)
        self._set(_IN_FLIGHT, self._in_flight)
        return index

    def set_deadline(self, entry: int, deadline: float) -> None:
        """The running task has until then (monotonic seconds). Also from its own thread."""
        if entry < 0:
            return
        at = self._entries + entry * _ENTRY_SIZE
        row = bytes(self._memory[at : at + _ENTRY_SIZE])
        attempt, started, _, id_len, name_len = _ENTRY.unpack_from(row, _CHECKSUM.size)
        text = _CHECKSUM.size + _ENTRY.size
        task_id, name = row[text : text + id_len], row[text + id_len : text + id_len + name_len]
        self._write_entry(entry, attempt, started, deadline, task_id, name)

    def end(self, entry: int, *, failed: bool) -> None:
        if entry >= 0:
            self._clear_entry(entry)
            self._free.append(entry)
        self._in_flight -= 1
        self._done += not failed
        self._failed += failed
        self._set(_IN_FLIGHT, self._in_flight)
        self._set(_FAILED if failed else _DONE, self._failed if failed else self._done)

    def say_received(self, messages: int) -> None:
        """So many messages were put into the queue."""
        self._set(_RECEIVED, messages)

    def beat(self) -> None:
        """The event loop turns."""
        self._times[self._head + _HEARTBEAT] = time.monotonic()

    def _set(self, field: int, value: int) -> None:
        self._words[self._head + field] = value

    def _write_entry(
        self,
        index: int,
        attempt: int,
        started: float,
        deadline: float,
        task_id: bytes,
        name: bytes,
    ) -> None:
        body = _ENTRY.pack(attempt, started, deadline, len(task_id), len(name)) + task_id + name
        whole = _CHECKSUM.pack(zlib.crc32(body)) + body
        at = self._entries + index * _ENTRY_SIZE
        self._memory[at : at + len(whole)] = whole

    def _clear_entry(self, index: int) -> None:
        # The first word holds checksum and attempt.
        self._words[(self._entries + index * _ENTRY_SIZE) // _WORD] = 0


def _section(tasks: int) -> int:
    return _HEAD_SIZE + tasks * _ENTRY_SIZE


def _open_file(path: str | os.PathLike[str], flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)


def _allocated(fd: int, size: int) -> mmap.mmap:
    os.posix_fallocate(fd, 0, size)
    return mmap.mmap(fd, size)
