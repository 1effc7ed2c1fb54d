"""Messages and segments that are not as they should be: an error for whom it concerns."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from taskiq_supervise import DeadLetterError, QueueFullError
from taskiq_supervise.ipc import DeadReason, Geometry, OutcomeKind, SegmentError, TaskQueue

if TYPE_CHECKING:
    from taskiq import AsyncTaskiqTask
    from tests.e2e.conftest import Supervisor

Start = Callable[..., "Supervisor"]


async def runs(client: Any) -> bool:
    task = await client.divide.kiq(6, 3)
    value: float = (await task.wait_result(timeout=30)).return_value
    return value == 2


async def test_a_message_that_no_one_can_parse_is_dead_lettered(
    supervise: Start, client: Any
) -> None:
    supervisor = supervise("app:broker", "--workers", "1").wait_ready()
    queue = TaskQueue.open("e2e")
    try:
        queue.put("garbage", b"\xff\x00 not a message")
        assert await runs(client)
        outcome = queue.outcome("garbage")
    finally:
        queue.close()
    assert outcome is not None
    assert (outcome.kind, outcome.dead_reason) == (OutcomeKind.DEAD, DeadReason.UNPARSABLE)
    assert supervisor.pool_status()["queue"]["dead"] == 1
    assert supervisor.stop() == 0
    assert "Traceback" not in supervisor.log.text


def elsewhere() -> None:
    """Stands for a task that the workers do not have."""


async def test_a_task_that_no_worker_knows_is_an_error_that_names_it(
    supervise: Start, client: Any
) -> None:
    supervisor = supervise("app:broker", "--workers", "1").wait_ready()
    unknown = client.broker.register_task(elsewhere, task_name="gone:since_tuesday")
    task = await unknown.kiq()
    result = await task.wait_result(timeout=30)
    with pytest.raises(DeadLetterError, match="gone:since_tuesday"):
        result.raise_for_error()
    assert supervisor.pool_status()["queue"]["dead"] == 1
    assert await runs(client)
    assert supervisor.stop() == 0
    assert "Traceback" not in supervisor.log.text


async def test_an_exception_that_cannot_be_serialized_still_reaches_the_client(
    supervise: Start, client: Any
) -> None:
    supervise("app:broker", "--workers", "1")
    task = await client.raise_unserializable.kiq()
    result = await task.wait_result(timeout=30)
    assert result.is_err
    assert "the disk is on fire" in str(result.error)


async def test_a_result_that_cannot_be_serialized_is_an_error_not_a_hang(
    supervise: Start, client: Any
) -> None:
    supervise("app:broker", "--workers", "1")
    task = await client.return_unserializable.kiq()
    assert (await task.wait_result(timeout=30)).is_err
    assert await runs(client)


async def test_a_full_queue_holds_back_the_sender_until_there_is_room(
    supervise: Start, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    capacity = 64
    TaskQueue.open("e2e", geometry=Geometry(slots=capacity)).close()
    async with app.broker:
        tasks: list[AsyncTaskiqTask[int]] = []

        async def send_without_end() -> None:
            while True:
                tasks.append(await app.record.kiq(len(tasks)))

        monkeypatch.setattr(app.broker, "kiq_timeout", 0.1)
        with pytest.raises(QueueFullError, match="e2e"):
            await send_without_end()
        monkeypatch.setattr(app.broker, "kiq_timeout", None)
        assert capacity // 2 <= len(tasks) <= capacity

        supervise("app:broker")
        for task in tasks:
            result = await task.wait_result(timeout=30)
            assert not result.is_err

        async def run(number: int) -> int:
            task = await app.record.kiq(number)
            value: int = (await task.wait_result(timeout=30)).return_value
            return value

        # Three times as many as fit, each waiting for its turn.
        numbers = range(3 * capacity)
        assert await asyncio.gather(*map(run, numbers)) == list(numbers)


def segment_file() -> Path:
    """The one large file of the queue."""
    base = Path(os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"])
    files = [path for path in base.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def other_magic(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"NOTAQUEUE")


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zeroed(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)


@pytest.mark.parametrize("damage", [other_magic, truncated, zeroed])
async def test_a_damaged_segment_is_refused_by_client_and_supervisor(
    supervise: Start, app: Any, damage: Callable[[Path], None]
) -> None:
    TaskQueue.open("e2e").close()
    path = segment_file()
    damage(path)
    before = path.read_bytes()
    with pytest.raises(SegmentError, match=str(path)):
        await app.broker.startup()
    supervisor = supervise("app:broker")
    assert supervisor.wait() == 1
    log = supervisor.log.wait_for_end(timeout=5)
    assert str(path) in log
    assert "Traceback" not in log
    assert path.read_bytes() == before


def test_a_queue_that_does_not_fit_into_memory_is_an_error_at_the_start(
    supervise: Start, workdir: Path
) -> None:
    filesystem = os.statvfs(os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"])
    megabytes = 1 << (filesystem.f_blocks * filesystem.f_frsize >> 20).bit_length()
    (workdir / "large.py").write_text(
        "from taskiq_supervise import SharedMemoryBroker\n"
        "from taskiq_supervise.ipc import Geometry\n"
        f"broker = SharedMemoryBroker(geometry=Geometry(blocks=((1 << 20, {megabytes}),)))\n"
    )
    supervisor = supervise("large:broker")
    assert supervisor.wait() == 1
    log = supervisor.log.wait_for_end(timeout=5)
    assert "space" in log
    assert "Traceback" not in log
    left = Path(os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"]).rglob("*")
    assert sum(path.stat().st_size for path in left if path.is_file()) < 1 << 20
