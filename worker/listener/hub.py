"""Joins the listener and the workers where there is no shared memory: a ROUTER, and DEALERs.

Workers ask for messages by credits, and get no more than they can begin at once; who has least to
do gets the next one. What they have is written down before they get it, so whoever dies, what it
had is given to others or ended as the ledger's rules say: a worker's death is told by the
supervisor, and seen on its pidfd besides. A listener that dies is replaced, and its successor asks
each worker what it has; meanwhile tasks run on, and what workers have to say is said again.

Everything that happens in one turn of the loop is written in one transaction and answered after it.
"""

import asyncio
import json
import logging
import os
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import zmq

from taskiq_supervise.ipc import (
    Burial,
    DeadReason,
    DeathCause,
    FilesFull,
    Outcome,
    OutcomeKind,
    PayloadTooLarge,
    SegmentError,
    Ticket,
    UnknownTask,
)
from taskiq_supervise.worker.listener import wire
from taskiq_supervise.worker.listener.entry import Entry
from taskiq_supervise.worker.listener.intake import Incoming
from taskiq_supervise.worker.listener.ledger import Ledger
from taskiq_supervise.worker.listener.reserve import Reserve
from taskiq_supervise.worker.listener.store import Parts, StoreError
from taskiq_supervise.worker.listener.wire import How, Kind

if TYPE_CHECKING:
    from typing_extensions import Buffer

logger = logging.getLogger("taskiq_supervise.listener")

LEAVING: Final = "leaving-"
"""Begins the name of a file that a worker makes before it ends as planned: its pid follows."""

_CAUSE_PATIENCE = 0.25
"""Seconds after a worker's death in which its supervisor can say how it died."""
_MANY = 64
"""Messages that wait: then workers may ask for several at once, which is faster, since there is
enough for each of them."""
_RETRY = 0.5
"""Seconds between tries to write what found no room."""


@dataclass(eq=False)
class Session:
    """One connection of a worker."""

    identity: bytes
    nonce: bytes
    """What its HELLO must repeat: it is the answer to our last question, and to no other."""
    worker: str = ""
    sender: bytes = b""
    greeted: bool = False
    takes: bool = False
    granted: int = 0
    given: int = 0
    out: dict[int, Entry] = field(default_factory=dict)
    waits: "dict[int, Wait]" = field(default_factory=dict)
    puts: "dict[int, Arrival]" = field(default_factory=dict)
    others_are_empty: bool = False
    """What it was told."""

    @property
    def credit(self) -> int:
        return self.granted - self.given


@dataclass(eq=False)
class Wait:
    """Somebody waits for news of a task."""

    target: str | Ticket
    tell: Callable[[Any], None]
    """With what was found, or UnknownTask."""
    look: Callable[[str | Ticket], Any]
    """What is waited for, None while it is not there. Raises UnknownTask."""

    @property
    def task_id(self) -> str:
        return self.target if isinstance(self.target, str) else self.target.task_id


@dataclass(eq=False)
class Arrival:
    """A message that is to be accepted, or waits for room."""

    message: Incoming
    sender: tuple[bytes, int] | None
    tell: "Callable[[Ticket | FilesFull | PayloadTooLarge | None], None]"
    of_worker: bool = False
    entry: Entry | None = None


class Hub:
    """Between one ledger and any number of workers. Belongs to the loop on which it starts."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger = ledger
        self.folder = folder
        self.on_failure: Callable[[Exception], None] | None = None
        """Called when the store cannot be used any more."""
        self.on_burial: Callable[[], None] | None = None
        """Called when tasks of a dead worker have ended that way."""
        self._loop = asyncio.get_running_loop()
        self._sessions: dict[bytes, Session] = {}
        self._watched: dict[str, int] = {}
        """pidfds."""
        self._dying: dict[str, asyncio.TimerHandle] = {}
        self._waits: dict[str, list[Wait]] = {}
        self._room: deque[Arrival] = deque()
        self._arrived: dict[int, Arrival] = {}
        """Accepted in this turn."""
        self._by_number: dict[tuple[bytes, int], list[Arrival]] = {}
        self._answers: list[tuple[bytes, list[Buffer]]] = []
        """To be sent once what they are about is written."""
        self._outbox: list[tuple[Session, Entry, Parts]] = []
        self._news: set[str] = set()
        self._again: dict[int, Session] = {}
        """Who has messages whose worker died before."""
        self._turning = False
        self._stalled = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        ledger.on_news = self._news.add
        self._reserve = Reserve(folder)

    def start(self) -> None:
        """Binds; from here on workers come."""
        self._address = wire.Address(self.folder)
        self._wire = wire.Wire(zmq.ROUTER, self._receive)
        socket = self._wire.socket
        socket.router_mandatory = True
        socket.router_handover = True
        mask = os.umask(0o177)
        try:
            socket.bind(self._address.url)
        except zmq.ZMQError as error:
            self._wire.close()
            self._address.close()
            raise SegmentError(f"{self._address.url} cannot be bound: {error}") from error
        finally:
            os.umask(mask)
        for worker in self.ledger.workers():
            self._watch(worker)
        self._clear_leftovers()
        self.turn_soon()

    def close(self) -> None:
        """Writes what there is to write, and answers it. Workers keep what they have."""
        if self._closed:
            return
        self._turn()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for timer in self._dying.values():
            timer.cancel()
        for fd in self._watched.values():
            self._loop.remove_reader(fd)
            os.close(fd)
        self._watched.clear()
        self._wire.close()
        (self.folder / wire.SOCKET).unlink(missing_ok=True)
        self._address.close()
        self._reserve.close()

    # ---- one turn -------------------------------------------------------------------------------

    def turn_soon(self) -> None:
        if not self._turning and not self._closed:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turning = False
        if self._closed:
            return
        try:
            self._accept_waiting()
            self.ledger.tick()
            if not self._stalled:
                self._give_out()
            if not self._write():
                return
        except Exception as error:
            self._fail(error)
            return
        self._tell()
        self._set_timer()

    def _write(self) -> bool:
        """False: there is no room, and nobody is told of anything yet."""
        if not self.ledger.has_changes:
            return True
        try:
            self.ledger.commit()
        except FilesFull as error:
            self._refuse_new(error)
            # Ends need room as well, before they make some.
            self._reserve.give_up()
            try:
                if self.ledger.has_changes:
                    self.ledger.commit()
            except FilesFull:
                self._stall(error)
                return False
        if self._stalled:
            self._stalled = False
            logger.warning("There is room for the store again")
            self.turn_soon()
        return True

    def _refuse_new(self, error: FilesFull) -> None:
        withdrawn = {entry.seq for entry in self.ledger.withdraw_new()}
        for session, entry, _ in self._outbox:
            if entry.seq in withdrawn:
                session.given -= 1
                session.out.pop(entry.seq, None)
        self._outbox = [each for each in self._outbox if each[1].seq not in withdrawn]
        arrivals, self._arrived = list(self._arrived.values()), {}
        repeats, self._by_number = self._by_number, {}
        for arrival in arrivals:
            arrival.tell(error)
        for arrival in (each for repeated in repeats.values() for each in repeated[1:]):
            arrival.tell(error)

    def _stall(self, error: FilesFull) -> None:
        if not self._stalled:
            logger.error("%s; no task begins or ends until there is some", error)
        self._stalled = True
        self._loop.call_later(_RETRY, self.turn_soon)

    def _fail(self, error: Exception) -> None:
        self._closed = True
        self._wire.close()
        if self.on_failure is None:
            raise error
        self.on_failure(error)

    def _tell(self) -> None:
        arrived, self._arrived, self._by_number = self._arrived, {}, self._drop_numbers()
        for arrival in arrived.values():
            assert arrival.entry is not None
            arrival.tell(arrival.entry.ticket)
        answers, self._answers = self._answers, []
        for identity, frames in answers:
            self._wire.send([identity, *frames])
        outbox, self._outbox = self._outbox, []
        for session, entry, parts in outbox:
            self._send_message(session, entry, parts)
        news = list(self._news)
        self._news.clear()
        for task_id in news:
            self._look_again(task_id)
        self._hint()

    def _drop_numbers(self) -> "dict[tuple[bytes, int], list[Arrival]]":
        """Those who sent a number twice in one turn learn that it was accepted before."""
        for arrivals in self._by_number.values():
            for arrival in arrivals[1:]:
                arrival.tell(None)
        return {}

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self.ledger.next_time()
        if at is not None:
            self._timer = self._loop.call_later(
                max(0.0, at - self.ledger.now()) + 0.001, self.turn_soon
            )

    # ---- accepting ------------------------------------------------------------------------------

    def accept(self, arrival: Arrival) -> None:
        """It is told the ticket, None (accepted before), or why it cannot be."""
        self._room.append(arrival)
        self.turn_soon()

    def take_back(self, arrival: Arrival) -> bool:
        """True: it is not accepted, and will not be."""
        with suppress(ValueError):
            self._room.remove(arrival)
            return True
        return False

    def _accept_waiting(self) -> None:
        ledger = self.ledger
        while self._room:
            arrival = self._room[0]
            if not (ledger.has_room_for_workers if arrival.of_worker else ledger.has_room):
                return
            self._room.popleft()
            if not self._reserve.is_there:
                arrival.tell(FilesFull(f"no room in {self.folder}: its disk is full"))
                continue
            try:
                arrival.entry = ledger.accept(arrival.message, arrival.sender)
            except PayloadTooLarge as error:
                arrival.tell(error)
                continue
            if arrival.sender is not None:
                same = self._by_number.setdefault(arrival.sender, [])
                if arrival.entry is None and not same:
                    del self._by_number[arrival.sender]
                    arrival.tell(None)
                    continue
                same.append(arrival)
            if arrival.entry is not None:
                self._arrived[arrival.entry.seq] = arrival

    # ---- giving out -----------------------------------------------------------------------------

    def _give_out(self) -> None:
        free = [session for session in self._sessions.values() if session.credit > 0]
        while free:
            entry = self.ledger.next_ready()
            if entry is None:
                return
            session = free[0] if len(free) == 1 else min(free, key=_load)
            parts = self.ledger.give(entry, session.worker)
            if parts is None:
                logger.error("Task %s is put aside: %s", entry.task_id, entry.detail)
                continue
            session.given += 1
            session.out[entry.seq] = entry
            if entry.attempts > 1:
                self._again[entry.seq] = session
            self._outbox.append((session, entry, parts))
            if not session.credit:
                free.remove(session)

    def _send_message(self, session: Session, entry: Entry, parts: Parts) -> None:
        if session.out.get(entry.seq) is not entry:
            return  # it has gone meanwhile
        many_more = self.ledger.ready > _MANY
        head = wire.message_head(session.nonce, entry.seq, entry.attempts, entry.expires, many_more)
        self._wire.send([session.identity, head, entry.task_id.encode(), *parts])
        # One that could not be reached is dead or comes back, and says then what it has.
        self.ledger.forget_bytes(entry)

    def _hint(self) -> None:
        """Who holds back a task until it is alone learns whether another could run it at once."""
        for session in set(self._again.values()):
            empty = any(
                other.credit > 0 and not other.out
                for other in self._sessions.values()
                if other is not session
            )
            if empty != session.others_are_empty:
                session.others_are_empty = empty
                self._wire.send([session.identity, Kind.EMPTY + (b"1" if empty else b"0")])

    # ---- what workers say -----------------------------------------------------------------------

    def _receive(self, frames: list[zmq.Frame]) -> None:
        identity = frames[0].bytes
        head = frames[1].bytes if len(frames) > 1 else b""
        kind = head[:1]
        session = self._sessions.get(identity)
        if session is None or kind == Kind.KNOCK:
            session = self._ask(identity)
        try:
            if kind == Kind.HELLO:
                self._greet(session, json.loads(frames[2].bytes))
            elif session.greeted:
                self._hear(session, kind, head, frames[2:])
        except StoreError as error:
            self._fail(error)
            return
        except (ValueError, LookupError, TypeError, struct.error) as error:
            logger.error("Nonsense from a worker (%s): %r, %r", session.worker, kind, error)
        self.turn_soon()

    def _ask(self, identity: bytes) -> Session:
        """Who it is, and what it has. What it says before the answer, it will say again."""
        known = self._sessions.get(identity)
        if known is not None:
            self._detach(known)
        session = Session(identity, os.urandom(8))
        self._sessions[identity] = session
        self._wire.send([identity, Kind.WHO, session.nonce])
        return session

    def _greet(self, session: Session, said: dict[str, object]) -> None:
        if said["nonce"] != session.nonce.hex():
            return
        have = {(int(seq), int(attempt)) for seq, attempt in said["have"]}  # type: ignore[attr-defined]
        session.worker = str(said["worker"])
        session.sender = bytes.fromhex(str(said["sender"]))
        session.takes = bool(said["takes"])
        session.granted = session.given = 0
        session.greeted = True
        if not self._watch(session.worker):
            return
        if session.takes:
            for entry in self.ledger.held_by(session.worker):
                if (entry.seq, entry.attempts) in have:
                    session.out[entry.seq] = entry
                    if entry.attempts > 1:
                        self._again[entry.seq] = session
                else:  # it never got there
                    self.ledger.release(entry)
        self._answers.append((session.identity, [Kind.WELCOME, session.nonce]))

    def _hear(self, session: Session, kind: bytes, head: bytes, frames: list[zmq.Frame]) -> None:
        if kind == Kind.END:
            self._end(session, head, frames)
        elif kind == Kind.CREDIT:
            session.granted = wire.to_number(head[1:])
        elif kind == Kind.PUT:
            self._put(session, wire.to_number(head[1:]), frames)
        elif kind == Kind.WAIT:
            self._wait(session, wire.to_number(head[1:]), _target(frames))
        elif kind == Kind.LOOK:
            self._look(session, wire.to_number(head[1:]), _target(frames))
        elif kind == Kind.CANCEL:
            self._cancel(session, wire.to_number(head[1:]))
        elif kind == Kind.BYE:
            self._leave(session)
        else:
            raise ValueError("an unknown kind")

    def _end(self, session: Session, head: bytes, frames: list[zmq.Frame]) -> None:
        request, seq, attempt, how = wire.to_end_head(head)
        entry = self.ledger.held(seq, session.worker, attempt)
        answer = Kind.DONE
        if entry is not None:
            self._carry_out(entry, how, frames)
        elif how == How.RELEASE or not self.ledger.has_ended(seq, attempt):
            answer = Kind.LOST
        if how != How.ACK:
            session.out.pop(seq, None)
            self._again.pop(seq, None)
        self._answers.append((session.identity, [answer + wire.number(request)]))

    def _carry_out(self, entry: Entry, how: bytes, data: list[zmq.Frame]) -> None:
        ledger = self.ledger
        if how == How.RESULT:
            ledger.complete(entry, [data[0].bytes, *(frame.buffer for frame in data[1:])])
        elif how == How.FORGET:
            ledger.forget(entry)
        elif how == How.NO_RESULT:
            ledger.end(entry, OutcomeKind.NO_RESULT)
        elif how == How.RELEASE:
            ledger.release(entry)
        elif how == How.EXPIRED:
            ledger.end(entry, OutcomeKind.EXPIRED, counted=False)
        elif how == How.DEAD:
            reason = DeadReason(int(data[0].bytes))
            detail = data[1].bytes.decode(errors="replace")
            was_started = data[2].bytes == b"1"
            ledger.end(entry, OutcomeKind.DEAD, reason=reason, detail=detail, counted=was_started)
        elif how == How.ACK:
            ledger.acknowledge(entry)
        else:
            raise ValueError(f"an unknown end {how!r}")

    def _put(self, session: Session, request: int, frames: list[zmq.Frame]) -> None:
        message = Incoming(
            frames[0].bytes.decode(),
            frames[2].bytes,
            tuple(frame.buffer for frame in frames[3:]),
            wire.to_schedule(frames[1].bytes),
        )
        number = wire.number(request)

        def tell(what: "Ticket | FilesFull | PayloadTooLarge | None") -> None:
            session.puts.pop(request, None)
            if isinstance(what, Exception):
                code = b"full" if isinstance(what, FilesFull) else b"large"
                self._answer(session, [Kind.ERROR + number, code, str(what).encode()])
            else:
                seq = b"" if what is None else wire.number(what.generation)
                self._answer(session, [Kind.DONE + number, seq])

        arrival = Arrival(message, (session.sender, request), tell, of_worker=True)
        session.puts[request] = arrival
        self.accept(arrival)

    def _answer(self, session: Session, frames: "list[Buffer]") -> None:
        self._wire.send([session.identity, *frames])

    def _wait(self, session: Session, request: int, target: str | Ticket) -> None:
        def tell(what: Outcome | UnknownTask) -> None:
            session.waits.pop(request, None)
            self._answer_outcome(session, request, what)

        session.waits[request] = Wait(target, tell, self.ledger.awaited)
        self.wait(session.waits[request])

    def _look(self, session: Session, request: int, target: str | Ticket) -> None:
        what: Outcome | UnknownTask | None
        try:
            what = self.ledger.look(target)
        except UnknownTask as error:
            what = error
        self._answer_outcome(session, request, what)

    def _answer_outcome(
        self, session: Session, request: int, what: Outcome | UnknownTask | None
    ) -> None:
        number = wire.number(request)
        if isinstance(what, UnknownTask):
            self._answer(session, [Kind.ERROR + number, b"unknown", str(what).encode()])
        else:
            self._answer(session, [Kind.OUTCOME + number, *wire.outcome_frames(what)])

    def _cancel(self, session: Session, request: int) -> None:
        wait = session.waits.pop(request, None)
        if wait is not None:
            self.give_up(wait)
        arrival = session.puts.get(request)
        if arrival is not None and self.take_back(arrival):
            arrival.tell(FilesFull("the queue is full"))

    def _leave(self, session: Session) -> None:
        """What it has it keeps until its process ends."""
        self._detach(session)
        if self._sessions.get(session.identity) is session:
            del self._sessions[session.identity]
        self.ledger.forget_sender(session.sender)

    def _detach(self, session: Session) -> None:
        """Nothing goes to it any more; what it has stays its worker's."""
        for seq in session.out:
            self._again.pop(seq, None)
        session.out.clear()
        for wait in session.waits.values():
            self.give_up(wait)
        session.waits.clear()
        session.greeted = False

    # ---- waiting --------------------------------------------------------------------------------

    def wait(self, wait: Wait) -> None:
        """It is told once, at once or later."""
        if not self._told(wait):
            self._waits.setdefault(wait.task_id, []).append(wait)

    def give_up(self, wait: Wait) -> None:
        waits = self._waits.get(wait.task_id)
        if waits is not None and wait in waits:
            waits.remove(wait)
            if not waits:
                del self._waits[wait.task_id]

    def _look_again(self, task_id: str) -> None:
        waits = [wait for wait in self._waits.pop(task_id, ()) if not self._told(wait)]
        if waits:
            self._waits.setdefault(task_id, []).extend(waits)

    def _told(self, wait: Wait) -> bool:
        try:
            what = wait.look(wait.target)
        except UnknownTask as error:
            what = error
        if what is None:
            return False
        wait.tell(what)
        return True

    # ---- deaths ---------------------------------------------------------------------------------

    def _watch(self, worker: str) -> bool:
        """False: it is dead already, and what it had goes to others."""
        if worker in self._watched:
            return True
        try:
            fd = os.pidfd_open(wire.pid_of(worker))
        except OSError:
            fd = -1
        if fd < 0 or not wire.is_alive(worker):
            if fd >= 0:
                os.close(fd)
            self._died(worker)
            return False
        self._watched[worker] = fd
        self._loop.add_reader(fd, self._died, worker)
        return True

    def _died(self, worker: str) -> None:
        fd = self._watched.pop(worker, None)
        if fd is not None:
            self._loop.remove_reader(fd)
            os.close(fd)
        if worker not in self._dying:
            self._dying[worker] = self._loop.call_later(
                _CAUSE_PATIENCE, self._bury, worker, DeathCause(pid=wire.pid_of(worker))
            )

    def gone(
        self,
        cause: DeathCause,
        *,
        explained: bool = False,
        overdue: "tuple[str, ...]" = (),
    ) -> None:
        """The supervisor has reaped a worker, `cause.pid`, and knows how it died."""
        if self._closed:
            return  # the next hub is told, too
        known = {*self._watched, *self._dying, *self.ledger.workers()}
        for worker in known:
            if wire.pid_of(worker) == cause.pid and not wire.is_alive(worker):
                self._died(worker)
                self._bury(worker, cause, explained=explained, overdue=overdue)

    def _bury(
        self,
        worker: str,
        cause: DeathCause,
        *,
        explained: bool = False,
        overdue: "tuple[str, ...]" = (),
    ) -> None:
        self._dying.pop(worker).cancel()
        leaving = self.folder / f"{LEAVING}{cause.pid}"
        if leaving.exists():
            explained = True
            leaving.unlink(missing_ok=True)
        for session in [each for each in self._sessions.values() if each.worker == worker]:
            self._leave(session)
        burial = self.ledger.bury(worker, cause, explained=explained, overdue=overdue)
        _log(cause, burial)
        self.turn_soon()
        if self.on_burial is not None and (burial.dead or burial.lost or burial.timed_out):
            self._loop.call_soon(self.on_burial)  # after the turn that writes them

    def _clear_leftovers(self) -> None:
        """Of workers that had nothing when they left."""
        held = {str(wire.pid_of(worker)) for worker in self.ledger.workers()}
        for file in self.folder.glob(f"{LEAVING}*"):
            pid = file.name.removeprefix(LEAVING)
            if pid not in held and not Path(f"/proc/{pid}").exists():
                file.unlink(missing_ok=True)


def _log(cause: DeathCause, burial: Burial) -> None:
    for ids, what in (
        (burial.redelivered, "go to others"),
        (burial.dead, "are put aside, started as often as allowed"),
        (burial.lost, "are lost, acknowledged before their end"),
        (burial.timed_out, "have ended, out of time"),
    ):
        if ids:
            shown = ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
            logger.warning("pid=%d %s: tasks %s %s", cause.pid, cause, shown, what)


def _load(session: Session) -> int:
    return len(session.out)


def _target(frames: list[zmq.Frame]) -> str | Ticket:
    task_id, seq = frames[0].bytes.decode(), frames[1].bytes
    return Ticket(0, wire.to_number(seq), task_id) if seq else task_id
