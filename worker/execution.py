"""One run of a task's function, which can be ended without taskiq noticing.

To give a running task back to the queue, its code has to stop, with its `finally` blocks, and
nothing else may happen. Cancelling it as usual would do the opposite: taskiq's `run_task` catches
the cancellation like any exception, runs `on_error` (a retry middleware sends the task again),
saves the cancellation as the result and acknowledges. So the function is wrapped: the wrapper lets
the cancellation through the user's code, and then never returns. The process ends soon after.
"""

import asyncio
import inspect
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from types import FrameType
from typing import Any, NoReturn

from taskiq.abc.broker import AsyncBroker
from taskiq.context import Context
from taskiq.message import TaskiqMessage

from taskiq_supervise.broker.delivery import Delivery


class _Stage(Enum):
    BEFORE = auto()
    """Dependencies are being resolved."""
    INSIDE = auto()
    AFTER = auto()
    """Dependencies are being closed, middlewares see the result."""


class Execution:
    """The function to give to `run_task`, and the handle on its run."""

    def __init__(self, target: Callable[..., Any], delivery: Delivery | None) -> None:
        self.original = target
        self._delivery = delivery
        self._stage = _Stage.BEFORE
        self._given_back: asyncio.Future[None] | None = None
        self.is_async = inspect.iscoroutinefunction(target)
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in an asyncio task"
        self.task: asyncio.Task[Any] = task

    @property
    def target(self) -> Callable[..., Any]:
        """A sync function stays as it is: in its thread or process, nothing can end it."""
        return self._run if self.is_async else self.original

    def replace(self, target: Callable[..., Any]) -> None:
        """Run that instead, before it begins."""
        self.original = target
        self.is_async = inspect.iscoroutinefunction(target)

    @property
    def can_give_back(self) -> bool:
        return self.is_async and self._stage is not _Stage.AFTER and self._given_back is None

    @property
    def is_ending(self) -> bool:
        return self._stage is _Stage.AFTER

    @property
    def is_over(self) -> bool:
        """Whatever it still comes to, taskiq must not see it."""
        return self._given_back is not None

    def give_back(self) -> "asyncio.Future[None]":
        """Ends the code of the task; the future is done when its last `finally` block is."""
        self._given_back = asyncio.get_running_loop().create_future()
        if self._delivery is not None:
            self._delivery.given_back = True
        if self._stage is _Stage.INSIDE:
            self.task.cancel()
        else:
            self._given_back.set_result(None)
        return self._given_back

    async def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self._given_back is not None:
            await park()
        self._stage = _Stage.INSIDE
        try:
            return await self.original(*args, **kwargs)
        finally:
            self._stage = _Stage.AFTER
            if self._given_back is not None:
                # A value that the task returned on being cancelled is not what it was asked for.
                if not self._given_back.done():
                    self._given_back.set_result(None)
                await park()


def forget(broker: AsyncBroker, message: TaskiqMessage, frame: FrameType | None) -> None:
    """Lets go of a message that was run, and of the memory of its arguments.

    taskiq keeps the last message for its dependencies. A task's exception is in a cycle with the
    frame of `run_task`, so that both would stay until the next garbage collection.
    """
    if frame is not None:
        with suppress(RuntimeError):  # it was abandoned with its loop, and stands still somewhere
            frame.clear()
    context = broker.custom_dependency_context.get(Context)
    if context is not None and context.message is message:
        del broker.custom_dependency_context[Context]


async def park() -> NoReturn:
    """Until the process ends."""
    while True:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:  # a timeout label, which runs out meanwhile
            continue
