from typing import Final, TypeAlias, final

from typing_extensions import Buffer

MAX_ID: Final[int]  # bytes of a task id
MAX_SLOTS: Final[int]
MAX_PARTICIPANTS: Final[int]

# slots, inline bytes per slot, participants, ((bytes, count) of each block class)
_Geometry: TypeAlias = tuple[int, int, int, tuple[tuple[int, int], ...]]

def segment_size(geometry: _Geometry, /) -> int:
    """Bytes of a segment of this geometry. ValueError: out of range."""

def initialize(fd: int, geometry: _Geometry, boot_id: bytes, /) -> None:
    """Write a new segment's first state into a zeroed file of segment_size() bytes."""

def guard_parent(parent: int, seconds: float, /) -> None:
    """Kill our process group `seconds` after the end of the process `parent`. Once per process."""

@final
class Core:
    """One mapping of one segment. ValueError after close()."""

    custodian: int
    supervisor: int
    max_deliveries: int
    changes: int
    def __new__(cls, fd: int) -> Core:
        """Map and check. SegmentError: what is wrong with it, to follow "… because"."""
    def close(self) -> None: ...
    def forget(self) -> None:
        """close() in a forked child, whatever the parent's threads were doing."""
    def geometry(self) -> _Geometry: ...
    def boot_id(self) -> bytes: ...
    def register(self, me: int, role: int, pid: int, guardian: int, tag: int, /) -> None: ...
    def unregister(self, index: int, /) -> None: ...
    def participant(self, index: int, /) -> tuple[bool, int, int, int, int, int]:
        """live, role, pid, guardian, tag, generation."""
    def explain(self, index: int, /) -> None: ...
    def put(
        self, me: int, task_id: bytes, payload: Buffer, max_deliveries: int, now_ns: int, /
    ) -> tuple[int, int, int]:
        """slot, generation, sleeper to ring (0: none)."""
    def claim(self, me: int, again: bool, /) -> tuple[int, int, bytes, bytes, int] | None:
        """slot, word, task id, payload, starts so far; None: nothing is ready.

        again: take what was given back too, and first.
        """
    def start(self, slot: int, word: int, /) -> int: ...
    def ack(self, slot: int, word: int, /) -> int: ...
    def complete(
        self, me: int, slot: int, word: int, result: Buffer, now_ns: int, /
    ) -> tuple[int, ...]:
        """Watchers to ring; so do finish and dead_letter."""
    def finish(
        self, me: int, slot: int, word: int, keep: bool, now_ns: int, /
    ) -> tuple[int, ...]: ...
    def dead_letter(
        self, me: int, slot: int, word: int, detail: Buffer, now_ns: int, /
    ) -> tuple[int, ...]: ...
    def release(self, me: int, slot: int, word: int, /) -> int:
        """Sleeper to ring (0: none)."""
    def find(self, task_id: bytes, /) -> tuple[int, int] | None:
        """slot, generation of the newest message with this id."""
    def outcome(self, slot: int, generation: int, /) -> tuple[int, int, int, int, bytes] | None:
        """kind, starts, death record, end (ns), data; None: pending. LookupError: left its slot."""
    def watch(self, me: int, slot: int, /) -> None: ...
    def unwatch(self, me: int, slot: int, /) -> None: ...
    def completions(self, me: int, /) -> list[int]: ...
    def sleep(self, me: int, is_empty: bool, /) -> None: ...
    def wake_up(self, me: int, /) -> None: ...
    def set_empty(self, me: int, is_empty: bool, /) -> None: ...
    def pick_sleeper(self, me: int, empty_only: bool, /) -> int: ...
    def ready_hints(self) -> int: ...
    def empty_others(self, me: int, /) -> int: ...
    def ignore_unanswering(self, me: int, /) -> None: ...
    def arm(self, me: int, /) -> None: ...
    def disarm(self, index: int, /) -> bool: ...
    def recover(
        self, dead: int, me: int, cause: int, now_ns: int, /
    ) -> tuple[list[tuple[int, bytes]], tuple[int, ...]]:
        """[(kind of repair, task id)], participants to ring."""
    def audit(
        self, me: int, now_ns: int, result_ttl_ns: int, dead_ttl_ns: int, /
    ) -> tuple[int, int]:
        """outcomes expired, messages hinted again."""
    def counts(self) -> tuple[int, int, int, int, int, int, int, int, int]:
        """free, writing, ready, delayed, leased, running, acked, done, dead."""
