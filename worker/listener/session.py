"""One client of our server: what it has put and asked, and what it is told.

A session outlives its connection: a client that comes again, says the same id and goes on from the
last number that the queue has accepted from it. Of what a connection has not been told nothing is
kept: the client sends it again, and asks again.
"""

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Protocol

from taskiq_supervise.broker.labels import Schedule
from taskiq_supervise.broker.zeromq.protocol import (
    Accepted,
    AllAccepted,
    Code,
    Ended,
    Failed,
    FromListener,
    Progress,
    Put,
    Refused,
    Wait,
    encode_from_listener,
)
from taskiq_supervise.ipc import (
    DEFAULT_PRIORITY,
    Outcome,
    PayloadTooLarge,
    QueueError,
    SegmentError,
    Ticket,
    UnknownTask,
)
from taskiq_supervise.worker.listener.intake import Incoming, Intake
from taskiq_supervise.worker.listener.router import Sent

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from taskiq_supervise.worker.listener.gate import Limits

logger = logging.getLogger("taskiq_supervise.listener")

TURN = 64
"""Puts of one client, before others get theirs."""
PAUSE = 0.1
"""Seconds until another attempt when this process is short of descriptors or memory."""

_PLAIN = Schedule()
_TAKEN_BACK = "its client has taken it back"


class House(Protocol):
    """What a session may ask of the server."""

    intake: Intake
    limits: "Limits"
    waits: int
    """Outcomes that are waited for by all clients."""

    def post(self, session: "Session", frames: "list[Buffer]") -> Sent:
        """Sends to the session's client. GONE and FULL: see Router."""
        ...

    def left(self, route: bytes) -> None:
        """This connection is nobody's any more: who speaks on it is asked who it is."""
        ...

    def accepted(self) -> None:
        """The queue has taken a message."""
        ...

    def fail(self, error: BaseException) -> None:
        """Nothing can be put or asked any more."""
        ...

    def complain(self, text: str) -> None:
        """For the log; only some of many get there."""
        ...

    def retry_soon(self) -> None:
        """An outcome could not be read or sent now: call retry() later."""
        ...


class FloodError(Exception):
    """The client has sent more than it was told that it may."""


class Session:
    """What is known of one client.

    Attributes:
        route: the name of its connection; None: it has none that is good.
        window_bytes: what was promised to it.
        heard: when it spoke last, on the loop's clock.
        spoken: something was sent to it since the last heartbeat.
    """

    def __init__(self, house: House, client: bytes, window_bytes: int, now: float) -> None:
        self.client = client
        self.route: bytes | None = None
        self.window_bytes = window_bytes
        self.heard = now
        self.spoken = False
        self._house = house
        self._loop = asyncio.get_running_loop()
        self._backlog: deque[tuple[Put, int]] = deque()
        self._bytes = 0
        self._pump: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._pumped: deque[tuple[Put, int]] | None = None
        """The backlog that the pump empties; None: it has ended."""
        self._taken_back: deque[int] = deque()
        self._waits: dict[int, asyncio.Task[None]] = {}
        self._postponed: dict[int, str | Ticket] = {}
        self._unheard: set[int] = set()
        """Refused, and its client has not said that it knows."""
        self._news = asyncio.Event()
        """It has said so."""
        self._accepted: list[Accepted] = []
        """What it is told next, all at once."""

    # --- the connection ----------------------------------------------------------------------

    def connect(self, route: bytes) -> int:
        """It has (another) connection. Returns the last number that it need not send again."""
        self.disconnect()
        self.route = route
        return self._house.intake.last_from(self.client)

    def disconnect(self) -> None:
        """Nothing goes to its connection any more; what has not been put yet is dropped."""
        if self.route is not None:
            self._house.left(self.route)
            self.route = None
        self._stop_pump()
        self._backlog = deque()
        self._bytes = 0
        self._accepted = []
        self._taken_back.clear()
        self._unheard.clear()
        self._house.waits -= len(self._waits) + len(self._postponed)
        for wait in self._waits.values():
            wait.cancel()
        self._waits.clear()
        self._postponed.clear()

    @property
    def is_busy(self) -> bool:
        """It has something that is not done."""
        return bool(self._backlog or self._waits or self._postponed)

    def tell(self, message: FromListener) -> Sent:
        """Sends something that the client counts on: one who cannot take it has to come again."""
        self._tell_accepted()
        if self.route is None:
            return Sent.GONE
        sent = self._house.post(self, encode_from_listener(message))
        if sent is not Sent.YES:
            self.disconnect()
        self.spoken = True
        return sent

    def _tell_accepted_soon(self, answer: Accepted) -> None:
        """With those that are accepted in the same turn: a message for each would cost more than
        all else about a put."""
        if not self._accepted:
            self._loop.call_soon(self._tell_accepted)
        self._accepted.append(answer)

    def _tell_accepted(self) -> None:
        answers, self._accepted = self._accepted, []
        if answers:
            self.tell(answers[0] if len(answers) == 1 else AllAccepted(tuple(answers)))

    # --- puts --------------------------------------------------------------------------------

    def put(self, message: Put, size: int) -> None:
        """Its turn comes after those before it. Raises FloodError: beyond the window."""
        backlog = self._backlog
        if backlog:
            limits = self._house.limits
            if len(backlog) >= limits.window:
                raise FloodError(f"more than {limits.window} messages are under way")
            if self._bytes + size > self.window_bytes:
                raise FloodError(f"more than {self.window_bytes} bytes are under way")
        backlog.append((message, size))
        self._bytes += size
        if self._pumped is not backlog:
            self._start_pump(backlog)

    def take_back(self, number: int) -> None:
        """It shall not be put any more. Answered with what has become of it, unless it has been
        answered already.

        That refusal need not be heard: who has given a message up takes nothing for an acceptance.
        """
        backlog = self._backlog
        index = next((i for i, (put, _) in enumerate(backlog) if put.number == number), None)
        if index is None:
            return
        self._bytes -= backlog[index][1]
        if index:
            del backlog[index]
            self.tell(Refused(number, Code.TAKEN_BACK, _TAKEN_BACK))
        else:
            self._stop_pump()
            self._taken_back.append(number)
            self._backlog = deque(backlog)
            self._backlog.popleft()
            self._start_pump(self._backlog)

    def refuse(self, refusal: Refused) -> None:
        """This message can never be put.

        Raises FloodError: its client was told of as many as it may have under way, and is silent.
        """
        if len(self._unheard) >= self._house.limits.window:
            raise FloodError(f"{len(self._unheard)} refusals are not confirmed")
        self._refuse(refusal)

    def _refuse(self, refusal: Refused) -> None:
        """Those behind it have to wait until its client knows. With one of them in the queue, and
        this process killed, the client would be told a higher number and take that for a yes."""
        self._unheard.add(refusal.number)
        self.tell(refusal)

    def heard_of(self, number: int) -> None:
        """Its client knows that this one is refused."""
        self._unheard.discard(number)
        self._news.set()

    def _start_pump(self, backlog: deque[tuple[Put, int]]) -> None:
        self._pumped = backlog
        self._pump = self._loop.create_task(self._run_pump(backlog, tuple(self._ending)))

    def _stop_pump(self) -> None:
        pump = self._pump
        if pump is not None and not pump.done():
            pump.cancel()
            self._ending.add(pump)
            pump.add_done_callback(self._ending.discard)

    async def _run_pump(
        self, backlog: deque[tuple[Put, int]], ending: tuple[asyncio.Task[None], ...]
    ) -> None:
        """ending: pumps that were told to. The queue takes one message of a client at a time."""
        try:
            if ending:
                await asyncio.wait(ending)
            if self._backlog is backlog:
                self._answer_taken_back()
            await self._put_all(backlog)
        finally:
            if self._pumped is backlog:
                self._pumped = None

    def _answer_taken_back(self) -> None:
        """Those whose turn it was, now that nobody tries to put them any more."""
        while self._taken_back:
            number = self._taken_back.popleft()
            if self._house.intake.last_from(self.client) >= number:
                self.tell(Accepted(number))
            else:
                self.tell(Refused(number, Code.TAKEN_BACK, _TAKEN_BACK))

    async def _put_all(self, backlog: deque[tuple[Put, int]]) -> None:
        turn = 0
        while backlog and self._backlog is backlog:
            message, size = backlog[0]  # it is under way until it is in the queue
            if self._unheard and message.number > min(self._unheard):
                self._news.clear()
                await self._news.wait()
                continue
            await self._put(message, backlog)
            if self._backlog is not backlog:
                return  # what is left in it is not wanted here any more
            backlog.popleft()
            self._bytes -= size
            turn += 1
            if turn % TURN == 0:
                await asyncio.sleep(0)

    async def _put(self, put: Put, backlog: deque[tuple[Put, int]]) -> None:
        house = self._house
        number = put.number
        message = Incoming(put.task_id, put.payload, put.buffers, _schedule(put))
        answer: Accepted | Refused
        try:
            ticket = await self._accept(message, number)
        except PayloadTooLarge as error:
            answer = Refused(number, Code.TOO_LARGE, str(error))
        except SegmentError as error:
            house.fail(error)
            return
        except QueueError as error:
            answer = Refused(number, Code.INVALID, str(error))
        except Exception as error:
            logger.exception("Message %s cannot be put", put.task_id)
            answer = Refused(number, Code.INVALID, str(error))
        else:
            if ticket is None:
                answer = Accepted(number)
            else:
                answer = Accepted(number, ticket.slot, ticket.generation)
                house.accepted()
        if self._backlog is not backlog:
            return
        if isinstance(answer, Refused):
            self._refuse(answer)
        else:
            self._tell_accepted_soon(answer)

    async def _accept(self, message: Incoming, number: int) -> Ticket | None:
        while True:
            try:
                return await self._house.intake.accept(message, (self.client, number))
            except OSError as error:
                # This process is short of something; that passes, and the client has time.
                self._house.complain(f"Task {message.task_id} cannot be put yet: {error}")
                await asyncio.sleep(PAUSE)

    async def end_puts(self) -> None:
        """Returns when nothing is being put."""
        pumps = self._ending if self._pump is None else {*self._ending, self._pump}
        if pumps:
            await asyncio.wait(pumps)

    # --- questions ---------------------------------------------------------------------------

    def wait(self, message: Wait) -> None:
        """Its outcome is pushed as soon as it is there."""
        house, limits = self._house, self._house.limits
        request = message.request
        self.cancel(request)
        if (
            len(self._waits) + len(self._postponed) >= limits.waits
            or house.waits >= limits.total_waits
        ):
            text = f"this client, or all of them together, wait for {house.waits} outcomes already"
            self.tell(Failed(request, Code.TOO_MANY, text))
            return
        house.waits += 1
        self._waits[request] = self._loop.create_task(self._wait(request, message.target))

    async def _wait(self, request: int, target: str | Ticket) -> None:
        try:
            outcome = await self._house.intake.wait(target)
        except OSError as error:
            self._end_wait(request)
            self._postpone(request, target, error)
        except Exception as error:
            self._end_wait(request)
            self._fail(request, error)
        else:
            self._end_wait(request)
            self._push(request, target, outcome)

    def _end_wait(self, request: int) -> None:
        del self._waits[request]
        self._house.waits -= 1

    def cancel(self, request: int) -> None:
        """It does not want that outcome any more."""
        wait = self._waits.pop(request, None)
        if wait is not None:
            wait.cancel()
            self._house.waits -= 1
        elif self._postponed.pop(request, None) is not None:
            self._house.waits -= 1

    def look(self, request: int, target: str | Ticket) -> None:
        """Answers with the outcome, or that there is none yet."""
        try:
            outcome = self._house.intake.look(target)
        except OSError as error:
            self._postpone(request, target, error)
            return
        except Exception as error:
            self._fail(request, error)
            return
        if outcome is None:
            self.tell(Failed(request, Code.NOT_READY, "the task has not ended"))
        else:
            self._push(request, target, outcome)

    def progress(self, request: int, task_id: str) -> None:
        """Answers with what the task has said of its progress."""
        try:
            progress = self._house.intake.progress(task_id)
        except Exception as error:
            self._fail(request, error)
            return
        if progress is None:
            self.tell(Progress(request))
        else:
            state = getattr(progress.state, "value", progress.state)
            self.tell(Progress(request, state, progress.meta))

    def _fail(self, request: int, error: Exception) -> None:
        if isinstance(error, SegmentError):
            self._house.fail(error)
        if not isinstance(error, UnknownTask):
            logger.error("A question of a client has no answer", exc_info=error)
        self.tell(Failed(request, Code.UNKNOWN, str(error)))

    # --- outcomes that are sent --------------------------------------------------------------

    def _push(self, request: int, target: str | Ticket, outcome: Outcome) -> None:
        """To a client that does not read, later: its outcome stays in the queue until then."""
        if self.route is None:
            return
        sent = self._house.post(self, encode_from_listener(Ended(request, outcome)))
        if sent is Sent.FULL:
            self._postpone(request, target)
        elif sent is Sent.GONE:
            self.disconnect()
        self.spoken = True

    def _postpone(self, request: int, target: str | Ticket, error: OSError | None = None) -> None:
        if error is not None:
            self._house.complain(f"An outcome cannot be read yet: {error}")
        self._postponed[request] = target
        self._house.waits += 1
        self._house.retry_soon()

    def retry(self) -> None:
        """Sends what could not be sent before, as far as the client has read meanwhile."""
        for request, target in list(self._postponed.items()):
            if self._postponed.pop(request, None) is None:
                return  # the client is gone
            self._house.waits -= 1
            self.look(request, target)
            if request in self._postponed:
                return


def _schedule(put: Put) -> Schedule:
    if (
        put.priority == DEFAULT_PRIORITY
        and put.due is None
        and put.expires is None
        and not put.max_deliveries
    ):
        return _PLAIN
    return Schedule(put.priority, put.due, put.expires, put.max_deliveries)
