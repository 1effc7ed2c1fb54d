"""What ZeroMQBroker's clients and the listener say to each other, as frames and as values.

A message is a multipart message of ZeroMQ. Its first frame is the version and one letter, its
kind; numbers are big-endian, texts UTF-8, and what seldom differs is JSON. Large payloads and
results are frames of their own, with one more for each buffer, so that they are not copied. Each
frame costs either side a microsecond or two and each message wakes a thread, so what is said once
per task is small: a task with a small payload is one frame, those that are sent at the same time
are one message, and so are the answers to them.

The client numbers what it sends 1, 2, 3 … and keeps each message until the listener has accepted or
refused its number. After a lost connection it says who it is, hears the last number that was
accepted, and sends what came after that again: the same number is never accepted twice. A refusal
is confirmed, and until then nothing with a higher number is accepted: else that number would say,
to a client that missed the refusal, that the refused message was accepted.

Whatever does not look exactly like this is a ProtocolError, whoever sent it.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from taskiq_supervise.ipc import DEFAULT_PRIORITY, DeadReason, Outcome, OutcomeKind, Ticket
from taskiq_supervise.ipc.model import DeathCause

if TYPE_CHECKING:
    from typing_extensions import Buffer

VERSION: Final = 1
MAX_TASK_ID: Final = 200
"""Bytes; what the queue takes."""
MAX_BUFFERS: Final = 65_535
CLIENT_ID: Final = 16
"""Bytes of the id that a client draws when it starts."""

_MAX_JSON = 64 * 1024
_MAX_TEXT = 16 * 1024
_MAX_NUMBER = 2**48 - 1
"""What a segment remembers of a sender."""
_MAX_GENERATION = 2**63 - 1
_NO_SLOT = 0xFFFF_FFFF
_SMALL = 8192
"""Bytes of a payload that goes with its head."""
_NUMBER = struct.Struct(">Q")
_SLOT = struct.Struct(">I")
_PUT_HEAD = struct.Struct(">2sQBH")
"""Kind, number, bytes of the task id, bytes of the schedule; both follow."""
_TICKET = struct.Struct(">QIQ")
"""Number, slot, generation."""


class ProtocolError(Exception):
    """A message that is none. The text says what was wrong.

    Attributes:
        is_version: it is one of another version, which may be said to the other side.
    """

    def __init__(self, text: str, *, is_version: bool = False) -> None:
        super().__init__(text)
        self.is_version = is_version


class Code:
    """Why something was refused, for programs; the text beside it is for people."""

    # a message (Refused)
    TOO_LARGE = "too_large"
    INVALID = "invalid"
    TAKEN_BACK = "taken_back"
    # a question (Failed)
    UNKNOWN = "unknown"
    NOT_READY = "not_ready"
    TOO_MANY = "too_many"
    # a connection (Denied)
    VERSION = "version"
    MALFORMED = "malformed"
    FLOOD = "flood"
    FULL = "full"
    """Too many clients: it may try again later."""


# --- client → listener ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """Who I am; the first message of a connection."""

    client: bytes
    pid: int = 0
    agent: str = ""


@dataclass(slots=True)  # not frozen, which would triple the time to make one
class Put:
    """A task. due, expires: Unix time; max_deliveries 0: the queue's default."""

    number: int
    task_id: str
    payload: "Buffer"
    buffers: "tuple[Buffer, ...]" = ()
    priority: int = DEFAULT_PRIORITY
    due: float | None = None
    expires: float | None = None
    max_deliveries: int = 0


@dataclass(slots=True)
class Batch:
    """Tasks with small payloads, in the order of their numbers."""

    puts: tuple[Put, ...]


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Refuse this message (TAKEN_BACK) unless the queue has it: nobody waits for it any more.

    Answered as the message is, by Accepted or Refused. Of a number that is not under way nothing
    is known, and nothing is said.
    """

    number: int


@dataclass(frozen=True, slots=True)
class Heard:
    """I know that this message is refused: those behind it may be accepted."""

    number: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Tell me when this task has ended, and how."""

    request: int
    target: str | Ticket


@dataclass(frozen=True, slots=True)
class Look:
    """How has this task ended? Answered at once."""

    request: int
    target: str | Ticket


@dataclass(frozen=True, slots=True)
class AskProgress:
    """What does this task say of its progress? Answered at once."""

    request: int
    task_id: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """I don't wait for the answer to this request any more."""

    request: int


@dataclass(frozen=True, slots=True)
class Alive:
    """Nothing to say, and still there; both sides say it."""


@dataclass(frozen=True, slots=True)
class Bye:
    """This client ends. From the listener: it goes down, another may come."""


# --- listener → client ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to Hello.

    Attributes:
        server: which listener this is, for logs.
        last: the highest number that was accepted from this client.
        window, window_bytes: so much may be under way, not accepted yet.
        max_message: bytes that a message may have, its buffers included.
        heartbeat: seconds of silence after which either side says Alive.
    """

    server: str
    last: int
    window: int
    window_bytes: int
    max_message: int
    heartbeat: float


@dataclass(frozen=True, slots=True)
class WhoAreYou:
    """I know nothing of this connection: say Hello (again)."""


@dataclass(slots=True)
class Accepted:
    """The queue has it. slot, generation: its ticket; None: it was accepted before."""

    number: int
    slot: int | None = None
    generation: int = 0


@dataclass(slots=True)
class AllAccepted:
    """The queue has all of these, more than one."""

    answers: tuple[Accepted, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """The queue will never take it. Answered with Heard, unless it was taken back (TAKEN_BACK)."""

    number: int
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer to Wait and Look."""

    request: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Progress:
    """The answer to AskProgress. state None: the task has not said any."""

    request: int
    state: str | None = None
    meta: Any = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer to a request that has no other."""

    request: int
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Denied:
    """I don't talk with this client."""

    code: str
    text: str


FromClient: TypeAlias = (
    Hello | Put | Batch | TakeBack | Heard | Wait | Look | AskProgress | Cancel | Alive | Bye
)
FromListener: TypeAlias = (
    Welcome
    | WhoAreYou
    | Accepted
    | AllAccepted
    | Refused
    | Ended
    | Progress
    | Failed
    | Alive
    | Denied
    | Bye
)


# --- encoding -------------------------------------------------------------------------------------


def encode_from_client(message: FromClient) -> "list[Buffer]":
    """The frames of a message, to be sent to the listener."""
    match message:
        case Put(number, task_id, payload, buffers):
            raw_id, schedule = task_id.encode(), _schedule(message)
            # Longer ones than a byte can tell are refused by the reader, as all that are too long.
            id_size = min(len(raw_id), 255)
            head = _PUT_HEAD.pack(_P, number, id_size, len(schedule)) + raw_id + schedule
            if buffers or memoryview(payload).nbytes > _SMALL:
                return [head, payload, *buffers]
            return [b"".join((head, payload))]
        case Batch(puts):
            return batched([encode_from_client(put)[0] for put in puts])
        case Wait(request, target):
            return [_W, _NUMBER.pack(request), *_target(target)]
        case Look(request, target):
            return [_G, _NUMBER.pack(request), *_target(target)]
        case AskProgress(request, task_id):
            return [_R, _NUMBER.pack(request), task_id.encode()]
        case Cancel(request):
            return [_C, _NUMBER.pack(request)]
        case TakeBack(number):
            return [_T, _NUMBER.pack(number)]
        case Heard(number):
            return [_K, _NUMBER.pack(number)]
        case Hello(client, pid, agent):
            return [_H, client, _json({"pid": pid, "agent": agent})]
        case Alive():
            return [_A]
        case Bye():
            return [_B]


def numbered(frames: "list[Buffer]", number: int) -> "list[Buffer]":
    """The frames of an encoded Put, with another number."""
    head = bytes(frames[0])
    return [head[:2] + _NUMBER.pack(number) + head[10:], *frames[1:]]


def batched(frames: "Sequence[Buffer]") -> "list[Buffer]":
    """The frames of a Batch: those of Puts that are one frame each."""
    return [_M, *frames]


def encode_from_listener(message: FromListener) -> "list[Buffer]":
    """The frames of a message, to be sent to a client."""
    match message:
        case Accepted():
            return [_O + _ticket(message)]
        case AllAccepted(answers):
            return [b"".join((_O, *map(_ticket, answers)))]
        case Ended(request, outcome):
            return [
                _D, _NUMBER.pack(request), _outcome_head(outcome), outcome.data, *outcome.buffers,
            ]  # fmt: skip
        case Refused(number, code, text):
            return [_N, _NUMBER.pack(number), code.encode(), _text(text)]
        case Failed(request, code, text):
            return [_E, _NUMBER.pack(request), code.encode(), _text(text)]
        case Progress(request, state, meta):
            return [_Q, _NUMBER.pack(request), _json({"state": state, "meta": meta})]
        case Welcome():
            return [_h, _json({name: getattr(message, name) for name in _WELCOME})]
        case WhoAreYou():
            return [_WHO]
        case Denied(code, text):
            return [_x, code.encode(), _text(text)]
        case Alive():
            return [_a]
        case Bye():
            return [_b]


def size_of_frames(frames: "Sequence[Buffer]") -> int:
    """Bytes of a message, as the limits on messages count them."""
    return sum(memoryview(frame).nbytes for frame in frames)


def _head(kind: bytes) -> bytes:
    return bytes([VERSION]) + kind


_H, _P, _M, _T, _K, _W, _G, _R, _C, _A, _B = (_head(bytes([kind])) for kind in b"HPMTKWGRCAB")
_h, _WHO, _O, _N, _D, _Q, _E, _a, _x, _b = (_head(bytes([kind])) for kind in b"h?ondpeaxb")

_WELCOME = ("server", "last", "window", "window_bytes", "max_message", "heartbeat")


def _schedule(put: Put) -> bytes:
    if (
        put.priority == DEFAULT_PRIORITY
        and put.due is None
        and put.expires is None
        and not put.max_deliveries
    ):
        return b""
    return _json(
        {
            "priority": put.priority,
            "due": put.due,
            "expires": put.expires,
            "max_deliveries": put.max_deliveries,
        }
    )


def _target(target: str | Ticket) -> list[bytes]:
    if isinstance(target, str):
        return [target.encode(), b""]
    return [target.task_id.encode(), _SLOT.pack(target.slot) + _NUMBER.pack(target.generation)]


def _ticket(answer: Accepted) -> bytes:
    slot = _NO_SLOT if answer.slot is None else answer.slot
    return _TICKET.pack(answer.number, slot, answer.generation)


def _outcome_head(outcome: Outcome) -> bytes:
    return _json(
        {
            "task_id": outcome.task_id,
            "kind": int(outcome.kind),
            "attempts": outcome.attempts,
            "dead_reason": None if outcome.dead_reason is None else int(outcome.dead_reason),
            "detail": outcome.detail,
            "cause": None if outcome.cause is None else outcome.cause.packed(),
        }
    )


_to_json = json.JSONEncoder(separators=(",", ":")).encode


def _json(value: Any) -> bytes:
    return _to_json(value).encode()


def _text(text: str) -> bytes:
    return text.encode(errors="replace")[:_MAX_TEXT]


# --- decoding -------------------------------------------------------------------------------------


def decode_from_client(frames: "Sequence[Buffer]") -> FromClient:
    """Reads what a client has sent, without the frame that says which client. ProtocolError."""
    message: FromClient = _decode(frames, _FROM_CLIENT)
    return message


def decode_from_listener(frames: "Sequence[Buffer]") -> FromListener:
    """Reads what the listener has sent. ProtocolError."""
    message: FromListener = _decode(frames, _FROM_LISTENER)
    return message


def _decode(frames: "Sequence[Buffer]", kinds: "Mapping[bytes, _Kind]") -> Any:
    if not frames:
        raise ProtocolError("a message without a frame")
    first = memoryview(frames[0])
    head = first[:2].tobytes()
    if len(head) < 2:
        raise ProtocolError(f"a head of {len(head)} bytes")
    if head[0] != VERSION:
        raise ProtocolError(
            f"version {head[0]} of the protocol; this is version {VERSION}", is_version=True
        )
    kind = kinds.get(head[1:])
    if kind is None:
        raise ProtocolError(f"a message of the unknown kind {head[1:]!r}")
    least, most, read = kind
    if not least <= len(frames) <= most:
        raise ProtocolError(f"a message {head[1:]!r} of {len(frames)} frames")
    if len(first) > 2 and head not in _WITH_MORE:
        raise ProtocolError(f"a head {head[1:]!r} of {len(first)} bytes")
    return read(frames)


def _hello(frames: "Sequence[Buffer]") -> Hello:
    values = _object(frames[2], {"pid", "agent"})
    return Hello(
        _bytes(frames[1], CLIENT_ID, CLIENT_ID, "the client's id"),
        _integer(values, "pid", 0, 2**31 - 1),
        _string(values["agent"], "agent"),
    )


def _put(frames: "Sequence[Buffer]") -> Put:
    first = frames[0]
    number, task_id, schedule, end = _put_head(first)
    payload: Buffer = memoryview(first)[end:]
    buffers: tuple[Buffer, ...] = ()
    if len(frames) > 1:
        if end < memoryview(first).nbytes:
            raise ProtocolError("bytes behind a task's head, and a payload, too")
        payload, buffers = frames[1], tuple(frames[2:])
    if not schedule:
        return Put(number, task_id, payload, buffers)
    values = _object(schedule, {"priority", "due", "expires", "max_deliveries"})
    return Put(
        number,
        task_id,
        payload,
        buffers,
        priority=_integer(values, "priority", 0, 9),
        due=_instant(values, "due"),
        expires=_instant(values, "expires"),
        max_deliveries=_integer(values, "max_deliveries", 0, 255),
    )


def _batch(frames: "Sequence[Buffer]") -> Batch:
    for frame in frames[1:]:
        if memoryview(frame)[:2] != _P:
            raise ProtocolError("a batch of something else than tasks")
    return Batch(tuple(_put((frame,)) for frame in frames[1:]))


def number_of_put(frame: "Buffer") -> int:
    """The number of a task of which only the first frame is there. ProtocolError: it is none."""
    if memoryview(frame)[:2] != _P:
        raise ProtocolError("a message that is larger than it may be")
    return _put_head(frame)[0]


def _put_head(first: "Buffer") -> tuple[int, str, bytes, int]:
    """Number, task id, schedule, and where what follows begins."""
    view = memoryview(first)
    if len(view) < _PUT_HEAD.size:
        raise ProtocolError(f"a task's head of {len(view)} bytes")
    _, number, id_size, schedule_size = _PUT_HEAD.unpack_from(view)
    middle = _PUT_HEAD.size + id_size
    end = middle + schedule_size
    if end > len(view):
        raise ProtocolError(f"a task's head of {len(view)} bytes, not {end}")
    task_id = _task_id(view[_PUT_HEAD.size : middle])
    number = _in_range(number, 1, "the message's number")
    return number, task_id, view[middle:end].tobytes(), end


def _take_back(frames: "Sequence[Buffer]") -> TakeBack:
    return TakeBack(_number(frames[1], 1, "the message's number"))


def _heard(frames: "Sequence[Buffer]") -> Heard:
    return Heard(_number(frames[1], 1, "the message's number"))


def _wait(frames: "Sequence[Buffer]") -> Wait:
    return Wait(_request(frames[1]), _read_target(frames[2], frames[3]))


def _look(frames: "Sequence[Buffer]") -> Look:
    return Look(_request(frames[1]), _read_target(frames[2], frames[3]))


def _ask_progress(frames: "Sequence[Buffer]") -> AskProgress:
    return AskProgress(_request(frames[1]), _task_id(frames[2]))


def _cancel(frames: "Sequence[Buffer]") -> Cancel:
    return Cancel(_request(frames[1]))


def _welcome(frames: "Sequence[Buffer]") -> Welcome:
    values = _object(frames[1], set(_WELCOME))
    heartbeat = values["heartbeat"]
    if type(heartbeat) not in (int, float) or not 0 < heartbeat < math.inf:
        raise ProtocolError(f"a heartbeat of {heartbeat!r} s")
    return Welcome(
        _string(values["server"], "server"),
        _integer(values, "last", 0, _MAX_NUMBER),
        _integer(values, "window", 1, 2**31 - 1),
        _integer(values, "window_bytes", 1, 2**62),
        _integer(values, "max_message", 1, 2**62),
        float(heartbeat),
    )


def _accepted(frames: "Sequence[Buffer]") -> Accepted | AllAccepted:
    data = memoryview(frames[0])[2:]
    if not data or len(data) % _TICKET.size:
        raise ProtocolError(f"numbers and tickets of {len(data)} bytes")
    answers = []
    for number, slot, generation in _TICKET.iter_unpack(data):
        if generation > _MAX_GENERATION:
            raise ProtocolError(f"a ticket of generation {generation}")
        _in_range(number, 1, "the message's number")
        answers.append(Accepted(number, None if slot == _NO_SLOT else slot, generation))
    return answers[0] if len(answers) == 1 else AllAccepted(tuple(answers))


def _refused(frames: "Sequence[Buffer]") -> Refused:
    return Refused(
        _number(frames[1], 1, "the message's number"),
        _read_text(frames[2], "the code"),
        _read_text(frames[3], "the reason"),
    )


def _ended(frames: "Sequence[Buffer]") -> Ended:
    values = _object(frames[2], {"task_id", "kind", "attempts", "dead_reason", "detail", "cause"})
    reason, cause = values["dead_reason"], values["cause"]
    if cause is not None:
        cause = DeathCause.unpacked(_integer(values, "cause", 0, 2**64 - 1))
    outcome = Outcome(
        _string(values["task_id"], "task_id"),
        OutcomeKind(_integer(values, "kind", min(OutcomeKind), max(OutcomeKind))),
        bytes(frames[3]),
        _integer(values, "attempts", 0, 2**32),
        None
        if reason is None
        else DeadReason(_integer(values, "dead_reason", min(DeadReason), max(DeadReason))),
        _string(values["detail"], "detail"),
        cause,
        tuple(memoryview(frame) for frame in frames[4:]),
    )
    return Ended(_request(frames[1]), outcome)


def _progress(frames: "Sequence[Buffer]") -> Progress:
    values = _object(frames[2], {"state", "meta"}, most=2**31)
    state = values["state"]
    return Progress(
        _request(frames[1]), None if state is None else _string(state, "state"), values["meta"]
    )


def _failed(frames: "Sequence[Buffer]") -> Failed:
    return Failed(
        _request(frames[1]), _read_text(frames[2], "the code"), _read_text(frames[3], "the reason")
    )


def _denied(frames: "Sequence[Buffer]") -> Denied:
    return Denied(_read_text(frames[1], "the code"), _read_text(frames[2], "the reason"))


_Kind: TypeAlias = "tuple[int, int, Callable[[Sequence[Buffer]], Any]]"
"""The least and the most frames that it has, and who reads them."""

_FROM_CLIENT: Mapping[bytes, _Kind] = {
    b"H": (3, 3, _hello),
    b"P": (1, 2 + MAX_BUFFERS, _put),
    b"M": (2, 1 + MAX_BUFFERS, _batch),
    b"T": (2, 2, _take_back),
    b"K": (2, 2, _heard),
    b"W": (4, 4, _wait),
    b"G": (4, 4, _look),
    b"R": (3, 3, _ask_progress),
    b"C": (2, 2, _cancel),
    b"A": (1, 1, lambda _: Alive()),
    b"B": (1, 1, lambda _: Bye()),
}
_FROM_LISTENER: Mapping[bytes, _Kind] = {
    b"h": (2, 2, _welcome),
    b"?": (1, 1, lambda _: WhoAreYou()),
    b"o": (1, 1, _accepted),
    b"n": (4, 4, _refused),
    b"d": (4, 4 + MAX_BUFFERS, _ended),
    b"p": (3, 3, _progress),
    b"e": (4, 4, _failed),
    b"a": (1, 1, lambda _: Alive()),
    b"x": (3, 3, _denied),
    b"b": (1, 1, lambda _: Bye()),
}

_WITH_MORE = frozenset((_P, _O))
"""Heads that more follows in the same frame."""


# --- parts ----------------------------------------------------------------------------------------


def _bytes(frame: "Buffer", least: int, most: int, what: str) -> bytes:
    view = memoryview(frame)
    if not least <= view.nbytes <= most:
        raise ProtocolError(f"{what} of {view.nbytes} bytes")
    return view.tobytes()


def _in_range(number: int, least: int, what: str) -> int:
    if not least <= number <= _MAX_NUMBER:
        raise ProtocolError(f"{what} is {number}")
    return number


def _number(frame: "Buffer", least: int, what: str) -> int:
    (number,) = _NUMBER.unpack(_bytes(frame, 8, 8, what))
    return _in_range(number, least, what)


def _request(frame: "Buffer") -> int:
    return _number(frame, 0, "the request's number")


def _task_id(frame: "Buffer") -> str:
    return _decoded(_bytes(frame, 1, MAX_TASK_ID, "the task id"), "the task id")


def _read_target(task_id: "Buffer", place: "Buffer") -> str | Ticket:
    data = _bytes(place, 0, 12, "the ticket")
    if not data:
        return _task_id(task_id)
    if len(data) != 12:
        raise ProtocolError(f"a ticket of {len(data)} bytes")
    (slot,), (generation,) = _SLOT.unpack_from(data), _NUMBER.unpack_from(data, 4)
    if generation > _MAX_GENERATION:
        raise ProtocolError(f"a ticket of generation {generation}")
    return Ticket(slot, generation, _task_id(task_id))


def _read_text(frame: "Buffer", what: str) -> str:
    return memoryview(frame)[:_MAX_TEXT].tobytes().decode(errors="replace") or f"({what} is empty)"


def _decoded(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"{what} is not UTF-8: {data!r}") from None


def _object(frame: "Buffer", keys: set[str], *, most: int = _MAX_JSON) -> dict[str, Any]:
    data = _bytes(frame, 2, most, "JSON")
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"what should be JSON is not: {error}") from None
    if not isinstance(value, dict) or value.keys() != keys:
        raise ProtocolError(f"{data[:100]!r} is not an object with {', '.join(sorted(keys))}")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _integer(values: dict[str, Any], name: str, least: int, most: int) -> int:
    value = values[name]
    if type(value) is not int or not least <= value <= most:
        raise ProtocolError(f"{name} is {value!r}, not an integer from {least} to {most}")
    return value


def _instant(values: dict[str, Any], name: str) -> float | None:
    value = values[name]
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value < 2**33:
        raise ProtocolError(f"{name} is {value!r}, not Unix time in seconds")
    return float(value)


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ProtocolError(f"{name} is {value!r}, not a text")
    return value


def new_client_id() -> bytes:
    """Random, so that no two clients share it, forks and restarts of one program included."""
    return os.urandom(CLIENT_ID)
