"""A broker that is not ours, listened to once: nothing doubled, acknowledged when it is time."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from taskiq import AckableMessage, AsyncBroker, InMemoryBroker, TaskiqEvents
from taskiq.message import BrokerMessage

from taskiq_supervise.ipc import Outcome, PayloadTooLarge, Ticket
from taskiq_supervise.worker.listener import foreign
from taskiq_supervise.worker.listener.foreign import ROOM, ForeignSource, ListeningEnded
from taskiq_supervise.worker.listener.intake import Ending, Incoming
from taskiq_supervise.worker.listener.settling import UNNAMED

PATIENCE = 20.0


class Wire(AsyncBroker):
    """Yields what a test hands to it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: asyncio.Queue[bytes | AckableMessage | None] = asyncio.Queue()
        self.with_result_backend(InMemoryBroker().result_backend)

    async def kick(self, message: BrokerMessage) -> None:
        self.messages.put_nowait(message.message)

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        while (message := await self.messages.get()) is not None:
            yield message


class Basin:
    """An intake that keeps what it gets; tasks end when the test says so."""

    def __init__(self) -> None:
        self.accepted: list[Incoming] = []
        self.ended = asyncio.Event()
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.news = asyncio.Event()

    async def accept(
        self, message: Incoming, sender: tuple[bytes, int] | None = None
    ) -> Ticket | None:
        await self.is_open.wait()
        if message.size > 10_000:
            raise PayloadTooLarge("it is too large")
        self.accepted.append(message)
        self.news.set()
        return Ticket(len(self.accepted), 1, message.task_id)

    async def acknowledged(self, target: str | Ticket) -> None:
        await self.ended.wait()

    def last_from(self, sender: bytes) -> int:
        raise NotImplementedError

    async def wait(self, target: str | Ticket) -> Outcome:
        raise NotImplementedError

    def look(self, target: str | Ticket) -> Outcome | None:
        raise NotImplementedError

    def progress(self, task_id: str) -> Any:
        raise NotImplementedError

    def endings(self) -> list[Ending]:
        return []

    def settle(self, ending: Ending) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        return

    async def has(self, count: int) -> None:
        while len(self.accepted) < count:
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), PATIENCE)

    @property
    def ids(self) -> list[str]:
        return [message.task_id for message in self.accepted]


@pytest.fixture
def wire() -> Wire:
    wire = Wire()

    @wire.task("task")
    async def task(*_arguments: Any) -> None:
        return

    return wire


def message_of(wire: Wire, task_id: str, *arguments: Any) -> bytes:
    kicker = wire.find_task("task")
    assert kicker is not None
    message = kicker.kicker().with_task_id(task_id)._prepare_message(*arguments)
    return wire.formatter.dumps(message).message


async def running(source: ForeignSource, basin: Basin) -> "asyncio.Task[None]":
    await source.open()
    source.begin(basin)
    return asyncio.create_task(source.run())


async def ending(source: ForeignSource, run: "asyncio.Task[None]") -> None:
    await source.finish()
    await asyncio.wait_for(run, PATIENCE)
    await source.close()


async def soon(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it has not come true")


async def test_messages_are_put_in_their_order(wire: Wire, tmp_path: Path) -> None:
    basin, source = Basin(), ForeignSource(wire, 10, tmp_path)
    run = await running(source, basin)
    for number in range(200):
        wire.messages.put_nowait(message_of(wire, f"id-{number}"))
    await basin.has(200)
    await ending(source, run)
    assert basin.ids == [f"id-{number}" for number in range(200)]
    assert source.received == 200


async def test_what_arrives_before_the_baton_is_kept_and_what_was_put_is_left_out(
    wire: Wire, tmp_path: Path
) -> None:
    first, second, basin = ForeignSource(wire, 10, tmp_path), Wire(), Basin()
    run = await running(first, basin)
    successor = ForeignSource(second, 10, tmp_path)
    await successor.open()
    both = [message_of(wire, f"id-{number}") for number in range(5)]
    for message in both[:3]:
        wire.messages.put_nowait(message)
    for message in both:
        second.messages.put_nowait(message)
    await basin.has(3)
    await soon(second.messages.empty)
    await ending(first, run)
    successor.begin(basin)
    run = asyncio.create_task(successor.run())
    await basin.has(5)
    await ending(successor, run)
    assert basin.ids == [f"id-{number}" for number in range(5)]


async def test_the_same_bytes_sent_again_are_another_message(wire: Wire, tmp_path: Path) -> None:
    """As those of a task whose id is always the same, now and after a restart."""
    basin = Basin()
    for _ in range(2):
        source = ForeignSource(wire, 10, tmp_path)
        run = await running(source, basin)
        for _ in range(3):
            wire.messages.put_nowait(message_of(wire, "nightly"))
        await basin.has(3)
        await ending(source, run)
        assert basin.ids == ["nightly"] * 3
        basin.accepted.clear()


async def test_of_the_same_bytes_so_many_are_left_out_as_were_put(
    wire: Wire, tmp_path: Path
) -> None:
    first, second, basin = ForeignSource(wire, 10, tmp_path), Wire(), Basin()
    run = await running(first, basin)
    wire.messages.put_nowait(message_of(wire, "nightly"))  # before there was anybody else
    await basin.has(1)
    successor = ForeignSource(second, 10, tmp_path)
    await successor.open()
    wire.messages.put_nowait(message_of(wire, "nightly"))
    for _ in range(3):
        second.messages.put_nowait(message_of(wire, "nightly"))
    await basin.has(2)
    await ending(first, run)
    successor.begin(basin)
    run = asyncio.create_task(successor.run())
    await soon(lambda: successor.received == 2)
    await ending(successor, run)
    assert basin.ids == ["nightly"] * 4


async def test_after_the_hand_over_nothing_is_taken_for_a_copy(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "GRACE", -1.0)
    first, second, basin = ForeignSource(wire, 10, tmp_path), Wire(), Basin()
    run = await running(first, basin)
    successor = ForeignSource(second, 10, tmp_path)
    await successor.open()
    wire.messages.put_nowait(message_of(wire, "nightly"))
    await basin.has(1)
    await ending(first, run)
    successor.begin(basin)
    run = asyncio.create_task(successor.run())
    second.messages.put_nowait(message_of(wire, "nightly"))
    await basin.has(2)
    await ending(successor, run)


async def test_what_was_acknowledged_may_be_sent_again(wire: Wire, tmp_path: Path) -> None:
    basin, source, acks = Basin(), ForeignSource(wire, 10, tmp_path), list[int]()
    basin.ended.set()
    run = await running(source, basin)
    for number in range(2):
        ack = lambda number=number: acks.append(number)  # noqa: E731
        wire.messages.put_nowait(AckableMessage(data=message_of(wire, "nightly"), ack=ack))
        await soon(lambda number=number: acks == [*range(number + 1)])  # type: ignore[misc]
    await ending(source, run)
    assert basin.ids == ["nightly"] * 2


async def test_a_full_queue_has_the_broker_wait(wire: Wire, tmp_path: Path) -> None:
    basin, source = Basin(), ForeignSource(wire, 10, tmp_path)
    basin.is_open.clear()
    run = await running(source, basin)
    for number in range(ROOM + 10):
        wire.messages.put_nowait(message_of(wire, f"id-{number}"))
    await soon(lambda: wire.messages.qsize() == 9)  # one is being put
    for _ in range(100):
        await asyncio.sleep(0)
    assert wire.messages.qsize() == 9
    basin.is_open.set()
    await basin.has(ROOM + 10)
    await ending(source, run)


async def test_a_message_is_acknowledged_after_its_task_was(wire: Wire, tmp_path: Path) -> None:
    basin, source, acks = Basin(), ForeignSource(wire, 10, tmp_path), list[str]()
    run = await running(source, basin)
    wire.messages.put_nowait(
        AckableMessage(data=message_of(wire, "a"), ack=lambda: acks.append("a"))
    )
    await basin.has(1)
    for _ in range(100):
        await asyncio.sleep(0)
    assert acks == []
    basin.ended.set()
    await soon(lambda: acks == ["a"])
    await ending(source, run)


async def test_who_is_given_the_same_again_acknowledges_it_and_puts_nothing(
    wire: Wire, tmp_path: Path
) -> None:
    basin, source, acks = Basin(), ForeignSource(wire, 10, tmp_path), list[int]()
    run = await running(source, basin)
    for number in range(2):
        ack = lambda number=number: acks.append(number)  # noqa: E731
        wire.messages.put_nowait(AckableMessage(data=message_of(wire, "a"), ack=ack))
    await basin.has(1)
    basin.ended.set()
    await soon(lambda: acks == [0, 1])
    await ending(source, run)
    assert basin.ids == ["a"]


async def test_so_many_may_be_unacknowledged_at_a_time(wire: Wire, tmp_path: Path) -> None:
    basin, source, acks = Basin(), ForeignSource(wire, 3, tmp_path), list[int]()
    run = await running(source, basin)
    for number in range(6):
        ack = lambda number=number: acks.append(number)  # noqa: E731
        wire.messages.put_nowait(AckableMessage(data=message_of(wire, f"id-{number}"), ack=ack))
    await basin.has(4)  # the fourth is put, and waits for its turn to be waited for
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(basin.accepted) == 4
    basin.ended.set()
    await soon(lambda: len(acks) == 6)
    await ending(source, run)


async def test_what_cannot_be_parsed_is_put_for_a_worker_to_see(wire: Wire, tmp_path: Path) -> None:
    basin, source = Basin(), ForeignSource(wire, 10, tmp_path)
    run = await running(source, basin)
    wire.messages.put_nowait(b"nonsense")
    await basin.has(1)
    await ending(source, run)
    assert basin.ids[0].startswith(UNNAMED)
    assert basin.accepted[0].payload == b"nonsense"


async def test_what_the_queue_cannot_hold_is_an_error_for_who_waits(
    wire: Wire, tmp_path: Path
) -> None:
    basin, source, acks = Basin(), ForeignSource(wire, 10, tmp_path), list[str]()
    run = await running(source, basin)
    data = message_of(wire, "large", "x" * 20_000)
    wire.messages.put_nowait(AckableMessage(data=data, ack=lambda: acks.append("large")))
    await soon(lambda: acks == ["large"])
    result = await wire.result_backend.get_result("large")
    assert "too large" in str(result.error)
    await ending(source, run)


async def test_an_end_that_nobody_asked_for_is_an_error(wire: Wire, tmp_path: Path) -> None:
    basin, source = Basin(), ForeignSource(wire, 10, tmp_path)
    run = await running(source, basin)
    wire.messages.put_nowait(message_of(wire, "last"))
    wire.messages.put_nowait(None)
    with pytest.raises(ListeningEnded):
        await asyncio.wait_for(run, PATIENCE)
    assert basin.ids == ["last"]
    await source.close()


async def test_what_belongs_to_tasks_does_not_start(wire: Wire, tmp_path: Path) -> None:
    begun: list[str] = []
    wire.add_event_handler(TaskiqEvents.WORKER_STARTUP, lambda _state: begun.append("event"))
    source = ForeignSource(wire, 10, tmp_path)
    run = await running(source, Basin())
    await ending(source, run)
    assert begun == []
    assert wire.is_worker_process
