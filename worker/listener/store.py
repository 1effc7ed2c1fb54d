"""What `--transport zmq` has instead of a segment: messages and results in an SQLite file.

It is a log of what the ledger knows, not a queue: who is next is decided in memory, and read from
here only when a listener starts. One transaction holds everything that happened in one turn of the
event loop, a message and the number of its sender included.

Nobody but the listener opens the file: it is locked for as long as the listener lives, so SQLite
needs no memory that is shared. What is committed is the kernel's, and survives SIGKILL. The disk is
waited for at checkpoints only: after a loss of power the file is in order, and the last moments may
be missing.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from taskiq_supervise.ipc import FilesFull, PayloadTooLarge, SegmentError

if TYPE_CHECKING:
    from typing_extensions import Buffer

FILE: Final = "store"
VERSION: Final = 1
MESSAGE, RESULT = 0, 1
"""Whose bytes."""

_APPLICATION = 0x74735153  # "tsQS"
_CHECKPOINT = 4_000
"""Pages. Each waits for the disk, where there is one: not too often."""
_CACHE = -16 * 1024  # KiB

_SCHEMA = """
CREATE TABLE message (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    priority INTEGER NOT NULL,
    due REAL,
    expires REAL,
    max_deliveries INTEGER NOT NULL,
    created REAL NOT NULL,
    state INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    worker TEXT,
    kind INTEGER,
    ended REAL,
    reason INTEGER,
    detail TEXT NOT NULL,
    cause INTEGER,
    size INTEGER NOT NULL,
    settled INTEGER NOT NULL
);
CREATE TABLE data (key INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
CREATE TABLE buffer (key INTEGER, position INTEGER, bytes BLOB, PRIMARY KEY (key, position));
CREATE TABLE sender (id BLOB PRIMARY KEY, last INTEGER NOT NULL, used REAL NOT NULL) WITHOUT ROWID;
"""

_INSERT = f"INSERT INTO message VALUES ({', '.join('?' * 17)})"
_UPDATE = """
UPDATE message SET state = ?, attempts = ?, worker = ?, kind = ?, ended = ?, reason = ?, detail = ?,
    cause = ?, size = ?, settled = ?, due = ? WHERE seq = ?
"""
_SENDER = """
INSERT INTO sender VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET last = excluded.last,
    used = excluded.used
"""

Row: TypeAlias = tuple[Any, ...]
"""Of the table `message`, in its order."""
Parts: TypeAlias = "Sequence[Buffer]"
"""A payload or a result, and its buffers."""


class StoreError(SegmentError):
    """The file cannot be used: damaged, of another version, another's, or not to be written."""


class Store:
    """The open file. Its methods are called by one thread."""

    def __init__(self, path: Path) -> None:
        """Opens it, or makes it. Raises StoreError."""
        self.path = path
        try:
            path.touch(mode=0o600)  # what SQLite makes beside it has the same mode
            self._file = sqlite3.connect(path, isolation_level=None, cached_statements=32)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path} cannot be opened: {error}") from error
        try:
            self._open()
        except sqlite3.Error as error:
            self._file.close()
            raise self._explained(error) from error
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        run = self._file.execute
        run("PRAGMA locking_mode = EXCLUSIVE")  # before the first access: no -shm file then
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")
        run(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT}")
        run(f"PRAGMA cache_size = {_CACHE}")
        (application,), (version,) = (
            run(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        if not application and not version and not run("SELECT 1 FROM sqlite_master").fetchone():
            self._file.executescript(
                f"BEGIN EXCLUSIVE; {_SCHEMA} PRAGMA application_id = {_APPLICATION}; "
                f"PRAGMA user_version = {VERSION}; COMMIT;"
            )
        elif application != _APPLICATION:
            raise StoreError(f"{self.path} is an SQLite file of something else")
        elif version != VERSION:
            raise StoreError(
                f"{self.path} has version {version}, and this is version {VERSION}: let its own "
                "version finish what is in it, or move it away to begin with an empty one"
            )
        self._has_buffers = run("SELECT 1 FROM buffer LIMIT 1").fetchone() is not None

    def _explained(self, error: sqlite3.Error) -> StoreError:
        if isinstance(error, sqlite3.OperationalError):
            if "locked" in str(error):
                return StoreError(f"{self.path} is in use by another process")
            return StoreError(f"{self.path} cannot be used: {error}")
        return StoreError(
            f"{self.path} is damaged ({error}); move it away to begin with an empty one: the "
            "messages that wait in it are lost with it"
        )

    # ---- reading ----

    def rows(self) -> Iterator[Row]:
        """All messages, the oldest first. Raises StoreError."""
        return self._read("SELECT * FROM message ORDER BY seq")

    def senders(self) -> Iterator[tuple[bytes, int, float]]:
        """Id, last number, and when that was; the longest ago first."""
        yield from self._read("SELECT id, last, used FROM sender ORDER BY used")

    def read(self, seq: int, what: int) -> tuple[bytes, tuple[bytes, ...]] | None:
        """A message's payload or result, with its buffers; None if there is none."""
        key = 2 * seq + what
        found = list(self._read("SELECT bytes FROM data WHERE key = ?", (key,)))
        if not found:
            return None
        query = "SELECT bytes FROM buffer WHERE key = ? ORDER BY position"
        return found[0][0], tuple(each for (each,) in self._read(query, (key,)))

    def _read(self, query: str, values: Sequence[int] = ()) -> Iterator[Row]:
        try:
            yield from self._file.execute(query, values)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    # ---- writing ----

    def write(self, batch: "Batch") -> None:
        """All of it, or nothing. Raises FilesFull: no room on the disk; StoreError."""
        run, run_many = self._file.execute, self._file.executemany
        try:
            run("BEGIN IMMEDIATE")
            run_many(_INSERT, batch.new)
            run_many(_UPDATE, batch.changed)
            run_many("INSERT OR REPLACE INTO data VALUES (?, ?)", batch.data)
            if batch.buffers:
                self._has_buffers = True
                run_many("INSERT OR REPLACE INTO buffer VALUES (?, ?, ?)", batch.buffers)
            run_many(_SENDER, batch.senders)
            self._remove(batch)
            run("COMMIT")
        except (sqlite3.Error, OverflowError) as error:
            if self._file.in_transaction:
                run("ROLLBACK")
            if _is_full(error):
                raise FilesFull(f"no room in {self.path.parent}: {error}") from error
            if isinstance(error, sqlite3.Error):
                raise self._explained(error) from error
            raise PayloadTooLarge(str(error)) from error

    def _remove(self, batch: "Batch") -> None:
        run_many = self._file.executemany
        run_many("DELETE FROM data WHERE key = ?", batch.spent)
        if self._has_buffers:
            run_many("DELETE FROM buffer WHERE key = ?", batch.spent)
        run_many("DELETE FROM message WHERE seq = ?", batch.gone)
        run_many("DELETE FROM sender WHERE id = ?", batch.gone_senders)

    def close(self) -> None:
        self._file.close()


class Batch:
    """What one transaction writes. In this order, so that each message ends as it should."""

    def __init__(self) -> None:
        self.new: list[Row] = []
        self.changed: list[Row] = []
        self.data: list[tuple[int, Buffer]] = []
        self.buffers: list[tuple[int, int, Buffer]] = []
        self.senders: list[tuple[bytes, int, float]] = []
        self.spent: list[tuple[int]] = []
        self.gone: list[tuple[int]] = []
        self.gone_senders: list[tuple[bytes]] = []

    def add_parts(self, seq: int, what: int, parts: Parts) -> None:
        key = 2 * seq + what
        self.data.append((key, parts[0]))
        self.buffers += [(key, position, part) for position, part in enumerate(parts[1:])]

    def drop_parts(self, seq: int, what: int) -> None:
        self.spent.append((2 * seq + what,))


def _is_full(error: Exception) -> bool:
    if not isinstance(error, sqlite3.OperationalError):
        return False
    # Quotas and limits on the size of a file are errors of writing.
    return "full" in str(error) or "disk I/O error" in str(error)
