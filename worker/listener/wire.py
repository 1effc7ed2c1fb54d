"""A ZeroMQ socket on an event loop, and what hub and workers say to each other over it.

ZeroMQ tells of news once, at an edge, and any call may swallow that edge; so after whatever was
done with the socket it is read until there is nothing more. Sending never blocks: a queue in
ZeroMQ's memory takes what is sent, and both sides bound what they have under way.

A message is a multipart message. Its first frame is a letter and numbers, for each frame costs some
microseconds; ids, payloads and buffers follow. Both ends are of the same version, since one
supervisor forked both, and the socket is in a folder that is its user's alone.
"""

import asyncio
import json
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import zmq

from taskiq_supervise.broker.labels import Schedule
from taskiq_supervise.ipc import DeadReason, DeathCause, Outcome, OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

MAX_PART: Final = 999_000_000
"""Bytes of a payload, a result, or one of their buffers: SQLite takes rows of 1,000,000,000."""
LINGER: Final = 500
"""Milliseconds that a closed socket may still send for."""
SOCKET: Final = "hub"

_BATCH = 256
"""Messages that are read before others on the loop get their turn."""
_LARGE = 64 * 1024
"""Bytes from which on a frame is not copied."""
_LONGEST_PATH = 100
_SEND, _SEND_MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT) | int(zmq.SNDMORE)
_MESSAGE = struct.Struct(">c8sQId?")
_END = struct.Struct(">cQQIc")


class Kind:
    """The letters. A worker speaks in capitals. After a letter: what is in the same frame, and
    after the semicolon the other frames."""

    KNOCK = b"K"
    """I have connected, for the first time or again: ask me who I am."""
    HELLO = b"H"
    """; JSON: who I am, and what I have."""
    CREDIT = b"C"
    """How many messages in all I have asked for since HELLO."""
    PUT = b"P"
    """request; id, schedule, payload, *buffers"""
    END = b"E"
    """request, seq, attempt, how; *data"""
    WAIT = b"W"
    """request; id, seq or nothing"""
    LOOK = b"L"
    """request; id, nothing"""
    CANCEL = b"X"
    """request: it is not waited for any more, and answered all the same if it is a PUT"""
    BYE = b"B"

    WHO = b"?"
    """; nonce: say HELLO with it. What has another was meant for an earlier connection."""
    WELCOME = b"h"
    """; nonce"""
    MESSAGE = b"m"
    """nonce, seq, attempt, expires or 0, whether many more wait; id, payload, *buffers"""
    EMPTY = b"i"
    """1: another worker has nothing to do, 0: none has."""
    DONE = b"o"
    """request; seq or nothing"""
    LOST = b"l"
    """request: another has the message now, or it has ended."""
    OUTCOME = b"d"
    """request; JSON, data, *buffers. JSON null: not ended."""
    ERROR = b"e"
    """request; code, text"""


class How:
    """How a worker ends a message that it has."""

    RESULT = b"r"
    NO_RESULT = b"n"
    FORGET = b"f"
    DEAD = b"d"
    """reason, detail, 1 if it was started"""
    RELEASE = b"b"
    EXPIRED = b"x"
    ACK = b"a"
    """No end: but it never runs again."""


class Wire:
    """One socket, from its making to its close. Belongs to the running loop."""

    def __init__(self, kind: int, on_message: "Callable[[list[zmq.Frame]], None]") -> None:
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self.socket: zmq.Socket[bytes] = self._context.socket(kind)
        self.socket.linger = LINGER
        self.socket.sndhwm = self.socket.rcvhwm = 0
        self._on_message = on_message
        self._looking = False
        self._monitor: zmq.Socket[bytes] | None = None
        self._on_connected: Callable[[], None]
        self._fd = int(self.socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._look)
        self.look_soon()

    def send(self, frames: "Sequence[Buffer]") -> bool:
        """False: there is nobody of that name."""
        # Not send_multipart(), which takes twice as long.
        send, last = self.socket.send, len(frames) - 1
        try:
            for position, frame in enumerate(frames):
                flags = _SEND_MORE if position < last else _SEND
                send(frame, flags, copy=memoryview(frame).nbytes < _LARGE)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        finally:
            self.look_soon()
        return True

    def tell_of_connections(self, on_connected: "Callable[[], None]") -> None:
        """Calls back for each connection that a connecting socket gets, the first included."""
        monitor = self.socket.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED)
        monitor.linger = 0
        self._monitor = monitor
        self._on_connected = on_connected
        self._loop.add_reader(int(monitor.getsockopt(zmq.FD)), self._look_at_monitor)
        self._look_at_monitor()  # it tells of news only to who has seen that there was none

    def _look_at_monitor(self) -> None:
        monitor = self._monitor
        while monitor is not None and not monitor.closed:
            try:
                monitor.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._on_connected()

    def look_soon(self) -> None:
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        for _ in range(_BATCH):
            if self.socket.closed:
                return
            try:
                frames = self.socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            self._on_message(frames)
        self.look_soon()

    def close(self) -> None:
        """Waits up to LINGER for what was sent."""
        if self.socket.closed:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        if self._monitor is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(int(self._monitor.getsockopt(zmq.FD)))
            self.socket.disable_monitor()
            self._monitor.close()
        self.socket.close()
        self._context.term()


class Address:
    """The hub's socket in its folder, whose path may be longer than the kernel takes."""

    def __init__(self, folder: Path) -> None:
        self._directory: int | None = None
        path = folder / SOCKET
        if len(os.fsencode(path)) > _LONGEST_PATH:
            self._directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            path = Path(f"/proc/self/fd/{self._directory}/{SOCKET}")
        self.url = f"ipc://{path}"

    def close(self) -> None:
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None


def identity(pid: int) -> str:
    """A process, as no other ever was on this machine."""
    # Its start, in clock ticks since the machine's: the 22nd field, the 20th after the name.
    stat = Path(f"/proc/{pid}/stat").read_text()
    return f"{pid}:{stat.rpartition(')')[2].split()[19]}"


def pid_of(worker: str) -> int:
    return int(worker.partition(":")[0])


def is_alive(worker: str) -> bool:
    """Whether it runs, a zombie not counting."""
    try:
        stat = Path(f"/proc/{pid_of(worker)}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat[0] not in "ZX" and worker.endswith(f":{stat[19]}")


def hello(nonce: bytes, worker: str, sender: bytes, takes: bool, have: list[list[int]]) -> bytes:
    """have: sequence number and start of each message that this worker has."""
    values = {
        "nonce": nonce.hex(),
        "worker": worker,
        "sender": sender.hex(),
        "takes": takes,
        "have": have,
    }
    return json.dumps(values).encode()


# --- fields ---------------------------------------------------------------------------------------


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def to_number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def message_head(
    nonce: bytes, seq: int, attempt: int, expires: float | None, many_more: bool
) -> bytes:
    return _MESSAGE.pack(Kind.MESSAGE, nonce, seq, attempt, expires or 0.0, many_more)


def to_message_head(head: bytes) -> tuple[bytes, int, int, float | None, bool]:
    _, nonce, seq, attempt, expires, many_more = _MESSAGE.unpack(head)
    return nonce, seq, attempt, expires or None, many_more


def end_head(request: int, seq: int, attempt: int, how: bytes) -> bytes:
    return _END.pack(Kind.END, request, seq, attempt, how)


def to_end_head(head: bytes) -> tuple[int, int, int, bytes]:
    _, request, seq, attempt, how = _END.unpack(head)
    return request, seq, attempt, how


def schedule_frame(schedule: Schedule) -> bytes:
    values = (schedule.priority, schedule.due, schedule.expires, schedule.max_deliveries)
    return json.dumps(values).encode()


def to_schedule(frame: "Buffer") -> Schedule:
    priority, due, expires, max_deliveries = json.loads(bytes(frame))
    return Schedule(priority, due, expires, max_deliveries)


def outcome_frames(outcome: Outcome | None) -> "list[Buffer]":
    if outcome is None:
        return [b"null", b""]
    values = {
        "id": outcome.task_id,
        "kind": int(outcome.kind),
        "attempts": outcome.attempts,
        "reason": None if outcome.dead_reason is None else int(outcome.dead_reason),
        "detail": outcome.detail,
        "cause": None if outcome.cause is None else outcome.cause.packed(),
    }
    return [json.dumps(values).encode(), outcome.data, *outcome.buffers]


def to_outcome(frames: "Sequence[zmq.Frame]") -> Outcome | None:
    values: dict[str, Any] | None = json.loads(frames[0].bytes)
    if values is None:
        return None
    reason, cause = values["reason"], values["cause"]
    return Outcome(
        values["id"],
        OutcomeKind(values["kind"]),
        frames[1].bytes,
        values["attempts"],
        None if reason is None else DeadReason(reason),
        values["detail"],
        None if cause is None else DeathCause.unpacked(cause),
        tuple(frame.buffer for frame in frames[2:]),
    )
