from typing import Final, TypeAlias, TypeVar, final

from typing_extensions import Buffer

LANES: Final[int]
MAX_ID: Final[int]  # bytes of a task id
MAX_SLOTS: Final[int]
ENDED: Final[int]  # of answer()
NEWS: Final[int]
MAX_PARTICIPANTS: Final[int]
MAX_SENDERS: Final[int]  # that are remembered; fewer where there are fewer slots
SENDER_ID: Final[int]  # bytes

_Ticket = TypeVar("_Ticket", bound=tuple[int, int, str])

# slots, inline bytes per slot, participants, ((bytes, count) of each block class)
_Geometry: TypeAlias = tuple[int, int, int, tuple[tuple[int, int], ...]]

# slot, word, task id, payload, starts so far, form, expiry (ns, 0: none), sleeper
# to ring (0: none)
_Claimed: TypeAlias = tuple[int, int, str, bytes, int, int, int, int]
# word, death record, created, ended, due, expires (ns), size, lane, form, max deliveries, kind,
# task id
Look: TypeAlias = tuple[int, int, int, int, int, int, int, int, int, int, int, str]

# word, task id, payload, form, size, lane, max deliveries, created, due, expires (ns)
Salvaged: TypeAlias = tuple[int, str, bytes, int, int, int, int, int, int, int]

def segment_size(geometry: _Geometry, /) -> int:
    """Bytes of a segment of this geometry. ValueError: out of range."""

def initialize(fd: int, geometry: _Geometry, boot_id: bytes, checked: bool, /) -> None:
    """Write a new segment's first state into a zeroed file of segment_size() bytes.

    checked: keep checksums, for a segment that may outlive the boot.
    """

def is_volatile(fd: int, /) -> bool:
    """What lies in the file's filesystem is gone after a reboot."""

def fork_away() -> tuple[int, int]:
    """Fork a child that is not ours but the nearest subreaper's: (its pid, that of the process in
    between). The child gets (0, between). All signals have to be blocked. OSError.
    """

def guard_parent(parent: int, seconds: float, /) -> None:
    """Kill our process group `seconds` after the end of the process `parent`. Once per process."""

@final
class Core:
    """One mapping of one segment. ValueError after close()."""

    custodian: int
    deputy: int
    supervisor: int
    max_deliveries: int
    changes: int
    result_ttl: int  # nanoseconds
    @property
    def next_due(self) -> int:
        """Nanoseconds, Unix time; 2**64 - 1: nothing."""
    def __new__(cls, fd: int) -> Core:
        """Map and check. SegmentError: what is wrong with it, to follow "… because"."""
    def close(self) -> None: ...
    def forget(self) -> None:
        """close() in a forked child, whatever the parent's threads were doing."""
    def unpage(self) -> None:
        """Drop the mapping's pages from this process's page table, after a look at all slots.

        Nothing is lost, they are shared. 16,384 slots are 8 MB that this process would be charged
        for; the next look takes some 130 page faults.
        """
    def geometry(self) -> _Geometry: ...
    def boot_id(self) -> bytes: ...
    def register(self, me: int, role: int, pid: int, guardian: int, tag: int, /) -> None: ...
    def unregister(self, index: int, /) -> None: ...
    def participant(self, index: int, /) -> tuple[bool, int, int, int, int, int]:
        """live, role, pid, guardian, tag, generation."""
    def generation(self, index: int, /) -> int: ...
    def explain(self, index: int, /) -> None: ...
    def put(
        self, me: int, task_id: str, payload: Buffer, form: int, size: int, lane: int,
        max_deliveries: int, privileged: bool, due_ns: int, expires_ns: int,
        sender: bytes = ..., number: int = ..., /,
    ) -> tuple[int, int, int, int]:  # fmt: skip
        """slot, generation, sleeper to ring (0: none), whether to ring the custodian.

        sender, number: both or none; the number has to be above last_from().
        """
    def last_from(self, sender: bytes, /) -> int:
        """Its highest number that was put; 0: none is remembered."""
    def reserve(
        self, me: int, task_id: str, payload: Buffer, form: int, size: int, lane: int,
        max_deliveries: int, privileged: bool, due_ns: int, expires_ns: int, /,
    ) -> tuple[int, int]:  # fmt: skip
        """slot, word of a message that is visible to nobody until commit() or give_up()."""
    def commit(
        self, me: int, slot: int, word: int, sender: bytes = ..., number: int = ..., /
    ) -> tuple[int, int]:
        """Sleeper to ring (0: none), whether to ring the custodian. Sender: as put()."""
    def give_up(self, me: int, slot: int, word: int, /) -> None: ...
    def put_many(
        self, me: int, messages: list[tuple[str, Buffer]], lane: int, max_deliveries: int,
        privileged: bool, ticket: type[_Ticket], /,
    ) -> tuple[list[_Ticket], tuple[int, ...]]:  # fmt: skip
        """Tickets (slot, generation, id) of those put until one could not be; sleepers to ring."""
    def claim(self, me: int, again: bool, /) -> _Claimed | None:
        """None: nothing is ready. again: take what was given back too, and first."""
    def claim_or_sleep(self, me: int, again: bool, is_empty: bool, /) -> _Claimed | None:
        """None: the announcement stands until wake_up()."""
    def claim_many(self, me: int, most: int, /) -> list[_Claimed]:
        """Started, unless they may have expired."""
    def take(self, me: int, slot: int, generation: int, /) -> int | None:
        """Lease this message if it waits: its word."""
    def start(self, slot: int, word: int, /) -> int: ...
    def ack(self, slot: int, word: int, /) -> int: ...
    def time_out(self, owner: int, task_id: bytes, /) -> bool:
        """Mark what that participant runs under this id; False: no such message."""
    def complete(
        self, me: int, slot: int, word: int, result: Buffer, form: int, /
    ) -> tuple[int, ...]:
        """Watchers to ring; so do finish and dead_letter."""
    def finish(self, me: int, slot: int, word: int, how: int, /) -> tuple[int, ...]: ...
    def finish_many(
        self, me: int, leases: list[tuple[int, int]], how: int, /
    ) -> tuple[int, tuple[int, ...]]:
        """How many were fenced, watchers to ring."""
    def dead_letter(self, me: int, slot: int, word: int, detail: Buffer, /) -> tuple[int, ...]: ...
    def release(self, me: int, slot: int, word: int, /) -> tuple[int, int]:
        """Sleeper to ring (0: none), whether to ring the custodian."""
    def peek(self, slot: int, word: int, /) -> tuple[int, bytes]:
        """Form and payload, if the slot's word is still this. LeaseLost: it is not."""
    def find(self, task_id: bytes, /) -> tuple[int, int] | None:
        """slot, generation of the newest message with this id."""
    def outcome(
        self, slot: int, generation: int, /
    ) -> tuple[int, int, int, int, int, bytes, tuple[int, ...]] | None:
        """kind, starts, death record, end (ns), form, data, whom to ring; None: pending.
        LookupError: left its slot."""
    def forget_outcome(self, me: int, slot: int, generation: int, unawaited: bool, /) -> bool: ...
    def word(self, slot: int, /) -> int: ...
    def look(self, slot: int, /) -> Look | None:
        """None: the slot holds no message."""
    def watch(self, me: int, slot: int, /) -> None: ...
    def unwatch(self, me: int, slot: int, /) -> None: ...
    def completions(self, me: int, /) -> list[int]: ...
    def sleep(self, me: int, is_empty: bool, /) -> None: ...
    def answer(self, me: int, bell: int, /) -> int:
        """Empty the bell and look: ENDED a watched message has, NEWS of members, offices, times."""
    def wake_up(self, me: int, /) -> None: ...
    def set_empty(self, me: int, is_empty: bool, /) -> None: ...
    def pick_sleeper(self, me: int, empty_only: bool, /) -> int: ...
    def ready_hints(self) -> int: ...
    def empty_others(self, me: int, /) -> int: ...
    def ignore_unanswering(self, me: int, /) -> None: ...
    def arm(self, me: int, /) -> None: ...
    def disarm(self, index: int, /) -> bool: ...
    def queue_up(self, me: int, /) -> None: ...
    def step_out(self, me: int, /) -> None: ...
    def is_waiting(self, me: int, /) -> bool: ...
    def call_next(self) -> tuple[int, ...]:
        """Whom to ring because there is room."""
    def recover(
        self, dead: int, me: int, cause: int, now_ns: int, /
    ) -> tuple[list[str], list[str], list[str], list[str], tuple[int, ...]]:
        """Task ids given back, dead-lettered, lost, timed out; participants to ring."""
    def is_checked(self) -> bool: ...
    def salvage(self, slot: int, /) -> Salvaged | None:
        """Of a segment that nobody uses. None: no message is there. LeaseLost: it is not whole."""
    def set_attempts(self, me: int, slot: int, generation: int, starts: int, death: int, /) -> None:
        """For a message that nobody else has seen yet."""
    def audit(self, me: int, now_ns: int, dead_ttl_ns: int, /) -> tuple[int, int]:
        """outcomes expired, messages hinted again."""
    def run_due(self, me: int, now_ns: int, /) -> tuple[int, int, int, tuple[int, ...]]:
        """When to look again (ns, 2**64 - 1: never), made ready, expired, whom to ring."""
    def plan_due(self, at_ns: int, /) -> bool:
        """The custodian's: when it will look next. True: plan again."""
    def counts(self) -> tuple[int, int, int, int, int, int, int, int, int]:
        """free, writing, ready, delayed, leased, running, acked, done, dead."""
