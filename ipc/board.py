"""The worker board: what each worker does right now, readable when the worker is not.

One file per instance. Each worker process writes its own section and nobody else's; the
supervisor and `status` read. A section's counters are one aligned 8-byte word each, stored and
loaded in one piece through a memoryview (struct.pack_into clears its room first, and writes byte by
byte). An in-flight entry is a row of bytes with a checksum, so a reader that meets a write, or what
a killed writer left half written, takes another look and then leaves the entry out. Times are
CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

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
_HEADER = struct.Struct("<8sIIII")  # magic, version, workers, tasks per worker, section bytes
_PID, _GENERATION, _IN_FLIGHT, _HEARTBEAT, _DONE, _FAILED = range(6)  # words of a section's head
_CHECKSUM = struct.Struct("<I")  # of the rest of the entry
_ENTRY = struct.Struct("<IdHH")  # attempt (0: free), started, bytes of id, bytes of name
_VERSION = 2
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
        self._bytes = memoryview(memory)
        self._words = self._bytes.cast("Q")
        self._times = self._bytes.cast("d")
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
        return BoardWriter(
            self._bytes, self._words, self._times, self._start(slot), self.tasks_per_worker
        )

    def read(self, slot: int) -> WorkerView:
        start = self._start(slot)
        word = start // _WORD
        pid, generation, in_flight = self._words[word + _PID : word + _IN_FLIGHT + 1]
        done, failed = self._words[word + _DONE], self._words[word + _FAILED]
        running: list[RunningTask] = []
        for index in range(self.tasks_per_worker):
            if len(running) == in_flight:
                break
            task = self._read_entry(start + _HEAD_SIZE + index * _ENTRY_SIZE)
            if task is not None:
                running.append(task)
        heartbeat = self._times[word + _HEARTBEAT]
        return WorkerView(pid, generation, heartbeat, done, failed, in_flight, tuple(running))

    def _read_entry(self, at: int) -> RunningTask | None:
        for _ in range(_TRIES):
            raw = bytes(self._bytes[at : at + _ENTRY_SIZE])
            attempt, started, id_len, name_len = _ENTRY.unpack_from(raw, _CHECKSUM.size)
            if not attempt:
                return None
            text = _CHECKSUM.size + _ENTRY.size
            end = text + id_len + name_len
            [checksum] = _CHECKSUM.unpack_from(raw)
            if end > len(raw) or zlib.crc32(raw[_CHECKSUM.size : end]) != checksum:
                continue
            task_id, name = raw[text : text + id_len], raw[text + id_len : end]
            return RunningTask(
                task_id.decode(errors="replace"), name.decode(errors="replace"), started, attempt
            )
        return None

    def _start(self, slot: int) -> int:
        if not 0 <= slot < self.workers:
            raise IndexError(f"worker slot {slot}: the board has {self.workers}")
        return _HEADER_SIZE + slot * self._section

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
        self.beat()
        self._set(_GENERATION, generation)
        self._set(_PID, pid)

    def begin(self, task_id: str, task_name: str, attempt: int) -> int:
        """A task starts. Returns what end() wants; -1 when the table is full, which end() takes
        too."""
        self._in_flight += 1
        index = self._free.pop() if self._free else -1
        if index >= 0:
            raw_id, raw_name = task_id.encode()[:_ID_ROOM], task_name.encode()[:_NAME_ROOM]
            self._write_entry(index, max(attempt, 1), time.monotonic(), raw_id, raw_name)
        self._set(_IN_FLIGHT, self._in_flight)
        return index

    def end(self, entry: int, *, failed: bool) -> None:
        if entry >= 0:
            self._clear_entry(entry)
            self._free.append(entry)
        self._in_flight -= 1
        self._done += not failed
        self._failed += failed
        self._set(_IN_FLIGHT, self._in_flight)
        self._set(_FAILED if failed else _DONE, self._failed if failed else self._done)

    def beat(self) -> None:
        """The event loop turns."""
        self._times[self._head + _HEARTBEAT] = time.monotonic()

    def _set(self, field: int, value: int) -> None:
        self._words[self._head + field] = value

    def _write_entry(
        self, index: int, attempt: int, started: float, task_id: bytes, name: bytes
    ) -> None:
        body = _ENTRY.pack(attempt, started, len(task_id), len(name)) + task_id + name
        whole = _CHECKSUM.pack(zlib.crc32(body)) + body
        at = self._entries + index * _ENTRY_SIZE
        self._memory[at : at + len(whole)] = whole

    def _clear_entry(self, index: int) -> None:
        # The first word holds checksum and attempt.
        self._words[(self._entries + index * _ENTRY_SIZE) // _WORD] = 0
