"""The listener in the core: one process more, supervised like a worker, and none of them."""

from collections.abc import Callable

import pytest
from tests.supervisor.simulated_kernel import (
    KILLED,
    Process,
    World,
    happenings,
    has_ended,
    is_up,
    next_deadline,
    play,
)

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import (
    EXIT_NOT_LOADED,
    EXIT_REFUSED,
    LISTENER,
    ExitStatus,
    Health,
    Reason,
    ReloadStage,
    Settings,
    Worker,
    WorkerState,
    ZygoteState,
)

READY = WorkerState.READY


def a_world(*, joins: bool = False, **changes: object) -> World:
    settings = Settings(**{"workers": 2, **changes})  # type: ignore[arg-type]
    world = World(settings, listens=True, joins=joins)
    world.post(m.Started())
    return world


def listening_world(*, joins: bool = False, **changes: object) -> World:
    world = a_world(joins=joins, **changes)
    play(world, stubborn=False, until=is_up)
    return world


def listener(world: World) -> Worker:
    found = world.pool.holder(LISTENER)
    assert found is not None
    return found


def process_of(world: World, slot: int, generation: int) -> Process:
    (found,) = (
        one for one in world.processes.values() if (one.slot, one.generation) == (slot, generation)
    )
    return found


def kill(world: World, process: Process) -> None:
    process.exit = KILLED
    world.report_exit(process)


def exit_reasons(world: World) -> list[Reason | None]:
    exited = [one for one in world.reports if one.what is m.Happening.WORKER_EXITED]
    return [one.reason for one in exited if one.slot == LISTENER]


# --- up and running ------------------------------------------------------------------------------


def test_a_pool_has_one_beside_its_workers_with_a_seat_of_its_own() -> None:
    world = listening_world(workers=3)
    assert [one.slot for one in world.pool.workers] == [LISTENER, 0, 1, 2]
    assert len({one.seat for one in world.pool.workers}) == 4
    assert [one.slot for one in world.pool.crew] == [0, 1, 2]


def test_the_pool_is_ready_when_its_listener_is_and_says_how_many_workers_it_has() -> None:
    world = a_world()
    play(world, stubborn=False, until=lambda w: len(w.processes) == 3)
    for process in world.processes.values():
        if process.slot != LISTENER:
            world.post(m.Ready(process.slot, process.generation))
    assert not world.pool.announced
    world.post(m.Ready(LISTENER, 1))
    (said,) = (one for one in world.reports if one.what is m.Happening.POOL_READY)
    assert said.detail == "2"


def test_an_endpoint_that_another_supervisor_has_ends_a_cold_start_with_status_4() -> None:
    world = a_world()
    world.load()
    world.post(m.QueueRefused(1, "pid 17 listens there", EXIT_REFUSED))
    world.zygote_exits(ExitStatus(code=0))
    assert world.exit_code == EXIT_REFUSED


@pytest.mark.parametrize("event", [m.Scale(4, "a person"), m.Scale(1, "a person")], ids=str)
def test_scaling_leaves_it_alone(event: m.Scale) -> None:
    world = listening_world()
    world.post(event)
    play(world, stubborn=False, until=is_up)
    assert (listener(world).generation, len(world.pool.crew)) == (1, event.workers)


def test_it_is_never_recycled_and_takes_nobodys_turn() -> None:
    world = listening_world(workers=1, max_lifetime=1000.0)
    assert listener(world).retire_at is None
    world.post(m.Worn(LISTENER, 1, "has run 10 tasks"))
    assert listener(world).worn is None
    world.post(m.Worn(0, 1, "has run 10 tasks"))
    assert world.pool.successor(0) is not None


# --- failures ------------------------------------------------------------------------------------


def test_killed_it_is_forked_again_at_once_and_the_workers_do_not_notice() -> None:
    world = listening_world()
    kill(world, process_of(world, LISTENER, 1))
    assert world.asked == [(LISTENER, 2)]
    play(world, stubborn=False, until=is_up)
    assert (listener(world).generation, listener(world).restarts) == (2, 1)
    assert [one.generation for one in world.pool.crew] == [1, 1]
    assert exit_reasons(world) == [Reason.CRASH]


def test_killed_again_and_again_it_waits_and_one_that_worked_does_not() -> None:
    for worked, state in ((False, WorkerState.BACKOFF), (True, WorkerState.FORKING)):
        world = listening_world()
        for generation in (1, 2):
            process = process_of(world, LISTENER, generation)
            process.exit = KILLED
            world.report_exit(process, worked=worked)
            if generation == 1:
                play(world, stubborn=False, until=is_up)
        assert listener(world).state is state


def test_one_that_hangs_is_reported_and_beyond_the_timeout_killed() -> None:
    world = listening_world()
    world.post(m.Hung(LISTENER, 1, 12.0, False))
    assert listener(world).health is Health.HUNG
    world.post(m.Hung(LISTENER, 1, 120.0, True))
    assert process_of(world, LISTENER, 1).told == ["kill"]
    play(world, stubborn=False, until=is_up)
    assert exit_reasons(world) == [Reason.HANG]


def test_a_fork_of_it_that_fails_is_tried_again() -> None:
    world = a_world()
    world.load()
    world.open_queue()
    for _ in range(3):
        while (LISTENER, listener(world).generation) not in world.asked:
            next_deadline(world)
        world.fail_fork(LISTENER, listener(world).generation)
    assert listener(world).boot_error == "fork failed: EAGAIN"
    play(world, stubborn=False, until=is_up)
    assert listener(world).boot_error is None


def test_the_zygote_is_not_to_blame_for_an_address_that_is_taken() -> None:
    world = listening_world()
    world.zygote_exits(KILLED)
    play(world, stubborn=False, until=lambda w: w.pool.zygote.state is ZygoteState.READY)
    assert world.pool.zygote.untried
    kill(world, process_of(world, LISTENER, 1))
    for _ in range(4):
        play(world, stubborn=False, until=lambda w: listener(w).state is WorkerState.BOOTING)
        world.post(m.BootFailed(LISTENER, listener(world).generation, "address in use"))
        process = process_of(world, LISTENER, listener(world).generation)
        process.exit = ExitStatus(code=3)
        world.report_exit(process)
    assert world.pool.zygote.state is ZygoteState.READY


def test_an_address_that_can_never_be_bound_ends_the_first_start_with_status_3() -> None:
    world = a_world()
    play(world, stubborn=False, until=lambda w: len(w.processes) == 3)
    world.post(m.BootFailed(LISTENER, 1, "no such folder", final=True))
    play(world, stubborn=False, until=has_ended)
    assert world.exit_code == EXIT_NOT_LOADED
    said = [one.what for one in world.reports if one.detail == "no such folder"]
    assert said == [m.Happening.REFUSED]


def test_a_pool_that_was_ready_once_is_not_ended_by_it() -> None:
    world = listening_world()
    kill(world, process_of(world, LISTENER, 1))
    play(world, stubborn=False, until=lambda w: listener(w).state is WorkerState.BOOTING)
    world.post(m.BootFailed(LISTENER, 2, "no such folder", final=True))
    play(world, stubborn=False, until=is_up)
    assert world.exit_code is None


@pytest.mark.parametrize("listens", [True, False])
def test_a_zygote_that_had_to_be_replaced_and_brings_another_way_is_refused(listens: bool) -> None:
    world = World(Settings(workers=2), listens=listens)
    world.post(m.Started())
    play(world, stubborn=False, until=is_up)
    before = world.pool.workers
    world.zygote_exits(KILLED)
    world.load(listens=not listens)
    assert "a reload follows it" in (world.pool.zygote.error or "")
    assert world.pool.workers == before


# --- stopping ------------------------------------------------------------------------------------


def test_on_a_drain_it_leaves_when_the_last_worker_has() -> None:
    world = listening_world()
    world.post(m.Terminate())
    ours = process_of(world, LISTENER, 1)
    assert [one.told for one in world.processes.values()].count(["drain"]) == 2
    assert ours.told == []
    for slot in (0, 1):
        assert ours.told == []
        process = process_of(world, slot, 1)
        process.exit = ExitStatus(code=0)
        world.report_exit(process)
    assert ours.told == ["drain"]
    play(world, stubborn=False, until=has_ended)
    assert world.exit_code == 0
    assert exit_reasons(world) == [Reason.STOP]


@pytest.mark.parametrize("drains", [False, True])
def test_that_the_workers_drain_is_said_without_it(drains: bool) -> None:
    world = listening_world()
    if drains:  # somebody has sent it a signal
        world.post(m.Draining(LISTENER, 1))
    world.post(m.Terminate())
    for slot in (0, 1):
        world.post(m.Draining(slot, 1))
    (said,) = (one for one in world.reports if one.what is m.Happening.POOL_DRAINING)
    assert said.detail == "2"


def test_a_stop_and_a_kill_reach_it_at_once() -> None:
    world = listening_world()
    ours = process_of(world, LISTENER, 1)
    world.post(m.Terminate())
    world.post(m.Terminate())
    assert ours.told == ["stop"]
    world.post(m.Quit())
    assert ours.told == ["stop", "kill"]
    play(world, stubborn=False, until=has_ended)


def test_one_that_is_killed_while_the_workers_drain_does_not_come_back() -> None:
    world = listening_world()
    world.post(m.Terminate())
    kill(world, process_of(world, LISTENER, 1))
    assert world.asked == []
    play(world, stubborn=False, until=has_ended)
    assert world.exit_code == 0


def test_one_without_which_no_task_can_end_comes_back_while_the_workers_drain() -> None:
    world = listening_world(joins=True)
    world.post(m.Terminate())
    kill(world, process_of(world, LISTENER, 1))
    ours = world.fork(*world.asked[0])
    world.answer_fork(ours)
    world.post(m.Ready(LISTENER, 2))
    assert ours.told == []
    play(world, stubborn=False, until=has_ended)
    assert (ours.told, world.exit_code) == (["drain"], 0)


def test_and_so_does_the_zygote_that_forks_it() -> None:
    world = listening_world(joins=True)
    kill(world, process_of(world, LISTENER, 1))
    world.zygote_exits(KILLED)
    world.post(m.Terminate())
    world.load()
    world.open_queue()
    assert [slot for slot, _ in world.asked] == [LISTENER]
    play(world, stubborn=False, until=has_ended)
    assert world.exit_code == 0


def test_where_it_cannot_be_forked_the_pool_ends_without_it() -> None:
    world = listening_world(joins=True)
    world.post(m.Terminate())
    kill(world, process_of(world, LISTENER, 1))
    world.fail_fork(*world.asked[0])
    for slot in (0, 1):
        process = process_of(world, slot, 1)
        process.exit = ExitStatus(code=0)
        world.report_exit(process)
    play(world, stubborn=False, until=has_ended)
    assert world.exit_code == 0


def test_one_that_comes_while_the_workers_drain_stays_until_they_have() -> None:
    world = listening_world()
    kill(world, process_of(world, LISTENER, 1))
    world.post(m.Terminate())
    ours = world.fork(*world.asked[0])
    world.answer_fork(ours)
    assert ours.told == []
    play(world, stubborn=False, until=has_ended)
    assert ours.told == ["drain"]


# --- reloads -------------------------------------------------------------------------------------


def in_stage(stage: ReloadStage) -> Callable[[World], bool]:
    return lambda world: world.pool.reload is not None and world.pool.reload.stage is stage


def reloading(world: World, *, listens: bool) -> World:
    """Of code that needs a listener or does not, as far as the first exchange."""
    world.listens = listens
    world.post(m.ReloadRequested())
    play(world, stubborn=False, until=in_stage(ReloadStage.ROLLING))
    return world


def test_a_reload_exchanges_it_last_and_its_successor_is_ready_first() -> None:
    world = reloading(listening_world(), listens=True)
    play(world, stubborn=False, until=lambda w: w.pool.successor(LISTENER) is not None)
    assert [one.code for one in world.pool.crew if one.wanted] == [1, 1]
    assert listener(world).state is READY
    assert process_of(world, LISTENER, 1).told == []
    play(world, stubborn=False, until=lambda w: listener(w).code == 1)
    assert listener(world).state is READY
    assert process_of(world, LISTENER, 1).told == ["drain"]
    play(world, stubborn=False, until=is_up)
    assert exit_reasons(world) == [Reason.RELOAD]
    assert world.reloads == [m.ReloadEnded(1, None, None)]
    (done,) = (one for one in world.reports if one.what is m.Happening.RELOAD_DONE)
    assert done.detail == "2"


def test_the_canary_is_a_worker() -> None:
    world = listening_world()
    world.post(m.ReloadRequested())
    play(world, stubborn=False, until=in_stage(ReloadStage.CANARY))
    (canary,) = (one for one in world.pool.workers if one.canary)
    assert canary.slot == 0


def test_new_code_whose_listener_does_not_start_is_rolled_back() -> None:
    world = reloading(listening_world(), listens=True)
    play(world, stubborn=False, until=lambda w: w.pool.successor(LISTENER) is not None)
    world.broken_code = 1
    play(world, stubborn=False, until=is_up)
    assert [one.code for one in world.pool.workers] == [0, 0, 0]
    assert listener(world).generation == 1
    assert world.reloads[0].error == "broken"


def test_killed_during_a_reload_it_comes_back_with_the_code_that_counts() -> None:
    world = reloading(listening_world(), listens=True)
    kill(world, process_of(world, LISTENER, 1))
    play(world, stubborn=False, until=is_up)
    assert [(one.code, one.generation) for one in world.pool.workers] == [(1, 2)] * 3


def test_where_the_new_code_does_without_it_goes_first() -> None:
    world = reloading(listening_world(), listens=False)
    assert world.pool.holder(LISTENER) is None
    assert process_of(world, LISTENER, 1).told == ["drain"]
    assert any(one.code == 0 for one in world.pool.crew if one.wanted)
    play(world, stubborn=False, until=is_up)
    assert [one.slot for one in world.pool.workers] == [0, 1]
    assert world.reloads == [m.ReloadEnded(1, None, None)]


def test_where_only_the_new_code_needs_it_it_comes_last_and_the_reload_waits_for_it() -> None:
    world = World(Settings(workers=2))
    world.post(m.Started())
    play(world, stubborn=False, until=is_up)
    reloading(world, listens=True)
    assert world.pool.holder(LISTENER) is None
    play(world, stubborn=False, until=lambda w: w.pool.holder(LISTENER) is not None)
    assert all(one.code == 1 for one in world.pool.crew if one.wanted)
    assert not world.reloads
    play(world, stubborn=False, until=is_up)
    assert [one.slot for one in world.pool.workers] == [LISTENER, 0, 1]
    assert world.reloads == [m.ReloadEnded(1, None, None)]


def rolling_back_with_a_listener_of_the_new_code() -> World:
    """The old one was killed in the middle of a reload, which then fails; it is BOOTING."""
    world = reloading(listening_world(workers=4), listens=True)
    kill(world, process_of(world, LISTENER, 1))
    world.slow_slot = LISTENER
    world.answer_fork(world.fork(LISTENER, 2))
    world.zygote_exits(KILLED, world.pool.zygote.generation)
    assert in_stage(ReloadStage.ROLLING_BACK)(world)
    assert (listener(world).code, listener(world).state) == (1, WorkerState.BOOTING)
    return world


def workers_are_back(world: World) -> bool:
    """They have the old code again, all of them."""
    wanted = [one for one in world.pool.crew if one.wanted]
    return all(one.code == 0 and one.state is READY for one in wanted)


def test_a_roll_back_waits_for_a_listener_of_the_new_code_and_replaces_it() -> None:
    world = rolling_back_with_a_listener_of_the_new_code()
    play(world, stubborn=False, until=workers_are_back)
    assert in_stage(ReloadStage.ROLLING_BACK)(world)
    world.slow_slot = None
    play(world, stubborn=False, until=is_up)
    assert {one.code for one in world.pool.workers} == {0}


def test_its_replacement_in_a_roll_back_does_not_hold_up_a_recycling() -> None:
    world = rolling_back_with_a_listener_of_the_new_code()
    play(world, stubborn=False, until=workers_are_back)
    world.slow_slot = None
    play(world, stubborn=False, until=lambda w: w.pool.successor(LISTENER) is not None)
    worker = world.pool.crew[-1]
    world.post(m.Worn(worker.slot, worker.generation, "has run 10 tasks"))
    assert world.pool.successor(worker.slot) is not None
    play(world, stubborn=False, until=is_up)


@pytest.mark.parametrize("before", [True, False])
def test_a_roll_back_brings_back_the_listener_that_was_there_or_none(before: bool) -> None:
    world = World(Settings(workers=3), listens=before)
    world.post(m.Started())
    play(world, stubborn=False, until=is_up)
    reloading(world, listens=not before)
    world.broken_code = 1
    play(world, stubborn=False, until=is_up)
    assert (world.pool.holder(LISTENER) is not None) == before
    assert {one.code for one in world.pool.workers} == {0}
    assert happenings(world).count(m.Happening.RELOAD_FAILED) == 1
