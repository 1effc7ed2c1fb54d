"""The core's answers when it is asked to stop, told to it in single stories."""

from dataclasses import replace

import pytest
from tests.supervisor.simulated_kernel import (
    KILLED,
    World,
    crash,
    happenings,
    has_ended,
    in_quarantine,
    next_deadline,
    play,
    running_world,
)

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import (
    ExitStatus,
    Settings,
    WorkerState,
    ZygoteState,
)


def in_backoff() -> World:
    world = running_world(workers=1)
    for _ in range(2):
        crash(world)
        if world.asked:
            world.answer_fork(world.fork(*world.asked[0]))
    assert world.pool.workers[0].state is WorkerState.BACKOFF
    return world


def in_state(state: WorkerState) -> World:
    """One worker, in this state."""
    world = World(Settings(workers=1))
    world.post(m.Started())
    play(world, stubborn=False, until=lambda w: w.pool.workers[0].state is WorkerState.BOOTING)
    if state is not WorkerState.BOOTING:
        world.post(m.Ready(0, 1))
    if state is WorkerState.DRAINING:
        world.post(m.Draining(0, 1))
    if state is WorkerState.STOPPING:
        world.post(m.Drained(0, 1))
    assert world.pool.workers[0].state is state
    return world


def test_a_worker_that_got_a_sigterm_by_hand_drains_and_is_replaced_without_a_failure() -> None:
    world = running_world()
    process = world.processes[101]
    world.post(m.Draining(process.slot, 1))
    assert world.pool.workers[process.slot].state is WorkerState.DRAINING
    world.post(m.Drained(process.slot, 1))
    process.exit = ExitStatus(code=0)
    world.report_exit(process)
    worker = world.pool.workers[process.slot]
    assert (worker.state, worker.history.failures) == (WorkerState.FORKING, 0)


def test_the_first_sigterm_drains_the_second_stops_and_the_third_kills() -> None:
    world = running_world()
    told = []
    for _ in range(3):
        world.post(m.Terminate())
        told.append([list(process.told) for process in world.processes.values()])
    drain, stop, kill = ["drain"], ["drain", "stop"], ["drain", "stop", "kill"]
    assert told == [[drain, drain], [stop, stop], [kill, kill]]


def test_a_drain_that_takes_too_long_becomes_a_stop_and_then_a_kill() -> None:
    world = running_world(workers=1, graceful_timeout=30, stop_timeout=8)
    begin = world.now
    world.post(m.Terminate())
    process = world.processes[101]
    seen = []
    while "kill" not in process.told:
        next_deadline(world)
        seen.append((world.now - begin, list(process.told)))
    assert seen == [(30, ["drain", "stop"]), (38, ["drain", "stop", "kill"])]


def test_it_is_said_once_that_no_task_is_taken_when_every_worker_has_confirmed_it() -> None:
    world = running_world()
    world.post(m.Terminate())
    world.post(m.Draining(0, 1))
    assert m.Happening.POOL_DRAINING not in happenings(world)
    world.post(m.Draining(1, 1))
    world.post(m.Draining(1, 1))
    assert happenings(world).count(m.Happening.POOL_DRAINING) == 1


def test_a_worker_that_was_asked_for_before_a_stop_is_told_when_it_comes() -> None:
    for events, expected in (
        ([m.Terminate()], ["drain"]),
        ([m.Terminate(), m.Terminate()], ["stop"]),
        ([m.Quit()], ["kill"]),
    ):
        world = World(Settings(workers=1))
        world.post(m.Started())
        world.load()
        world.open_queue()
        for event in events:
            world.post(event)
        process = world.fork(*world.asked[0])
        world.answer_fork(process)
        assert process.told == expected


def test_a_stop_while_the_application_is_imported_is_obeyed() -> None:
    world = World(Settings(workers=4))
    world.post(m.Started())
    world.post(m.Terminate())
    assert world.zygote_told
    world.zygote_exits(ExitStatus(signal=15))
    assert world.exit_code == 0


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (WorkerState.BOOTING, [["drain"], ["stop"], ["kill"]]),
        (WorkerState.READY, [["drain"], ["stop"], ["kill"]]),
        (WorkerState.DRAINING, [[], ["stop"], ["kill"]]),
        (WorkerState.STOPPING, [[], [], ["kill"]]),
    ],
)
def test_a_stop_reaches_a_worker_in_whatever_state_it_finds_it(
    state: WorkerState, told: list[list[str]]
) -> None:
    for hardkill_count, signals, expected in zip((9, 9, 1), (1, 2, 1), told, strict=True):
        world = in_state(state)
        (process,) = world.processes.values()
        world.pool = replace(
            world.pool, settings=replace(world.pool.settings, hardkill_count=hardkill_count)
        )
        for _ in range(signals):
            process.told.clear()
            world.post(m.Terminate())
        assert process.told == expected


@pytest.mark.parametrize("event", [m.Terminate(), m.Quit()])
def test_a_stop_does_not_wait_for_a_worker_that_waits_for_its_next_start(event: m.Event) -> None:
    world = in_backoff()
    world.post(event)
    assert world.pool.workers == ()


def test_a_quarantined_slot_does_not_hold_up_a_stop() -> None:
    world = in_quarantine()
    world.post(m.Terminate())
    assert world.pool.workers == ()


def test_a_worker_that_drained_gets_its_own_time_to_close_down() -> None:
    for state in (WorkerState.READY, WorkerState.BOOTING, WorkerState.DRAINING):
        world = in_state(state)
        world.post(m.Drained(0, 1))
        worker = world.pool.workers[0]
        assert worker.state is WorkerState.STOPPING
        assert worker.deadline == world.now + world.settings.stop_timeout


def test_a_sigterm_by_hand_while_it_boots_is_a_drain_as_well() -> None:
    world = in_state(WorkerState.BOOTING)
    world.post(m.Draining(0, 1))
    assert world.pool.workers[0].state is WorkerState.DRAINING


def test_a_worker_that_outlives_sigkill_is_killed_and_named_again() -> None:
    world = running_world(workers=1)
    world.post(m.Quit())
    next_deadline(world)
    assert world.processes[101].told == ["kill", "kill"]
    assert any("state D" in report.detail for report in world.reports)


def test_a_zygote_that_does_not_end_when_told_is_killed() -> None:
    world = World(Settings(workers=1))
    world.post(m.Started())
    world.post(m.Terminate())
    assert world.zygote_told == ["end"]
    next_deadline(world)
    assert world.zygote_told == ["end", "kill"]


def test_a_second_thought_about_how_to_stop_reaches_a_zygote_that_is_ending() -> None:
    world = World(Settings(workers=1))
    world.post(m.Started())
    world.post(m.Terminate())
    world.post(m.Quit())
    assert world.zygote_told == ["end", "kill"]


def test_a_stop_ends_a_zygote_wherever_it_is_and_does_not_wait_for_one_in_backoff() -> None:
    attaching = World(Settings(workers=1))
    attaching.post(m.Started())
    attaching.load()
    attaching.post(m.Terminate())
    assert attaching.zygote_told == ["end"]

    waiting = running_world(workers=1)
    for _ in range(2):
        waiting.zygote_exits(KILLED)
    assert waiting.pool.zygote.state is ZygoteState.BACKOFF
    waiting.post(m.Quit())
    crash(waiting)
    assert has_ended(waiting)
