"""How messages are taken and run: taskiq's semantics, and every message ends."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from taskiq import (
    Context,
    InMemoryBroker,
    SimpleRetryMiddleware,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.acks import AcknowledgeType
from taskiq.receiver import Receiver
from tests.broker.conftest import Working, broker, working

from taskiq_supervise.broker import SharedMemoryBroker, wait_result
from taskiq_supervise.broker.attachment import Attachment
from taskiq_supervise.ipc import (
    Board,
    BoardWriter,
    DeathCause,
    Lease,
    OutcomeKind,
    QueueStats,
    Role,
    TaskQueue,
)
from taskiq_supervise.worker.receiver import SupervisedReceiver, supervised

__all__ = ["broker", "working"]


async def until(condition: Callable[[], bool]) -> None:
    """One turn of the loop after the other."""
    while not condition():  # noqa: ASYNC110 - there is no event for it; the test has a timeout
        await asyncio.sleep(0)


ALL_ACKS = list(AcknowledgeType)


async def queue_of(broker: SharedMemoryBroker) -> TaskQueue:
    attachment = await broker.attached()
    assert attachment is not None
    return attachment.queue.queue


async def stats(broker: SharedMemoryBroker) -> QueueStats:
    return (await queue_of(broker)).stats()


@pytest.mark.parametrize("ack_type", ALL_ACKS[:3])
async def test_each_acknowledgement_type_ends_with_the_result(
    broker: SharedMemoryBroker, working: Working, ack_type: AcknowledgeType
) -> None:
    @broker.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with working(broker, ack_type=ack_type):
        assert (await (await add.kiq(1, 2)).wait_result(timeout=5)).return_value == 3
        assert (await stats(broker)).running == 0


@pytest.mark.parametrize(
    ("ack_type", "lost"),
    [
        ("when_received", True),
        ("when_executed", False),
        ("when_saved", False),
        ("manual", False),
    ],
)
async def test_only_what_is_acknowledged_is_lost_with_its_worker(
    broker: SharedMemoryBroker, working: Working, ack_type: str, lost: bool
) -> None:
    """Seen from the queue, while the task runs."""
    seen: list[Any] = []

    @broker.task(ack_type=ack_type)
    async def look() -> None:
        queue = await queue_of(broker)
        seen.append(queue.core.counts()[5:7])  # running, acked

    async with working(broker):
        task = await look.kiq()
        if ack_type == "manual":
            await until(lambda: bool(seen))
        else:
            await task.wait_result(timeout=5)
    assert seen == [(0, 1) if lost else (1, 0)]


async def test_a_task_that_acknowledges_by_itself_has_its_result(
    broker: SharedMemoryBroker, working: Working
) -> None:
    @broker.task(ack_type="manual")
    async def own(context: Context = TaskiqDepends()) -> str:
        await context.ack()
        return "done"

    async with working(broker):
        assert (await (await own.kiq()).wait_result(timeout=5)).return_value == "done"


async def test_a_task_that_never_acknowledges_has_no_result_and_goes_back_at_the_end(
    broker: SharedMemoryBroker, working: Working
) -> None:
    ran = asyncio.Event()

    @broker.task(ack_type="manual")
    async def silent() -> None:
        ran.set()

    async with working(broker):
        task = await silent.kiq()
        await ran.wait()
    assert not await task.is_ready()
    assert (await stats(broker)).running == 1
    await broker.shutdown()
    await broker.startup()
    assert (await stats(broker)).ready == 1


async def test_an_acknowledgement_that_comes_late_brings_the_result(
    broker: SharedMemoryBroker, working: Working
) -> None:
    kept: list[Context] = []

    @broker.task(ack_type="manual")
    async def later(context: Context = TaskiqDepends()) -> str:
        kept.append(context)
        return "late"

    async with working(broker) as receiver:
        task = await later.kiq()
        await until(lambda: bool(kept) and not receiver._in_flight)
        assert not await task.is_ready()
        await kept[0].ack()
        assert (await task.wait_result(timeout=5)).return_value == "late"


class Journal(TaskiqMiddleware):
    """Writes down which hooks were called."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks: list[str] = []

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self.hooks.append("pre_send")
        return message

    async def post_send(self, message: TaskiqMessage) -> None:
        self.hooks.append("post_send")

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        self.hooks.append("pre_execute")
        return message

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self.hooks.append("post_execute")

    async def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self.hooks.append("post_save")

    def on_error(
        self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException
    ) -> None:
        self.hooks.append("on_error")


@pytest.mark.parametrize("ack_type", ALL_ACKS[:3])
@pytest.mark.parametrize("fails", [False, True])
async def test_middlewares_are_called_as_by_taskiq(
    broker: SharedMemoryBroker, working: Working, ack_type: AcknowledgeType, fails: bool
) -> None:
    async def work() -> None:
        if fails:
            raise ValueError("no")

    ours, theirs = Journal(), Journal()
    task = broker.with_middlewares(ours).register_task(work, "work")
    async with working(broker, ack_type=ack_type):
        await (await task.kiq()).wait_result(timeout=5)
    reference = InMemoryBroker(await_inplace=True).with_middlewares(theirs)
    await reference.register_task(work, "work").kiq()
    reference.executor.shutdown()
    assert [hook for hook in ours.hooks if hook != "post_send"] == [
        hook for hook in theirs.hooks if hook != "post_send"
    ]


@pytest.mark.parametrize("hook", ["pre_execute", "post_execute", "on_error"])
async def test_a_middleware_that_fails_ends_the_wait_with_its_error(
    broker: SharedMemoryBroker, working: Working, hook: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(f"{hook} failed")

    middleware = type("Failing", (TaskiqMiddleware,), {hook: fail})()
    broker.with_middlewares(middleware)

    @broker.task
    async def work() -> None:
        if hook == "on_error":
            raise ValueError("no")

    async with working(broker):
        result = await (await work.kiq()).wait_result(timeout=5)
        assert str(result.error) == f"{hook} failed"


async def test_an_acknowledgement_type_that_is_none_ends_the_wait_with_an_error(
    broker: SharedMemoryBroker, working: Working
) -> None:
    @broker.task(ack_type="sometimes")
    async def work() -> None:
        return None

    async with working(broker):
        result = await (await work.kiq()).wait_result(timeout=5)
        assert "Invalid ack_type label 'sometimes'" in str(result.error)


@pytest.mark.parametrize("ack_type", ALL_ACKS[:3])
async def test_a_retry_middleware_sends_it_again_under_the_same_id(
    broker: SharedMemoryBroker, working: Working, ack_type: AcknowledgeType
) -> None:
    broker.with_middlewares(SimpleRetryMiddleware())
    runs = []

    @broker.task(retry_on_error=True, max_retries=4)
    async def flaky() -> int:
        runs.append(1)
        if len(runs) < 3:
            raise ValueError("not yet")
        return len(runs)

    async with working(broker, ack_type=ack_type):
        assert (await (await flaky.kiq()).wait_result(timeout=5)).return_value == 3
        assert (await stats(broker)).running == 0


async def test_dependencies_are_resolved_and_closed(
    broker: SharedMemoryBroker, working: Working
) -> None:
    steps = []

    async def session() -> AsyncIterator[str]:
        steps.append("open")
        yield "session"
        steps.append("close")

    @broker.task
    async def work(dep: Any = TaskiqDepends(session), context: Context = TaskiqDepends()) -> str:
        return f"{dep} of {context.message.task_name}"

    async with working(broker):
        result = await (await work.kiq()).wait_result(timeout=5)
        assert result.return_value == f"session of {work.task_name}"
    assert steps == ["open", "close"]


async def test_a_timeout_label_ends_the_task(broker: SharedMemoryBroker, working: Working) -> None:
    @broker.task(timeout=0.01)
    async def long() -> None:
        await asyncio.Event().wait()

    async with working(broker):
        result = await (await long.kiq()).wait_result(timeout=5)
        assert isinstance(result.error, TimeoutError)


async def test_arguments_are_parsed_by_their_annotations(
    broker: SharedMemoryBroker, working: Working
) -> None:
    @broker.task
    async def kind(x: int) -> str:
        return type(x).__name__

    seven: Any = "7"
    async with working(broker):
        assert (await (await kind.kiq(seven)).wait_result(timeout=5)).return_value == "int"
    async with working(broker, validate_params=False):
        assert (await (await kind.kiq(seven)).wait_result(timeout=5)).return_value == "str"


async def test_sync_tasks_run_in_threads_beside_each_other(
    broker: SharedMemoryBroker, working: Working
) -> None:
    together = threading.Barrier(3)

    @broker.task
    def meet() -> int:
        together.wait(5)
        return threading.get_ident()

    async with working(broker):
        tasks = [await meet.kiq() for _ in range(3)]
        idents = {(await task.wait_result(timeout=5)).return_value for task in tasks}
    assert len(idents) == 3
    assert threading.get_ident() not in idents


async def test_no_more_is_taken_than_there_is_room_to_run(
    broker: SharedMemoryBroker, working: Working
) -> None:
    running: list[int] = []
    most: list[int] = []
    go_on = asyncio.Event()

    @broker.task
    async def work() -> None:
        running.append(1)
        most.append(len(running))
        await go_on.wait()
        running.pop()

    async with working(broker, max_async_tasks=3):
        tasks = [await work.kiq() for _ in range(9)]
        await until(lambda: len(running) == 3)
        counted = await stats(broker)
        assert (counted.running, counted.leased, counted.ready) == (3, 0, 6)
        go_on.set()
        for task in tasks:
            await task.wait_result(timeout=5)
    assert max(most) == 3


async def test_listening_ends_after_so_many_tasks(broker: SharedMemoryBroker) -> None:
    @broker.task
    async def work() -> None:
        return None

    await broker.startup()
    for _ in range(5):
        await work.kiq()
    receiver = SupervisedReceiver(broker, run_startup=False, max_tasks_to_execute=2)
    await asyncio.wait_for(receiver.listen(asyncio.Event()), 5)
    assert (await stats(broker)).ready == 3


async def test_draining_finishes_what_runs_and_leaves_the_rest(
    broker: SharedMemoryBroker, working: Working
) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    @broker.task
    async def work(number: int) -> int:
        started.set()
        await go_on.wait()
        return number

    async with working(broker, max_async_tasks=1):
        first, second = await work.kiq(1), await work.kiq(2)
        await started.wait()
        asyncio.get_running_loop().call_soon(go_on.set)
    assert (await first.get_result()).return_value == 1
    assert not await second.is_ready()
    assert (await stats(broker)).ready == 1


async def test_what_was_taken_and_has_not_begun_goes_back_when_draining(
    broker: SharedMemoryBroker,
) -> None:
    waiting, go_on = asyncio.Event(), asyncio.Event()

    class Slow(TaskiqMiddleware):
        async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            waiting.set()
            await go_on.wait()
            return message

    ran = []
    broker.with_middlewares(Slow())

    @broker.task
    async def work() -> None:
        ran.append(1)

    await broker.startup()
    finish = asyncio.Event()
    receiver = SupervisedReceiver(broker, run_startup=False)
    listening = asyncio.create_task(receiver.listen(finish))
    await work.kiq()
    await waiting.wait()
    finish.set()
    await asyncio.sleep(0)
    go_on.set()
    await listening
    assert not ran
    assert (await stats(broker)).ready == 1


async def test_the_board_shows_what_runs_and_counts_what_ran(
    broker: SharedMemoryBroker, working: Working, tmp_path: Any
) -> None:
    board = Board.create(tmp_path / "board", 1, 10)
    go_on = asyncio.Event()

    @broker.task(task_name="shown")
    async def work(fail: bool) -> None:
        await go_on.wait()
        if fail:
            raise ValueError("no")

    async with working(broker) as receiver:
        writer: BoardWriter = board.writer(0)
        writer.reset(os.getpid(), 1)
        receiver.board = writer
        tasks = [await work.kiq(fail) for fail in (False, True, False)]
        await until(lambda: board.read(0).in_flight == 3)
        running = board.read(0).running
        assert {one.task_id for one in running} == {task.task_id for task in tasks}
        assert {(one.task_name, one.attempt) for one in running} == {("shown", 1)}
        go_on.set()
        for task in tasks:
            await task.wait_result(timeout=5)
        view = board.read(0)
        assert (view.in_flight, view.done + view.failed, view.failed) == (0, 3, 1)
    board.close()


def make_suspect(broker: SharedMemoryBroker, task_id: str) -> None:
    """Starts the task in a process that dies of it."""
    pid = os.fork()
    if pid == 0:
        queue = TaskQueue.open("test", role=Role.WORKER)
        lease = queue.claim()
        if lease is not None and lease.task_id == task_id:
            lease.start()
        os._exit(0)
    os.waitpid(pid, 0)
    with TaskQueue.open("test") as queue:
        dead = next(one.index for one in queue.participants() if one.pid == pid)
        burial = queue.recover(dead, DeathCause(pid=pid, signal=9))
    assert burial is None or burial.redelivered == (task_id,)


async def test_a_task_whose_worker_died_runs_alone(
    broker: SharedMemoryBroker, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Attachment.claim

    async def claim_with_a_past(attachment: Attachment) -> Lease:
        lease = await claim(attachment)
        lease.attempt = int(lease.task_id == "suspect")
        return lease

    monkeypatch.setattr(Attachment, "claim", claim_with_a_past)
    running: set[str] = set()
    beside: dict[str, set[str]] = {}
    begun = {name: asyncio.Event() for name in ("first", "second", "suspect", "later")}
    go_on = {name: asyncio.Event() for name in begun}

    @broker.task
    async def work(name: str) -> None:
        beside[name] = set(running)
        running.add(name)
        begun[name].set()
        await go_on[name].wait()
        running.discard(name)

    async with working(broker):
        for name in begun:
            await work.kicker().with_task_id(name).kiq(name)
        await begun["first"].wait()
        await begun["second"].wait()
        go_on["first"].set()
        await wait_result(broker, "first", timeout=5)
        assert not begun["suspect"].is_set()
        go_on["second"].set()
        await begun["suspect"].wait()
        assert not begun["later"].is_set()
        go_on["suspect"].set()
        go_on["later"].set()
        await wait_result(broker, "later", timeout=5)
    assert beside == {"first": set(), "second": {"first"}, "suspect": set(), "later": set()}


async def test_a_task_whose_worker_died_does_not_wait_for_one_that_waits_for_it(
    broker: SharedMemoryBroker, working: Working
) -> None:
    @broker.task
    async def parent() -> Any:
        # The receiver may take it now, and would wait for us.
        return (await wait_result(broker, "child", timeout=5)).return_value

    @broker.task
    async def child() -> Any:
        return (await (await grandchild.kiq()).wait_result(timeout=5)).return_value

    @broker.task
    async def grandchild() -> str:
        return "all the way"

    await broker.startup()
    await child.kicker().with_task_id("child").kiq()
    make_suspect(broker, "child")
    async with working(broker):
        task = await parent.kiq()
        assert (await task.wait_result(timeout=5)).return_value == "all the way"


async def test_a_second_start_is_numbered(
    broker: SharedMemoryBroker, working: Working, tmp_path: Any
) -> None:
    board = Board.create(tmp_path / "board", 1, 10)
    seen: list[Any] = []

    @broker.task
    async def work() -> None:
        seen.extend(one.attempt for one in board.read(0).running)

    await broker.startup()
    task = await work.kicker().with_task_id("suspect").kiq()
    make_suspect(broker, "suspect")
    writer = board.writer(0)
    writer.reset(os.getpid(), 1)
    finish = asyncio.Event()
    receiver = SupervisedReceiver(broker, run_startup=False)
    receiver.board = writer
    listening = asyncio.create_task(receiver.listen(finish))
    await task.wait_result(timeout=5)
    finish.set()
    await listening
    assert seen == [2]
    board.close()


async def test_a_task_that_was_taken_away_is_dropped_quietly(
    broker: SharedMemoryBroker, working: Working
) -> None:
    @broker.task
    async def work() -> int:
        return 1

    async with working(broker) as receiver:

        @broker.task
        async def robbed(context: Context = TaskiqDepends()) -> None:
            delivery = next(iter(receiver._in_flight.values()))
            delivery.lease.release()

        await robbed.kiq()
        assert (await (await work.kiq()).wait_result(timeout=5)).return_value == 1


class Counting(Receiver):
    """Somebody's own receiver."""

    calls = 0

    async def callback(self, message: Any, raise_err: bool = False) -> None:
        Counting.calls += 1
        await super().callback(message, raise_err)


async def test_a_receiver_with_its_own_callback_keeps_it(broker: SharedMemoryBroker) -> None:
    @broker.task
    async def add(a: int, b: int) -> int:
        return a + b

    cls = supervised(Counting)
    assert issubclass(cls, Counting)
    await broker.startup()
    finish = asyncio.Event()
    receiver = cls(broker, run_startup=False)
    listening = asyncio.create_task(receiver.listen(finish))
    assert (await (await add.kiq(1, 2)).wait_result(timeout=5)).return_value == 3
    finish.set()
    await listening
    assert Counting.calls == 1


async def test_other_brokers_are_run_by_taskiqs_way_and_seen_on_the_board(tmp_path: Any) -> None:
    board = Board.create(tmp_path / "board", 1, 10)
    writer = board.writer(0)
    writer.reset(os.getpid(), 1)
    broker = InMemoryBroker(await_inplace=True)
    broker.receiver = SupervisedReceiver(broker, executor=broker.executor)
    broker.receiver.board = writer
    seen: list[Any] = []

    @broker.task(task_name="elsewhere")
    async def work() -> int:
        seen.extend(one.task_name for one in board.read(0).running)
        return 4

    assert (await (await work.kiq()).wait_result()).return_value == 4
    assert seen == ["elsewhere"]
    assert board.read(0).done == 1
    broker.executor.shutdown()
    board.close()


async def test_many_messages_are_each_run_once(
    broker: SharedMemoryBroker, working: Working
) -> None:
    ran: list[int] = []

    @broker.task
    async def work(number: int) -> None:
        ran.append(number)

    async with working(broker):
        tasks = [await work.kiq(number) for number in range(200)]
        for task in tasks:
            await task.wait_result(timeout=5)
    assert sorted(ran) == list(range(200))
    attachment = await broker.attached()
    assert attachment is not None
    outcome = attachment.queue.queue.outcome(tasks[0].task_id)
    assert outcome is not None
    assert outcome.kind is OutcomeKind.RESULT
