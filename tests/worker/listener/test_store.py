"""The ledger and its store: what is accepted, given out and ended, and what a successor finds."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskiq_supervise.broker.labels import Schedule
from taskiq_supervise.ipc import (
    DeadReason,
    DeathCause,
    FilesFull,
    MessageState,
    OutcomeKind,
    PayloadTooLarge,
    UnknownTask,
)
from taskiq_supervise.worker.listener import ledger as ledger_module
from taskiq_supervise.worker.listener.entry import Entry
from taskiq_supervise.worker.listener.intake import Incoming
from taskiq_supervise.worker.listener.ledger import Ledger, Limits
from taskiq_supervise.worker.listener.store import FILE, Store, StoreError

SENDER = b"s" * 16
KILLED = DeathCause(pid=7, worker=1, signal=9)
W1, W2 = "7:100", "8:200"

Open = Callable[..., Ledger]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reopened(tmp_path: Path, clock: Clock) -> Iterator[Open]:
    """Opens the ledger of the test's folder; what was open before is gone, as by SIGKILL."""
    opened: list[Ledger] = []

    def open_it(limits: Limits | None = None) -> Ledger:
        while opened:
            opened.pop().close()  # without a commit
        opened.append(Ledger(Store(tmp_path / FILE), limits, clock))
        return opened[-1]

    yield open_it
    for ledger in opened:
        ledger.close()


def message(task_id: str, payload: bytes = b"payload", **schedule: Any) -> Incoming:
    return Incoming(task_id, payload, (), Schedule(**schedule))


def put(ledger: Ledger, task_id: str, **schedule: Any) -> Entry:
    entry = ledger.accept(message(task_id, **schedule))
    assert entry is not None
    ledger.commit()
    return entry


def give_next(ledger: Ledger, worker: str = W1) -> Entry:
    ledger.tick()
    entry = ledger.next_ready()
    assert entry is not None
    assert ledger.give(entry, worker) is not None
    ledger.commit()
    return entry


def order_of(ledger: Ledger) -> list[str]:
    ledger.tick()
    ids = []
    while (entry := ledger.next_ready()) is not None:
        ledger.give(entry, W1)
        ids.append(entry.task_id)
    return ids


# --- accepted -------------------------------------------------------------------------------------


def test_what_was_accepted_is_there_for_the_next_listener(reopened: Open) -> None:
    ledger = reopened()
    ledger.accept(Incoming("a", b"one", (memoryview(b"two"), b"three")))
    ledger.commit()
    again = reopened()
    entry = again.next_ready()
    assert entry is not None
    assert entry.task_id == "a"
    assert again.give(entry, W1) == (b"one", b"two", b"three")


def test_what_was_not_committed_was_not_accepted(reopened: Open) -> None:
    reopened().accept(message("a"), (SENDER, 1))
    again = reopened()
    assert again.next_ready() is None
    assert again.last_from(SENDER) == 0


def test_a_number_is_accepted_once_by_the_next_listener_too(reopened: Open) -> None:
    ledger = reopened()
    assert ledger.accept(message("a"), (SENDER, 5)) is not None
    assert ledger.accept(message("a"), (SENDER, 5)) is None
    ledger.commit()
    again = reopened()
    assert again.last_from(SENDER) == 5
    assert again.accept(message("a"), (SENDER, 5)) is None
    assert again.accept(message("b"), (SENDER, 6)) is not None


def test_senders_are_remembered_until_there_are_too_many(
    reopened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "SENDERS", 3)
    ledger = reopened()
    senders = [bytes([number]) * 16 for number in range(4)]
    for sender in senders[:3]:
        ledger.accept(message("x"), (sender, 1))
    ledger.accept(message("x"), (senders[0], 2))  # used last but one
    ledger.accept(message("x"), (senders[3], 1))
    ledger.commit()
    assert [reopened().last_from(sender) for sender in senders] == [2, 0, 1, 1]


def test_a_part_that_sqlite_cannot_hold_is_refused(
    reopened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "MAX_PART", 10)
    with pytest.raises(PayloadTooLarge, match="11 bytes"):
        reopened().accept(message("a", b"x" * 11))


def test_room_ends_at_the_capacity_and_is_there_again_after_an_end(reopened: Open) -> None:
    ledger = reopened(Limits(capacity=2))
    put(ledger, "a")
    put(ledger, "b")
    assert not ledger.has_room
    ledger.complete(give_next(ledger), [b"result"])
    assert ledger.has_room


# --- in which order -------------------------------------------------------------------------------


def test_higher_priorities_come_first_and_low_ones_do_not_starve(reopened: Open) -> None:
    ledger = reopened()
    put(ledger, "low", priority=0)
    for number in range(40):
        put(ledger, f"high-{number}", priority=9)
    order = order_of(ledger)
    assert order[:3] == ["high-0", "high-1", "high-2"]
    assert 0 < order.index("low") < 20


def test_a_message_waits_for_its_time(reopened: Open, clock: Clock) -> None:
    ledger = reopened()
    put(ledger, "later", due=clock.now + 10)
    assert order_of(ledger) == []
    assert ledger.next_time() == clock.now + 10
    ledger = reopened()  # the successor knows the time as well
    clock.now += 10
    assert order_of(ledger) == ["later"]


def test_a_message_that_expires_before_its_start_ends_so(reopened: Open, clock: Clock) -> None:
    ledger = reopened()
    put(ledger, "a", expires=clock.now + 5)
    clock.now += 6
    assert order_of(ledger) == []
    ledger.commit()
    outcome = reopened().look("a")
    assert outcome is not None
    assert outcome.kind is OutcomeKind.EXPIRED


def test_what_is_given_back_comes_first_again_and_was_not_started(reopened: Open) -> None:
    ledger = reopened()
    put(ledger, "a")
    put(ledger, "b")
    ledger.release(give_next(ledger))
    ledger.commit()
    ledger = reopened()
    entry = give_next(ledger)
    assert (entry.task_id, entry.attempts) == ("a", 1)


# --- ends -----------------------------------------------------------------------------------------


def test_a_result_is_there_for_the_next_listener(reopened: Open) -> None:
    ledger = reopened()
    put(ledger, "a")
    ledger.complete(give_next(ledger), [b"result", b"beside"])
    assert ledger.look("a") is None, "told before it is written"
    ledger.commit()
    outcome = reopened().look("a")
    assert outcome is not None
    assert (outcome.kind, outcome.data) == (OutcomeKind.RESULT, b"result")
    assert [bytes(buffer) for buffer in outcome.buffers] == [b"beside"]


def test_the_bytes_of_a_message_go_with_its_end(reopened: Open, tmp_path: Path) -> None:
    ledger = reopened()
    put(ledger, "a")
    put(ledger, "b")
    ledger.complete(give_next(ledger), [b"result"])
    ledger.forget(give_next(ledger))
    ledger.commit()
    ledger.close()
    with sqlite3.connect(tmp_path / FILE) as file:
        assert file.execute("SELECT bytes FROM data").fetchall() == [(b"result",)]
        assert file.execute("SELECT id FROM message").fetchall() == [("a",)]


def test_an_id_that_nobody_knows_is_unknown(reopened: Open) -> None:
    with pytest.raises(UnknownTask, match="'a'"):
        reopened().look("a")


def test_who_waits_for_a_task_that_is_sent_again_waits_for_the_new_one(reopened: Open) -> None:
    ledger = reopened()
    first = put(ledger, "a")
    give_next(ledger)
    put(ledger, "a")  # a retry sends before it ends
    ledger.end(first, OutcomeKind.NO_RESULT)
    ledger.commit()
    assert ledger.awaited(first.ticket) is None
    ledger.complete(give_next(ledger), [b"second"])
    ledger.commit()
    outcome = ledger.awaited(first.ticket)
    assert outcome is not None
    assert outcome.data == b"second"


def test_results_are_kept_for_their_time(reopened: Open, clock: Clock) -> None:
    ledger = reopened(Limits(result_ttl=60))
    put(ledger, "a")
    ledger.complete(give_next(ledger), [b"result"])
    ledger.commit()
    ledger = reopened(Limits(result_ttl=60))
    clock.now += 59
    ledger.tick()
    assert ledger.look("a") is not None
    clock.now += 1
    ledger.tick()
    with pytest.raises(UnknownTask):
        ledger.look("a")


@pytest.mark.parametrize("limits", [Limits(results=2), Limits(result_bytes=13)])
def test_the_oldest_results_make_room_for_new_ones(reopened: Open, limits: Limits) -> None:
    ledger = reopened(limits)
    for task_id in ("a", "b", "c"):
        put(ledger, task_id)
        ledger.complete(give_next(ledger), [b"result"])
    ledger.commit()
    with pytest.raises(UnknownTask):
        ledger.look("a")
    assert ledger.look("b") is not None
    assert ledger.look("c") is not None


# --- deaths ---------------------------------------------------------------------------------------


def test_a_task_whose_worker_died_runs_again_and_the_start_counts(reopened: Open) -> None:
    ledger = reopened()
    put(ledger, "a")
    give_next(ledger)
    assert ledger.bury(W2, KILLED).redelivered == ()
    assert ledger.bury(W1, KILLED).redelivered == ("a",)
    ledger.commit()
    ledger = reopened()
    assert give_next(ledger).attempts == 2


def test_a_task_that_was_started_as_often_as_allowed_is_put_aside(reopened: Open) -> None:
    ledger = reopened()
    put(ledger, "a", max_deliveries=2)
    for expected in ((), ("a",)):
        give_next(ledger)
        assert ledger.bury(W1, KILLED).dead == expected
    ledger.commit()
    outcome = reopened().look("a")
    assert outcome is not None
    assert outcome.kind is OutcomeKind.DEAD
    assert outcome.dead_reason is DeadReason.MAX_DELIVERIES
    assert (outcome.cause, outcome.attempts) == (KILLED, 2)


def test_a_planned_end_costs_no_start(reopened: Open) -> None:
    ledger = reopened()
    put(ledger, "a", max_deliveries=1)
    give_next(ledger)
    assert ledger.bury(W1, KILLED, explained=True).redelivered == ("a",)
    assert give_next(ledger).attempts == 1


def test_what_was_acknowledged_never_runs_again(reopened: Open) -> None:
    ledger = reopened()
    put(ledger, "a")
    ledger.acknowledge(give_next(ledger))
    ledger.commit()
    ledger = reopened()
    assert ledger.was_acknowledged("a")
    assert ledger.bury(W1, KILLED).lost == ("a",)
    ledger.commit()
    outcome = ledger.look("a")
    assert outcome is not None
    assert (outcome.kind, outcome.cause) == (OutcomeKind.WORKER_LOST, KILLED)
    assert order_of(ledger) == []


def test_who_was_killed_for_its_task_takes_only_that_one_with_it(reopened: Open) -> None:
    ledger = reopened()
    put(ledger, "late")
    put(ledger, "other")
    give_next(ledger)
    give_next(ledger)
    burial = ledger.bury(W1, KILLED, overdue=["late"])
    assert (burial.timed_out, burial.redelivered) == (("late",), ("other",))
    ledger.commit()
    outcome = ledger.look("late")
    assert outcome is not None
    assert outcome.kind is OutcomeKind.TIMED_OUT


def test_ends_that_nobody_has_said_elsewhere_are_found_until_they_are_settled(
    reopened: Open,
) -> None:
    ledger = reopened()
    put(ledger, "dead", max_deliveries=1)
    put(ledger, "fine")
    give_next(ledger)
    ledger.complete(give_next(ledger, W2), [b"result"])
    ledger.bury(W1, KILLED)
    ledger.commit()
    ledger = reopened()
    ((entry, payload),) = ledger.unsettled()
    assert (entry.task_id, payload) == ("dead", b"payload")
    ledger.settle(entry)
    ledger.commit()
    assert list(reopened().unsettled()) == []


# --- the file -------------------------------------------------------------------------------------


def test_a_damaged_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database, certainly" * 500)
    with pytest.raises(StoreError, match=rf"{FILE} is damaged .*move it away"):
        Store(tmp_path / FILE)


def test_a_file_with_damaged_pages_is_an_error_that_says_so(reopened: Open, tmp_path: Path) -> None:
    ledger = reopened()
    for number in range(200):
        ledger.accept(message(f"task-{number}", b"x" * 500))
    ledger.commit()
    ledger.close()
    with open(tmp_path / FILE, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 40_000)
    with pytest.raises(StoreError, match="is damaged"):
        reopened()


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as file:
        file.execute("CREATE TABLE theirs (it)")
    file.close()
    with pytest.raises(StoreError, match="of something else"):
        Store(tmp_path / FILE)


def test_another_version_is_an_error_that_says_so(reopened: Open, tmp_path: Path) -> None:
    reopened().close()
    with sqlite3.connect(tmp_path / FILE) as file:
        file.execute("PRAGMA user_version = 99")
    file.close()
    with pytest.raises(StoreError, match="has version 99"):
        Store(tmp_path / FILE)


def test_two_listeners_cannot_have_it_at_once(reopened: Open, tmp_path: Path) -> None:
    put(reopened(), "a")
    program = (
        "import sys; from pathlib import Path\n"
        "from taskiq_supervise.worker.listener.store import Store\n"
        "Store(Path(sys.argv[1]))"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / FILE)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert "is in use by another process" in found.stderr


def test_the_files_are_for_this_user_alone(reopened: Open, tmp_path: Path) -> None:
    put(reopened(), "a")
    files = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert FILE in files
    assert f"{FILE}-shm" not in files, "that would be shared memory"
    assert set(files.values()) == {0o600}


def test_what_finds_no_room_is_an_error_and_nothing_is_lost(reopened: Open) -> None:
    ledger = reopened()
    put(ledger, "before")
    limit_pages(ledger)
    ledger.accept(message("large", os.urandom(100_000)), (SENDER, 1))
    with pytest.raises(FilesFull, match="no room"):
        ledger.commit()
    assert [entry.task_id for entry in ledger.withdraw_new()] == ["large"]
    assert ledger.last_from(SENDER) == 0
    ledger.complete(give_next(ledger), [b"result"])
    ledger.commit()
    ledger = reopened()
    assert ledger.look("before") is not None
    with pytest.raises(UnknownTask):
        ledger.look("large")


def limit_pages(ledger: Ledger) -> None:
    """As on a disk that is full but for some pages."""
    file = ledger._store._file
    (pages,) = file.execute("PRAGMA page_count").fetchone()
    file.execute(f"PRAGMA max_page_count = {pages + 2}")


def test_states_are_those_of_the_segment(reopened: Open, clock: Clock) -> None:
    ledger = reopened()
    assert put(ledger, "a", due=clock.now + 5).state is MessageState.DELAYED
    assert put(ledger, "b").state is MessageState.READY
    assert give_next(ledger).state is MessageState.RUNNING
