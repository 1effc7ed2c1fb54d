"""Middlewares are called as by taskiq, and one that fails leaves nobody waiting."""

from typing import Any

import pytest
from taskiq import (
    InMemoryBroker,
    SimpleRetryMiddleware,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.acks import AcknowledgeType
from tests.broker.conftest import Working, stats

from taskiq_supervise.broker import SharedMemoryBroker

ENDING = [
    AcknowledgeType.WHEN_RECEIVED,
    AcknowledgeType.WHEN_EXECUTED,
    AcknowledgeType.WHEN_SAVED,
]


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


@pytest.mark.parametrize("ack_type", ENDING)
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


@pytest.mark.parametrize("ack_type", ENDING)
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
