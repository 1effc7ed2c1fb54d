"""The worker board: what each worker does right now, readable when the worker is not.

One file per instance. Each worker process writes its own section and nobody else's; the
supervisor and `status` read. A section's counters and each in-flight entry have a sequence number
that is odd while they are being written, so a reader that meets a write, or what a killed writer
left half written, takes another look and then leaves the entry out. Times are CLOCK_MONOTONIC,
which all processes share.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

_MAGIC = b"TSQBOARD"
_HEADER = struct.Struct("<8sIIII")  # magic, version, workers, tasks per worker, section bytes
_HEAD = struct.Struct("<IIIIdQQ")  # sequence, pid, generation, in flight, heartbeat, done, failed
_ENTRY = struct.Struct("<IIdHH")  # sequence, attempt, started, bytes of id, bytes of name
_SEQUENCE = struct.Struct("<I")
_VERSION = 1
_HEADER_SIZE = 64
_HEAD_SIZE = 64
_ID_ROOM, _NAME_ROOM = 200, 128
_ENTRY_SIZE = _ENTRY.size + _ID_ROOM + _NAME_ROOM
_TRIES = 3


class BoardError(Exception):
    """The file is not a board of this version."""


@dataclass(frozen=True, slots=True)
class RunningTask:
    """One task in flight. started: monotonic seconds. attempt: 1 for the first start."""

    task_id: str
    task_name: str
    started: float
    attempt: int


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What one worker's section says. heartbeat: monotonic seconds of its loop's last beat."""

    pid: int
    generation: int
    heartbeat: float
    done: int
    failed: int
    in_flight: int
    running: tuple[RunningTask, ...]


class Board:
    """A mapped board. Made by create() or open(); to be closed."""

    def __init__(self, memory: mmap.mmap, workers: int, tasks_per_worker: int) -> None:
        self._memory = memory
        self.workers = workers
        self.tasks_per_worker = tasks_per_worker
        self._section = _HEAD_SIZE + tasks_per_worker * _ENTRY_SIZE

    @classmethod
    def create(cls, path: str | os.PathLike[str], workers: int, tasks_per_worker: int) -> Self:
        """Make the file, its memory allocated. OSError: no room."""
        section = _HEAD_SIZE + tasks_per_worker * _ENTRY_SIZE
        fd = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            size = _HEADER_SIZE + workers * section
            os.posix_fallocate(fd, 0, size)
            memory = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        _HEADER.pack_into(memory, 0, _MAGIC, _VERSION, workers, tasks_per_worker, section)
        return cls(memory, workers, tasks_per_worker)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Map an existing board. BoardError: it is not one."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size = os.fstat(fd).st_size
            if size < _HEADER_SIZE:
                raise BoardError(f"{os.fspath(path)}: {size} bytes are no board")
            memory = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        magic, version, workers, tasks, section = _HEADER.unpack_from(memory, 0)
        expected = _HEAD_SIZE + tasks * _ENTRY_SIZE
        if (
            magic != _MAGIC
            or version != _VERSION
            or section != expected
            or size != _HEADER_SIZE + workers * section
        ):
            memory.close()
            raise BoardError(f"{os.fspath(path)}: not a board of this version")
        return cls(memory, workers, tasks)

    def writer(self, slot: int) -> BoardWriter:
        return BoardWriter(self._memory, self._start(slot), self.tasks_per_worker)

    def read(self, slot: int) -> WorkerView:
        start = self._start(slot)
        head = _HEAD.unpack_from(self._memory, start)
        for _ in range(_TRIES):
            if head[0] % 2 == 0 and _SEQUENCE.unpack_from(self._memory, start)[0] == head[0]:
                break
            head = _HEAD.unpack_from(self._memory, start)
        _, pid, generation, in_flight, heartbeat, done, failed = head
        running: list[RunningTask] = []
        for index in range(self.tasks_per_worker):
            if len(running) == in_flight:
                break
            task = self._read_entry(start + _HEAD_SIZE + index * _ENTRY_SIZE)
            if task is not None:
                running.append(task)
        return WorkerView(pid, generation, heartbeat, done, failed, in_flight, tuple(running))

    def _read_entry(self, at: int) -> RunningTask | None:
        for _ in range(_TRIES):
            sequence, attempt, started, id_len, name_len = _ENTRY.unpack_from(self._memory, at)
            if sequence % 2 or id_len > _ID_ROOM or name_len > _NAME_ROOM:
                continue
            if not attempt:
                return None
            text = at + _ENTRY.size
            task_id = self._memory[text : text + id_len]
            name = self._memory[text + _ID_ROOM : text + _ID_ROOM + name_len]
            if _SEQUENCE.unpack_from(self._memory, at)[0] == sequence:
                return RunningTask(
                    task_id.decode(errors="replace"),
                    name.decode(errors="replace"),
                    started,
                    attempt,
                )
        return None

    def _start(self, slot: int) -> int:
        if not 0 <= slot < self.workers:
            raise IndexError(f"worker slot {slot}: the board has {self.workers}")
        return _HEADER_SIZE + slot * self._section

    def close(self) -> None:
        self._memory.close()


class BoardWriter:
    """The section of one worker, for the one process that is this worker. Not for threads."""

    def __init__(self, memory: mmap.mmap, start: int, tasks: int) -> None:
        self._memory = memory
        self._start = start
        self._entries = start + _HEAD_SIZE
        self._free = list(range(tasks - 1, -1, -1))
        self._tasks = tasks
        self._sequence = 0
        self._pid = self._generation = self._in_flight = self._done = self._failed = 0
        self._beat = 0.0

    def reset(self, pid: int, generation: int) -> None:
        """Begin anew: whoever wrote here before is gone."""
        for index in range(self._tasks):
            self._write_entry(index, 0, 0.0, b"", b"")
        self._free = list(range(self._tasks - 1, -1, -1))
        self._pid, self._generation = pid, generation
        self._in_flight = self._done = self._failed = 0
        self._beat = time.monotonic()
        self._write_head()

    def begin(self, task_id: str, task_name: str, attempt: int) -> int:
        """A task starts. Returns what end() wants; -1 when the table is full, which end() takes
        too."""
        self._in_flight += 1
        index = self._free.pop() if self._free else -1
        if index >= 0:
            raw_id, raw_name = task_id.encode()[:_ID_ROOM], task_name.encode()[:_NAME_ROOM]
            self._write_entry(index, max(attempt, 1), time.monotonic(), raw_id, raw_name)
        self._write_head()
        return index

    def end(self, entry: int, *, failed: bool) -> None:
        if entry >= 0:
            self._write_entry(entry, 0, 0.0, b"", b"")
            self._free.append(entry)
        self._in_flight -= 1
        self._done += not failed
        self._failed += failed
        self._write_head()

    def beat(self) -> None:
        """The event loop turns."""
        self._beat = time.monotonic()
        self._write_head()

    def _write_head(self) -> None:
        self._sequence = (self._sequence + 2) & 0xFFFFFFFE
        _SEQUENCE.pack_into(self._memory, self._start, self._sequence | 1)
        _HEAD.pack_into(
            self._memory, self._start, self._sequence | 1, self._pid, self._generation,
            self._in_flight, self._beat, self._done, self._failed,
        )  # fmt: skip
        _SEQUENCE.pack_into(self._memory, self._start, self._sequence)

    def _write_entry(
        self, index: int, attempt: int, started: float, task_id: bytes, name: bytes
    ) -> None:
        at = self._entries + index * _ENTRY_SIZE
        sequence = (_SEQUENCE.unpack_from(self._memory, at)[0] | 1) & 0xFFFFFFFF
        _SEQUENCE.pack_into(self._memory, at, sequence)
        _ENTRY.pack_into(self._memory, at, sequence, attempt, started, len(task_id), len(name))
        text = at + _ENTRY.size
        self._memory[text : text + len(task_id)] = task_id
        self._memory[text + _ID_ROOM : text + _ID_ROOM + len(name)] = name
        _SEQUENCE.pack_into(self._memory, at, (sequence + 1) & 0xFFFFFFFF)
