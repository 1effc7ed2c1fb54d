"""After a reboot: a queue on a disk is found with a segment of another boot."""

import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.ipc.peer import SMALL

from taskiq_supervise.ipc import (
    DeadReason,
    Lease,
    MessageState,
    OutcomeKind,
    Role,
    SegmentError,
    TaskQueue,
    segment,
)

LARGE = bytes(range(256)) * 8
SOON = 1_000.0


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that counts as lying on a disk, whatever it lies on."""
    monkeypatch.setattr(segment, "is_volatile", lambda _fd: False)
    return tmp_path / "queues"


@pytest.fixture
def before(disk: Path) -> Iterator[TaskQueue]:
    with TaskQueue.open("q", disk, geometry=SMALL, role=Role.WORKER) as queue:
        yield queue


def claimed(queue: TaskQueue, task_id: str) -> Lease:
    """Holds this message; the others go back."""
    found, others = None, []
    while found is None:
        lease = queue.claim()
        assert lease is not None, task_id
        if lease.task_id == task_id:
            found = lease
        else:
            others.append(lease)
    for other in others:
        other.release()
    return found


def reboot(disk: Path, change: Callable[[bytearray], None] = lambda _: None) -> Path:
    """The folder as it is found after the machine went down at this instant, in another place."""
    after = disk.with_name("after")
    shutil.copytree(disk, after, ignore=shutil.ignore_patterns("bell-*"))
    path = after / "q" / "segment"
    content = bytearray(path.read_bytes())
    at = content.index(segment.boot_id())
    content[at : at + 16] = b"\1" * 16
    change(content)
    path.write_bytes(content)
    return after


def everything(queue: TaskQueue) -> dict[str, tuple[bytes, list[bytes], int]]:
    found = {}
    while (lease := queue.claim()) is not None:
        buffers = [bytes(buffer) for buffer in lease.buffers]
        found[lease.task_id] = (lease.payload, buffers, lease.attempt)
        lease.start()
        lease.finish(keep=False)
    return found


def test_messages_are_kept_and_senders_are_not(disk: Path) -> None:
    """The disk may have lost the message that a number stands for."""
    with TaskQueue.open("q", disk, geometry=SMALL) as before:
        before.put("id", b"payload", sender=(b"a" * 16, 3))
        after = reboot(disk)
    with TaskQueue.open("q", after) as queue:
        assert queue.last_from(b"a" * 16) == 0
        assert everything(queue) == {"id": (b"payload", [], 0)}


def test_a_queue_in_memory_keeps_no_checksums(tmp_path: Path) -> None:
    shm = Path("/dev/shm") / f"tsq-salvage-{os.getpid()}"
    try:
        with TaskQueue.open("q", shm, geometry=SMALL) as queue:
            assert not queue.core.is_checked()
    finally:
        shutil.rmtree(shm)


def test_what_waited_or_ran_is_delivered_and_dead_letters_stay(
    disk: Path, before: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5):
        before.put(f"waits {number}", b"%d" % number)
    before.put("urgent", b"u", priority=9)
    before.put("delayed", b"d", due=time.time() + SOON)
    before.put("large", LARGE, buffers=[b"b" * 4_000, b""])
    before.put("leased", b"l")
    leased = claimed(before, "leased")
    before.put("runs", b"r", max_deliveries=2)
    claimed(before, "runs").start()
    before.put("acknowledged", b"a")
    acknowledged = claimed(before, "acknowledged")
    acknowledged.start()
    acknowledged.ack()
    before.put("done", b"x")
    done = claimed(before, "done")
    done.start()
    done.complete(b"result")
    before.put("dead", LARGE, buffers=[b"evidence" * 500])
    dead = claimed(before, "dead")
    dead.start()
    dead.dead_letter(DeadReason.UNKNOWN_TASK, "no worker knows it")
    after = reboot(disk)
    acknowledged.finish(keep=False)
    assert leased.held

    with caplog.at_level(logging.WARNING), TaskQueue.open("q", after, role=Role.WORKER) as queue:
        assert "10 messages and 1 dead letters were kept" in caplog.text
        assert "2 outcomes and 0 damaged messages were not" in caplog.text
        assert queue.geometry.slots == SMALL.slots, "the size stays"
        views = {view.ticket.task_id: view for view in queue.messages()}
        assert views["delayed"].state is MessageState.DELAYED
        assert views["delayed"].due is not None
        assert abs(views["delayed"].due - time.time() - SOON) < SOON / 2
        assert views["runs"].max_deliveries == 2
        letter = views["dead"]
        assert letter.state is MessageState.DEAD
        assert (letter.dead_reason, letter.detail, letter.attempts) == (
            DeadReason.UNKNOWN_TASK,
            "no worker knows it",
            1,
        )
        payload, buffers = queue.peek(letter.ticket)
        assert (payload, [bytes(each) for each in buffers]) == (LARGE, [b"evidence" * 500])
        found = everything(queue)
        assert list(found) == [
            "urgent", *(f"waits {number}" for number in range(5)), "large", "leased", "runs",
        ]  # fmt: skip
        assert found["large"] == (LARGE, [b"b" * 4_000, b""], 0)
        assert found["runs"] == (b"r", [], 0), "the machine's end is not the task's fault"
        queue.requeue(letter.ticket)
        assert everything(queue) == {"dead": (LARGE, [b"evidence" * 500], 0)}
    assert not list((after / "q").glob("*.boot-*")), "nothing is left of the old one"


@pytest.mark.parametrize("reboots", [12, pytest.param(200, marks=pytest.mark.stress)])
def test_what_is_damaged_is_counted_and_never_delivered(
    disk: Path, before: TaskQueue, caplog: pytest.LogCaptureFixture, reboots: int
) -> None:
    """Any bit of the old segment may be wrong."""
    payloads = {f"id {number}": bytes([number]) * (30 + 40 * number) for number in range(20)}
    for task_id, payload in payloads.items():
        before.put(task_id, payload)
    dice = random.Random(1)
    for _ in range(reboots):
        after = reboot(disk, lambda content: damage(content, dice))
        with TaskQueue.open("q", after, role=Role.WORKER) as queue:
            found = everything(queue)
        assert all(payloads[task_id] == payload for task_id, (payload, _, _) in found.items())
        shutil.rmtree(after)
    assert "damaged messages were not; the old segment is kept as" in caplog.text


def damage(content: bytearray, dice: random.Random) -> None:
    for _ in range(200):
        content[dice.randrange(4_096, len(content))] ^= 1 << dice.randrange(8)


def test_a_payload_file_that_is_not_whole_is_not_delivered(
    disk: Path, before: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    before.put("torn", b"", buffers=[b"t" * 5_000])
    before.put("lost", b"", buffers=[b"l" * 5_000])
    before.put("whole", b"", buffers=[b"w" * 5_000])
    after = reboot(disk)
    files = {path.read_bytes()[:1]: path for path in (after / "q" / "files").glob("q-*")}
    torn, lost = files[b"t"], files[b"l"]
    with torn.open("r+b") as file:
        file.seek(4_321)
        file.write(b"?")
    lost.unlink()
    with TaskQueue.open("q", after, role=Role.WORKER) as queue:
        assert list(everything(queue)) == ["whole"]
    assert "2 damaged messages were not" in caplog.text


@pytest.mark.parametrize("step", ["carry_over", "os.link", "Path.rename"])
def test_who_is_interrupted_over_it_is_followed_by_another(
    disk: Path, before: TaskQueue, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before.put("small", b"s")
    before.put("large", b"", buffers=[b"l" * 5_000])
    after = reboot(disk)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(f"taskiq_supervise.ipc.segment.{step}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                TaskQueue.open("q", after)
    with TaskQueue.open("q", after, role=Role.WORKER) as queue:
        found = everything(queue)
    assert found == {"small": (b"s", [], 0), "large": (b"", [b"l" * 5_000], 0)}


def test_looking_changes_nothing(disk: Path, before: TaskQueue) -> None:
    before.put("id", b"")
    after = reboot(disk)
    content = (after / "q" / "segment").read_bytes()
    with pytest.raises(SegmentError, match="of an earlier boot"):
        TaskQueue.open("q", after, create=False)
    assert (after / "q" / "segment").read_bytes() == content


def test_results_of_before_are_unknown(disk: Path, before: TaskQueue) -> None:
    before.put("id", b"")
    lease = claimed(before, "id")
    lease.start()
    lease.complete(b"")
    outcome = before.outcome("id")
    assert outcome is not None
    assert outcome.kind is OutcomeKind.RESULT
    with TaskQueue.open("q", reboot(disk)) as queue:
        assert list(queue.messages()) == []
