"""When a task runs is what its labels say: not before it is due, not after it has expired."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
from taskiq import (
    Context,
    SimpleRetryMiddleware,
    SmartRetryMiddleware,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.exceptions import NoResultError, SendTaskError
from taskiq.formatters.proxy_formatter import ProxyFormatter
from taskiq.kicker import AsyncKicker
from taskiq.receiver import Receiver
from tests.broker.conftest import SMALL, Working, queue_of, stats

from taskiq_supervise.broker import (
    FrameFormatter,
    InvalidLabelError,
    QueueFullError,
    SharedMemoryBroker,
    TaskDiscardedError,
    TaskExpiredError,
    wait_result,
)
from taskiq_supervise.ipc import Geometry, TaskQueue

SOON = 0.2
"""Seconds. Long enough to see that it was waited for."""
FAR = 1000.0
LATE = 5.0
"""Seconds after which something that is due would have run, on the busiest machine."""


async def pass_time(until: float) -> None:
    """Until this Unix time has passed."""
    await asyncio.sleep(until - time.time() + 0.002)


@pytest.fixture
def when(broker: SharedMemoryBroker) -> Any:
    """A task that returns the time at which it runs."""

    @broker.task(task_name="when")
    async def when() -> float:
        return time.time()

    return when


@pytest.mark.parametrize(
    "labels",
    [
        lambda now: {"delay": SOON},
        lambda now: {"delay": str(SOON)},
        lambda now: {"eta": now + SOON},
        lambda now: {"eta": datetime.fromtimestamp(now + SOON, timezone.utc)},
        lambda now: {"eta": datetime.fromtimestamp(now + SOON).isoformat()},
    ],
)
async def test_a_task_runs_when_it_is_due(
    broker: SharedMemoryBroker, working: Working, when: Any, labels: Callable[[float], Any]
) -> None:
    async with working(broker):
        begin = time.time()
        task = await when.kicker().with_labels(**labels(begin)).kiq()
        assert (await stats(broker)).delayed == 1
        ran = (await task.wait_result(timeout=LATE)).return_value
        assert begin + SOON <= ran < begin + LATE


async def test_an_eta_that_has_passed_is_now(
    broker: SharedMemoryBroker, working: Working, when: Any
) -> None:
    async with working(broker):
        yesterday = datetime.now(timezone.utc) - timedelta(days=1)
        await (await when.kicker().with_labels(eta=yesterday).kiq()).wait_result(timeout=LATE)


async def test_the_higher_priority_runs_first(broker: SharedMemoryBroker, working: Working) -> None:
    ran: list[int | None] = []

    @broker.task
    async def work(priority: int | None) -> None:
        ran.append(priority)

    await broker.startup()
    tasks = []
    for priority in (0, 4, 9, None, 6):
        labels = {} if priority is None else {"priority": priority}
        tasks.append(await work.kicker().with_labels(**labels).kiq(priority))
    async with working(broker, max_async_tasks=1):
        for task in tasks:
            await task.wait_result(timeout=LATE)
    assert ran == [9, 6, None, 4, 0]


@pytest.mark.parametrize(
    "labels",
    [
        {"priority": 42},
        {"priority": "urgent"},
        {"delay": -1},
        {"delay": math.nan},
        {"eta": "tomorrow"},
        {"eta": "2030-01-01", "delay": 5},
        {"expires": -1},
        {"delay": 10, "expires": 5},
        {"max_deliveries": 0},
        {"kiq_timeout": -1},
    ],
)
async def test_labels_that_make_no_sense_are_refused_by_kiq(
    broker: SharedMemoryBroker, when: Any, labels: dict[str, Any]
) -> None:
    await broker.startup()
    with pytest.raises(InvalidLabelError, match=f"the label ({'|'.join(labels)}) is "):
        await when.kicker().with_labels(**labels).kiq()
    broken = broker.task(task_name="broken", **labels)(when.original_func)
    with pytest.raises(InvalidLabelError):
        await broken.kiq()
    with pytest.raises(SendTaskError) as caught:
        await AsyncKicker("when", broker, labels).kiq()
    assert isinstance(caught.value.__cause__, InvalidLabelError)
    assert (await stats(broker)).free == SMALL.slots


# --- expiry --------------------------------------------------------------------------------------


async def test_a_task_that_expired_is_not_run_and_its_client_learns_it(
    broker: SharedMemoryBroker, working: Working
) -> None:
    ran: list[str] = []

    @broker.task
    async def work(name: str) -> None:
        ran.append(name)

    await broker.startup()
    late = await work.kicker().with_labels(expires=0.05).kiq("late")
    past = await work.kicker().with_labels(expires="2020-01-01T00:00Z").kiq("past")
    good = await work.kicker().with_labels(expires=FAR).kiq("good")
    await pass_time(time.time() + 0.05)
    async with working(broker):
        assert not (await good.wait_result(timeout=LATE)).is_err
        for task in (late, past):
            error = (await task.wait_result(timeout=LATE)).error
            assert isinstance(error, TaskExpiredError)
            assert str(error) == (
                f"{work.task_name} was not run: it had expired before a worker could start it"
            )
            assert isinstance((await wait_result(broker, task.task_id)).error, TaskExpiredError)
    assert ran == ["good"]


async def test_what_runs_does_not_expire(broker: SharedMemoryBroker, working: Working) -> None:
    expires: list[float] = []

    @broker.task
    async def work() -> str:
        await pass_time(expires[0])
        return "done"

    async with working(broker):
        expires.append(time.time() + SOON)
        task = await work.kicker().with_labels(expires=expires[0]).kiq()
        assert (await task.wait_result(timeout=LATE)).return_value == "done"


class Slow(TaskiqMiddleware):
    """Holds a task that was taken until it has expired."""

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        await pass_time(datetime.fromisoformat(message.labels["expires"]).timestamp())
        return message


async def test_what_expires_between_its_taking_and_its_start_is_left_quietly(
    broker: SharedMemoryBroker, working: Working, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    broker.with_middlewares(Slow())
    ran: list[int] = []

    @broker.task
    async def work() -> None:
        ran.append(1)

    async with working(broker):
        task = await work.kicker().with_labels(expires=SOON).kiq()
        error = (await task.wait_result(timeout=LATE)).error
        assert isinstance(error, TaskExpiredError)
    assert not ran
    ours = [one for one in caplog.records if task.task_id in one.message]
    assert {one.levelname for one in ours} <= {"INFO"}
    assert any("has expired" in one.message for one in ours)


async def test_taskiqs_own_receiver_is_not_given_what_has_expired(
    broker: SharedMemoryBroker, when: Any
) -> None:
    await broker.startup()
    expired = await when.kicker().with_labels(expires=0.01).kiq()
    await pass_time(time.time() + 0.01)
    finish = asyncio.Event()
    listening = asyncio.create_task(Receiver(broker, run_startup=False).listen(finish))
    assert not (await (await when.kiq()).wait_result(timeout=LATE)).is_err
    error = (await expired.wait_result(timeout=LATE)).error
    assert isinstance(error, TaskExpiredError)
    finish.set()
    await listening


async def test_who_waits_for_a_task_that_is_discarded_learns_it(
    broker: SharedMemoryBroker, when: Any
) -> None:
    await broker.startup()
    task = await when.kicker().with_labels(delay=FAR).kiq()
    waiting = asyncio.create_task(task.wait_result(timeout=LATE))
    await asyncio.sleep(0)
    queue = await queue_of(broker)
    assert queue.discard(queue.find(task.task_id))
    error = (await waiting).error
    assert isinstance(error, TaskDiscardedError)
    assert str(error).startswith("when was not run: it was taken out of the queue")


# --- sent again ----------------------------------------------------------------------------------


def failing_twice(broker: SharedMemoryBroker) -> tuple[Any, list[float]]:
    runs: list[float] = []

    @broker.task(retry_on_error=True)
    async def flaky() -> None:
        runs.append(time.time())
        if len(runs) < 3:
            raise ValueError("not yet")

    return flaky, runs


@pytest.mark.parametrize("formatter", [FrameFormatter, ProxyFormatter])
async def test_a_retry_of_a_delayed_task_is_not_delayed_again(
    broker: SharedMemoryBroker, working: Working, formatter: Any
) -> None:
    broker.with_formatter(formatter(broker))
    broker.with_middlewares(SimpleRetryMiddleware(default_retry_count=5))
    flaky, runs = failing_twice(broker)
    delay = 1.0
    async with working(broker):
        begin = time.time()
        task = await flaky.kicker().with_labels(delay=delay, expires=FAR).kiq()
        assert not (await task.wait_result(timeout=2 * LATE)).is_err
    assert runs[0] - begin >= delay
    assert runs[2] - runs[0] < delay


class OwnRetry(TaskiqMiddleware):
    """Somebody's own middleware, which adds no label that is known here."""

    async def on_error(
        self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException
    ) -> None:
        kicker: AsyncKicker[..., Any] = AsyncKicker(
            message.task_name, self.broker, {**message.labels, "again": "yes"}
        )
        await kicker.with_task_id(message.task_id).kiq(*message.args, **message.kwargs)
        result.error = NoResultError()


async def test_a_retry_by_an_unknown_middleware_is_not_delayed_again(
    broker: SharedMemoryBroker, working: Working
) -> None:
    broker.with_middlewares(OwnRetry())
    flaky, runs = failing_twice(broker)
    async with working(broker):
        task = await flaky.kicker().with_labels(delay=1.0).kiq()
        assert not (await task.wait_result(timeout=2 * LATE)).is_err
    assert runs[2] - runs[0] < 1.0


@pytest.mark.parametrize("labels", [{}, {"delay": 0.1}, {"delay": 0.3}])
async def test_smart_retries_wait_as_their_middleware_says(
    broker: SharedMemoryBroker, working: Working, labels: dict[str, Any]
) -> None:
    broker.with_middlewares(SmartRetryMiddleware(default_retry_count=5, default_delay=0.1))
    flaky, runs = failing_twice(broker)
    delay = labels.get("delay", 0.1)
    async with working(broker):
        begin = time.time()
        task = await flaky.kicker().with_labels(**labels).kiq()
        assert not (await task.wait_result(timeout=LATE)).is_err
    assert all(b - a >= delay for a, b in pairwise(runs))
    assert runs[0] - begin >= labels.get("delay", 0)


async def test_a_retry_after_the_task_has_expired_is_an_error_that_says_so(
    broker: SharedMemoryBroker, working: Working
) -> None:
    broker.with_middlewares(SmartRetryMiddleware(default_retry_count=5, default_delay=2 * SOON))
    flaky, runs = failing_twice(broker)
    async with working(broker):
        task = await flaky.kicker().with_labels(expires=SOON).kiq()
        assert isinstance((await task.wait_result(timeout=LATE)).error, TaskExpiredError)
    assert len(runs) == 1


async def test_a_requeued_task_is_not_delayed_again(
    broker: SharedMemoryBroker, working: Working
) -> None:
    runs: list[float] = []

    @broker.task
    async def again(context: Context = TaskiqDepends()) -> str:
        runs.append(time.time())
        if len(runs) < 3:
            await context.requeue()
        return str(context.message.labels["delay"])

    async with working(broker):
        task = await again.kicker().with_labels(delay=1.0, priority=9).kiq()
        result = await task.wait_result(timeout=2 * LATE)
        assert not result.is_err
        assert float(result.labels["delay"]) == 1.0
    assert runs[2] - runs[0] < 1.0


# --- room and results ----------------------------------------------------------------------------


async def test_how_long_kiq_waits_for_room_can_be_said_for_one_task() -> None:
    small = Geometry(slots=64, participants=64, blocks=((1024, 64),))
    broker = SharedMemoryBroker("full", geometry=small)

    @broker.task
    async def nothing() -> None:
        return None

    async with broker:
        begin = time.perf_counter()

        async def fill() -> None:
            while True:
                await nothing.kicker().with_labels(kiq_timeout=0.02).kiq()

        with pytest.raises(QueueFullError, match=r"was full for 0\.02 s"):
            await fill()
        with pytest.raises(QueueFullError):
            await nothing.kicker().with_labels(kiq_timeout=0).kiq()
        assert time.perf_counter() - begin < LATE
        broker.kiq_timeout = 0.01
        endless = nothing.kicker().with_labels(kiq_timeout=math.inf)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(endless.kiq(), 0.2)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["kiq_timeout", "result_ttl"])
def test_seconds_that_are_none_are_refused(name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} is .* seconds"):
        SharedMemoryBroker(**options)


async def test_how_long_results_stay_is_said_once_for_the_queue() -> None:
    async with SharedMemoryBroker("ttl", geometry=SMALL, result_ttl=7.5):
        async with SharedMemoryBroker("ttl", geometry=SMALL):
            with TaskQueue.open("ttl") as queue:
                assert queue.result_ttl == 7.5
        async with SharedMemoryBroker("ttl", geometry=SMALL, result_ttl=0):
            with TaskQueue.open("ttl") as queue:
                assert queue.result_ttl == 0
