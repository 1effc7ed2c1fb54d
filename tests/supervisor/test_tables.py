"""The tables answer every pair of state and event, and never with something out of place."""

import dataclasses
import typing
from typing import Any

import pytest

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core import worker_table, zygote_table
from taskiq_supervise.supervisor.core.model import (
    ALIVE,
    ExitStatus,
    Reason,
    Settings,
    Worker,
    WorkerState,
    Zygote,
    ZygoteState,
)
from taskiq_supervise.supervisor.core.policy import StopLevel
from taskiq_supervise.supervisor.core.transport import Transport
from taskiq_supervise.supervisor.core.worker_turn import Surroundings

SETTINGS = Settings(workers=1)
VALUES: dict[str, Any] = {
    "slot": 0,
    "generation": 7,
    "pid": 4711,
    "message": "a message",
    "jitter": 0.5,
    "status": ExitStatus(code=1),
    "worked": False,
    "reason": Reason.STOP,
    "traceback": None,
    "exit_code": 1,
    "transport": Transport("shm", "queue", "/dev/shm/x"),
    "threads": (),
    "broadcast": None,
    "oom": False,
    "why": "has grown",
    "seconds": 12.0,
    "too_long": False,
    "tasks": ("a",),
    "final": False,
}


# Not from `__subclasses__`: `slots=True` leaves there the class that the decorator replaced.
DEFINED: set[type] = {
    one
    for one in vars(m).values()
    if isinstance(one, type) and dataclasses.is_dataclass(one) and one.__module__ == m.__name__
}


def subclasses(base: type) -> set[type]:
    return {one for one in DEFINED if issubclass(one, base) and one is not base}


def an(event_type: type) -> Any:
    return event_type(
        **{field.name: VALUES[field.name] for field in dataclasses.fields(event_type)}
    )


def worker_in(state: WorkerState, **changes: Any) -> Worker:
    sitting = state in ALIVE or state is WorkerState.REAPED
    waiting = state in {WorkerState.BACKOFF, WorkerState.QUARANTINED, WorkerState.FORKING}
    up = {WorkerState.READY, WorkerState.DRAINING}
    values: dict[str, Any] = {
        "slot": 0,
        "state": state,
        "generation": 7,
        "pid": 4711 if sitting else 0,
        "deadline": 5.0 if waiting else None,
        "ready_at": 1.0 if state in up else None,
        **changes,
    }
    return Worker(**values)


def surroundings(*, can_fork: bool = True, now: float = 10.0) -> Surroundings:
    state = ZygoteState.READY if can_fork else ZygoteState.LOADING
    return Surroundings(
        now=now,
        settings=SETTINGS,
        zygote=Zygote(state=state, generation=1),
        generation=8,
        seat=0,
        pool_recent=0,
    )


def test_the_workers_table_has_a_column_for_every_state_and_a_row_for_every_event() -> None:
    assert set(worker_table.STATES) == set(WorkerState)
    assert len(worker_table.STATES) == len(WorkerState)
    assert set(worker_table.TABLE) == subclasses(m.WorkerEvent)
    assert {len(row) for row in worker_table.TABLE.values()} == {len(worker_table.STATES)}


def test_the_zygotes_table_has_a_column_for_every_state_and_a_row_for_every_event() -> None:
    assert set(zygote_table.STATES) == set(ZygoteState)
    assert len(zygote_table.STATES) == len(ZygoteState)
    assert set(zygote_table.TABLE) == subclasses(m.ZygoteEvent)
    assert {len(row) for row in zygote_table.TABLE.values()} == {len(zygote_table.STATES)}


def test_every_effect_is_one_that_the_shell_knows() -> None:
    events = subclasses(m.WorkerEvent) | subclasses(m.ZygoteEvent)
    others = {m.WorkerEvent, m.ZygoteEvent, *typing.get_args(m.PoolEvent)}
    assert DEFINED - events - others == set(typing.get_args(m.Effect))


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("state", WorkerState)
@pytest.mark.parametrize("event_type", sorted(worker_table.TABLE, key=str))
def test_every_pair_of_the_workers_table_gives_a_sound_worker(
    state: WorkerState, event_type: type[m.WorkerEvent], wanted: bool
) -> None:
    before = worker_in(state, wanted=wanted)
    after, effects = worker_table.answer(before, an(event_type), surroundings())
    assert (after.slot, after.wanted) == (before.slot, before.wanted)
    assert after.generation in {before.generation, before.generation + 1}
    if after.alive:
        assert after.pid != 0
    if after.state in {WorkerState.BACKOFF, WorkerState.QUARANTINED, WorkerState.FORKING}:
        assert after.deadline is not None
    if after.state in {WorkerState.STOPPING, WorkerState.KILLING} and before.state != after.state:
        assert after.deadline is not None
    for effect in effects:
        assert isinstance(effect, typing.get_args(m.Effect))
        if isinstance(effect, m.Fork):
            assert (effect.generation, after.state) == (after.generation, WorkerState.FORKING)
    if not wanted:
        assert not any(isinstance(effect, m.Fork) for effect in effects)


@pytest.mark.parametrize("stop", [None, *StopLevel])
@pytest.mark.parametrize(
    ("loaded", "candidate"), [(True, False), (False, False), (True, True)], ids=str
)
@pytest.mark.parametrize("state", ZygoteState)
@pytest.mark.parametrize("event_type", sorted(zygote_table.TABLE, key=str))
def test_every_pair_of_the_zygotes_table_gives_a_sound_zygote(
    state: ZygoteState,
    event_type: type[m.ZygoteEvent],
    loaded: bool,
    candidate: bool,
    stop: StopLevel | None,
) -> None:
    before = Zygote(state=state, generation=7)
    around = zygote_table.Surroundings(
        now=10.0,
        settings=SETTINGS,
        generation=8,
        target=1,
        candidate=candidate,
        loaded=loaded,
        stopping=stop is not None,
        stop=stop,
    )
    turn = zygote_table.answer(before, an(event_type), around)
    if turn.zygote.state is ZygoteState.ENDING and before.state is not ZygoteState.ENDING:
        assert turn.zygote.deadline is not None
        assert any(isinstance(one, (m.EndZygote, m.KillZygote)) for one in turn.effects)
    if stop is not None:
        assert not any(isinstance(one, m.StartZygote) for one in turn.effects)
    if loaded:
        assert turn.exit_code is None
    if turn.zygote.state is ZygoteState.LOADING and state is not ZygoteState.LOADING:
        assert (turn.zygote.generation, turn.zygote.deadline) == (8, 70.0)
    if candidate and turn.zygote.failed:
        assert not any(isinstance(one, m.StartZygote) for one in turn.effects)


def test_a_worker_that_is_wanted_waits_empty_while_there_is_no_zygote() -> None:
    waiting = worker_in(WorkerState.BACKOFF)
    due = m.Due(0, 7)
    after, effects = worker_table.answer(waiting, due, surroundings(can_fork=False))
    assert (after.state, after.deadline, effects) == (WorkerState.EMPTY, None, ())


@pytest.mark.parametrize(
    ("before", "status", "reason"),
    [
        (worker_in(WorkerState.READY, ready_at=1.0), ExitStatus(signal=9), Reason.CRASH),
        (worker_in(WorkerState.READY, ready_at=1.0), ExitStatus(code=1), Reason.CRASH),
        (worker_in(WorkerState.READY, ready_at=1.0), ExitStatus(code=0), Reason.OPERATOR),
        (worker_in(WorkerState.READY, ready_at=1.0), ExitStatus(), Reason.CRASH),
        (worker_in(WorkerState.BOOTING), ExitStatus(code=3), Reason.BOOT),
        (worker_in(WorkerState.BOOTING), ExitStatus(code=0), Reason.BOOT),
        (worker_in(WorkerState.BOOTING), ExitStatus(signal=11), Reason.CRASH),
        (
            worker_in(WorkerState.STOPPING, reason=Reason.BOOT),
            ExitStatus(code=3),
            Reason.BOOT,
        ),
        (
            worker_in(WorkerState.DRAINING, reason=Reason.OPERATOR, ready_at=1.0),
            ExitStatus(code=0),
            Reason.OPERATOR,
        ),
        (
            worker_in(WorkerState.DRAINING, reason=Reason.OPERATOR, ready_at=1.0),
            ExitStatus(signal=11),
            Reason.CRASH,
        ),
        (
            worker_in(WorkerState.DRAINING, reason=Reason.STOP, ready_at=None),
            ExitStatus(code=3),
            Reason.STOP,
        ),
        (
            worker_in(WorkerState.KILLING, reason=Reason.HANG, ready_at=1.0),
            ExitStatus(signal=9),
            Reason.HANG,
        ),
        (
            worker_in(WorkerState.KILLING, reason=Reason.STOP, ready_at=1.0),
            ExitStatus(signal=9),
            Reason.STOP,
        ),
    ],
)
def test_why_a_worker_left_is_known(before: Worker, status: ExitStatus, reason: Reason) -> None:
    after, _ = worker_table.answer(before, m.Exited(0, 7, 4711, status, False), surroundings())
    assert (after.state, after.last_reason) == (WorkerState.REAPED, reason)


def test_a_sigkill_that_was_not_ours_while_memory_ran_out_is_said_to_be_that() -> None:
    killed, crashed = ExitStatus(signal=9), ExitStatus(signal=11)
    for state, status, reason in (
        (WorkerState.READY, killed, Reason.OOM),
        (WorkerState.BOOTING, killed, Reason.OOM),
        (WorkerState.READY, crashed, Reason.CRASH),
    ):
        exited = m.Exited(0, 7, 4711, status, False, oom=True)
        after, _ = worker_table.answer(worker_in(state), exited, surroundings())
        assert after.last_reason is reason
    ours = worker_in(WorkerState.KILLING, reason=Reason.RECYCLE, ready_at=1.0)
    exited = m.Exited(0, 7, 4711, killed, False, oom=True)
    assert worker_table.answer(ours, exited, surroundings())[0].last_reason is Reason.RECYCLE


def test_an_exit_status_is_said_in_words() -> None:
    words = [
        str(ExitStatus(code=3)),
        str(ExitStatus(signal=9)),
        str(ExitStatus(signal=11, core_dumped=True)),
        str(ExitStatus(signal=63)),
    ]
    assert words == [
        "exited with status 3",
        "killed by SIGKILL",
        "killed by SIGSEGV (core dumped)",
        "killed by signal 63",
    ]
    assert "somebody else" in str(ExitStatus())


@pytest.mark.parametrize("state", [one for one in WorkerState if one is not WorkerState.FORKING])
def test_a_process_that_no_slot_waits_for_is_killed(state: WorkerState) -> None:
    before = worker_in(state)
    forked = m.Forked(0, 7, 999, 0.5)
    after, effects = worker_table.answer(before, forked, surroundings())
    assert after == before
    assert m.KillStray(0, 7, 999) in effects
