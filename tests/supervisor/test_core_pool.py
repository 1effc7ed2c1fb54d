"""The size and the age of a pool in the core: scaling, recycling, health."""

import pytest
from tests.supervisor.simulated_kernel import (
    KILLED,
    World,
    happenings,
    is_up,
    next_deadline,
    play,
    running_world,
)

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import Health, Reason, WorkerState
from taskiq_supervise.supervisor.core.step import step

READY = WorkerState.READY


def told(world: World, slot: int, generation: int = 1) -> list[str]:
    (process,) = (
        one for one in world.processes.values() if (one.slot, one.generation) == (slot, generation)
    )
    return process.told


def exit_reasons(world: World) -> list[Reason | None]:
    return [one.reason for one in world.reports if one.what is m.Happening.WORKER_EXITED]


# --- scaling -------------------------------------------------------------------------------------


def test_growing_forks_what_is_missing_and_shrinking_drains_the_highest_slots() -> None:
    world = running_world(workers=2)
    world.post(m.Scale(4, "a person"))
    play(world, stubborn=False, until=is_up)
    assert len(world.processes) == 4
    world.post(m.Scale(1, "a person"))
    assert [told(world, slot) for slot in range(4)] == [[], ["drain"], ["drain"], ["drain"]]
    play(world, stubborn=False, until=is_up)
    assert [process.slot for process in world.processes.values()] == [0]
    assert exit_reasons(world) == [Reason.SCALE] * 3


def test_a_slot_that_comes_back_is_not_taken_for_the_one_that_left() -> None:
    world = running_world(workers=2)
    world.post(m.Scale(1, "a person"))
    world.post(m.Scale(2, "a person"))
    leaving, new = (one for one in world.pool.workers if one.slot == 1)
    assert (leaving.wanted, leaving.generation) == (False, 1)
    assert (new.wanted, new.generation) == (True, 2)
    assert leaving.seat != new.seat
    play(world, stubborn=False, until=is_up)
    assert [one.generation for one in world.pool.workers] == [1, 2]


def test_a_worker_that_was_asked_for_and_is_not_wanted_any_more_leaves_when_it_comes() -> None:
    world = running_world(workers=1)
    world.post(m.Scale(2, "a person"))
    asked = world.asked[0]
    world.post(m.Scale(1, "a person"))
    process = world.fork(*asked)
    world.answer_fork(process)
    assert process.told == ["drain"]
    play(world, stubborn=False, until=is_up)
    assert len(world.pool.workers) == 1


def test_a_broker_that_publishes_is_not_scaled_up() -> None:
    world = World(running_world(workers=1).settings)
    world.post(m.Started())
    world.load(broadcast="it publishes")
    play(world, stubborn=False, until=is_up)
    world.post(m.Scale(2, "SIGTTIN"))
    assert world.pool.target == 1
    assert happenings(world)[-1] is m.Happening.SCALE_REFUSED


# --- recycling -----------------------------------------------------------------------------------


def test_a_worn_worker_works_until_its_successor_is_ready() -> None:
    world = running_world(workers=2)
    world.post(m.Worn(0, 1, "has run 10 tasks"))
    play(world, stubborn=False, until=lambda w: len(w.processes) == 3)
    assert told(world, 0) == []
    play(world, stubborn=False, until=lambda w: bool(told(w, 0)))
    successor = world.pool.find(0, 2)
    assert successor is not None
    assert successor.state is READY
    play(world, stubborn=False, until=is_up)
    assert exit_reasons(world) == [Reason.RECYCLE]
    assert [one.history.failures for one in world.pool.workers] == [0, 0]
    assert [one.restarts for one in world.pool.workers] == [0, 0]
    assert [one.last_reason for one in world.pool.workers] == [Reason.RECYCLE, None]


@pytest.mark.parametrize(("workers", "at_once"), [(1, 1), (3, 1), (4, 1), (8, 2), (12, 3)])
def test_no_more_than_a_quarter_of_the_pool_is_recycled_at_once(workers: int, at_once: int) -> None:
    world = running_world(workers=workers)
    for slot in range(workers):
        world.post(m.Worn(slot, 1, "has run 10 tasks"))
    most = 0

    def done(world: World) -> bool:
        nonlocal most
        leaving = {one.slot for one in world.pool.workers if not one.wanted}
        coming = {one.slot for one in world.pool.workers if one.successor}
        most = max(most, len(leaving | coming))
        return is_up(world) and all(one.generation == 2 for one in world.pool.workers)

    play(world, stubborn=False, until=done)
    assert most == at_once


def test_a_lifetime_ends_earlier_by_a_part_that_was_drawn_at_birth() -> None:
    world = running_world(workers=1, max_lifetime=1000.0, recycle_jitter=0.2)
    started = world.now
    next_deadline(world)  # jitter is 0.5 here
    assert world.now - started == pytest.approx(900.0)
    play(world, stubborn=False, until=lambda w: is_up(w) and w.pool.workers[0].generation == 2)
    assert exit_reasons(world) == [Reason.RECYCLE]


def test_a_successor_that_does_not_start_leaves_the_worn_one_at_work() -> None:
    world = running_world(workers=1)
    world.post(m.Worn(0, 1, "has grown"))
    for _ in range(5):
        play(world, stubborn=False, until=lambda w: len(w.processes) == 2)
        process = next(one for one in world.processes.values() if one.generation > 1)
        process.exit = KILLED
        world.report_exit(process)
    holder = world.pool.holder(0)
    assert holder is not None
    assert (holder.generation, holder.state) == (1, READY)
    assert world.pool.successor(0) is not None
    play(world, stubborn=False, until=is_up)
    assert world.pool.workers[0].generation > 5


# --- health --------------------------------------------------------------------------------------


def test_a_hang_is_reported_with_stacks_and_its_wakes_are_passed_on() -> None:
    world = running_world(workers=1)
    world.post(m.Hung(0, 1, 12.0, False))
    healths = [world.pool.workers[0].health]
    assert told(world, 0) == []
    assert happenings(world)[-1] is m.Happening.WORKER_HUNG
    world.post(m.Recovered(0, 1, 15.0))
    healths.append(world.pool.workers[0].health)
    assert healths == [Health.HUNG, Health.OK]


def test_a_hang_beyond_the_timeout_ends_the_worker_and_counts_as_a_failure() -> None:
    world = running_world(workers=1)
    world.post(m.Hung(0, 1, 60.0, True))
    assert told(world, 0) == ["kill"]
    play(world, stubborn=False, until=is_up)
    assert exit_reasons(world) == [Reason.HANG]
    assert world.pool.workers[0].history.failures == 1


def test_a_task_that_overruns_its_limit_costs_its_worker_and_is_no_failure_of_it() -> None:
    world = running_world(workers=1)
    world.post(m.Overdue(0, 1, ("a-task",)))
    assert told(world, 0) == ["kill"]
    play(world, stubborn=False, until=is_up)
    assert exit_reasons(world) == [Reason.TIMEOUT]
    assert world.pool.workers[0].history.failures == 0


def test_who_is_stopped_by_a_signal_is_not_said_to_hang() -> None:
    world = running_world(workers=1)
    world.post(m.Stopped(0, 1))
    world.post(m.Hung(0, 1, 12.0, False))
    world.post(m.Hung(0, 1, 60.0, True))
    assert (world.pool.workers[0].health, told(world, 0)) == (Health.STOPPED, [])
    world.post(m.Continued(0, 1))
    assert world.pool.workers[0].health is Health.OK


def test_a_worker_that_does_not_get_ready_in_time_is_killed_and_tried_again() -> None:
    world = running_world(workers=1)
    process = world.processes[101]
    process.exit = KILLED
    world.report_exit(process)
    play(world, stubborn=False, until=lambda w: w.pool.workers[0].state is WorkerState.BOOTING)
    next_deadline(world)
    assert told(world, 0, 2) == ["kill"]
    assert "not ready within 60 s" in (world.pool.workers[0].boot_error or "")
    play(world, stubborn=False, until=is_up)
    assert exit_reasons(world) == [Reason.CRASH, Reason.BOOT]


def test_without_a_limit_a_worker_may_boot_for_ever() -> None:
    world = World(running_world(workers=1, boot_timeout=None).settings)
    world.post(m.Started())
    play(world, stubborn=False, until=lambda w: bool(w.processes))
    assert world.pool.next_deadline is None


def effects_of(event: m.Event, world: World) -> list[m.Effect]:
    return list(step(world.pool, event, world.now)[1])


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (m.Hung(0, 1, 60.0, True), m.KillWorker(0, 1, blame=True, dump=True)),
        (m.Overdue(0, 1, ("a",)), m.KillWorker(0, 1, blame=False, dump=True)),
        (m.Hung(0, 1, 12.0, False), m.DumpStacks(0, 1)),
        (m.Hung(0, 1, 12.0, False), m.SetAside(0, 1)),
        (m.Stopped(0, 1), m.SetAside(0, 1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_done_about_it(event: m.Event, expected: m.Effect) -> None:
    assert expected in effects_of(event, running_world(workers=1))


@pytest.mark.parametrize(
    ("before", "event"),
    [
        (m.Hung(0, 1, 12.0, False), m.Recovered(0, 1, 15.0)),
        (m.Stopped(0, 1), m.Continued(0, 1)),
    ],
)
def test_who_can_answer_again_is_called_back(before: m.Event, event: m.Event) -> None:
    world = running_world(workers=1)
    world.post(before)
    assert m.CallBack(0, 1) in effects_of(event, world)


@pytest.mark.parametrize("event", [m.Worn(1, 1, "has grown"), m.Scale(1, "a person")], ids=str)
def test_who_is_recycled_or_too_many_has_all_the_time_in_the_world_until_a_stop(
    event: m.Event,
) -> None:
    world = running_world(workers=2)
    world.post(event)
    play(world, stubborn=False, until=lambda w: "drain" in told(w, 1))
    (leaving,) = (one for one in world.pool.workers if not one.wanted)
    assert (leaving.state, leaving.deadline) == (WorkerState.DRAINING, None)
    world.now += 1e6
    world.post(m.Tick())
    assert told(world, 1) == ["drain"]
    world.post(m.Terminate())
    (leaving,) = (one for one in world.pool.workers if one.slot == 1 and one.generation == 1)
    assert leaving.deadline == world.now + world.settings.graceful_timeout
    world.now += world.settings.graceful_timeout
    world.post(m.Tick())
    assert told(world, 1) == ["drain", "stop"]


def test_crashes_during_a_recycling_count_like_others() -> None:
    world = running_world(workers=1)
    for _ in range(3):
        play(world, stubborn=False, until=is_up)
        worker = world.pool.workers[0]
        world.post(m.Worn(0, worker.generation, "has run 10 tasks"))
        process = world.processes[worker.pid]
        process.exit = KILLED
        world.report_exit(process)
    (worker,) = world.pool.workers
    assert (worker.history.failures, len(worker.history.restarts)) == (3, 3)
