"""Reloads in the core: a canary first, then one by one, and back when anything of it fails."""

from collections.abc import Callable

import pytest
from tests.supervisor.simulated_kernel import (
    KILLED,
    World,
    happenings,
    is_up,
    play,
    running_world,
)

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import (
    ExitStatus,
    Health,
    Reason,
    ReloadStage,
    Worker,
    WorkerState,
    ZygoteState,
)

READY = WorkerState.READY


def ready(world: World) -> list[Worker]:
    return [worker for worker in world.pool.workers if worker.state is READY]


def in_stage(stage: ReloadStage) -> Callable[[World], bool]:
    return lambda world: world.pool.reload is not None and world.pool.reload.stage is stage


def reloading(stage: ReloadStage, **changes: object) -> World:
    world = running_world(**{"workers": 3, **changes})
    world.post(m.ReloadRequested())
    play(world, stubborn=False, until=in_stage(stage))
    return world


def has_ready(slot: int) -> Callable[[World], bool]:
    return lambda world: world.pool.holder(slot) in ready(world)


def canary(world: World) -> Worker:
    (found,) = (worker for worker in world.pool.workers if worker.canary)
    return found


def canary_is_ready(world: World) -> bool:
    return any(worker.canary and worker.state is READY for worker in world.pool.workers)


def codes(world: World) -> list[int]:
    return [worker.code for worker in world.pool.workers]


def _later(world: World) -> bool:
    world.now += 61
    return True


def _refuse(world: World, generation: int) -> None:
    world.load(generation)
    world.post(m.QueueRefused(generation, "another queue", 1))


def _dies(world: World, worker: Worker) -> None:
    process = world.processes[worker.pid]
    process.exit = KILLED
    world.report_exit(process)


def test_a_reload_leaves_the_same_slots_with_new_code_and_one_zygote() -> None:
    world = running_world(workers=3)
    world.post(m.ReloadRequested())
    play(world, stubborn=False, until=is_up)
    assert [(one.slot, one.generation, one.code) for one in world.pool.workers] == [
        (0, 2, 1),
        (1, 2, 1),
        (2, 2, 1),
    ]
    assert list(world.zygotes) == [2]
    assert world.reloads == [m.ReloadEnded(1, None, None)]
    exits = [r for r in world.reports if r.what is m.Happening.WORKER_EXITED]
    assert {report.reason for report in exits} == {Reason.RELOAD}
    assert all(worker.history.failures == 0 for worker in world.pool.workers)


def test_a_slot_has_a_ready_worker_at_every_moment_of_a_reload() -> None:
    world = running_world(workers=3)
    world.post(m.ReloadRequested())
    gaps = 0

    def done(world: World) -> bool:
        nonlocal gaps
        gaps += {worker.slot for worker in ready(world)} != {0, 1, 2}
        return is_up(world)

    play(world, stubborn=False, until=done)
    assert gaps == 0


def test_nothing_of_the_old_code_is_told_anything_before_the_canary_has_stayed_up() -> None:
    world = reloading(ReloadStage.CANARY)
    play(world, stubborn=False, until=canary_is_ready)
    old = [process for process in world.processes.values() if process.generation == 1]
    assert len(old) == 3
    assert not any(process.told for process in old)
    deadline = world.pool.reload and world.pool.reload.deadline
    assert deadline == world.now + world.settings.canary_time
    play(world, stubborn=False, until=in_stage(ReloadStage.ROLLING))
    assert [process.told for process in old] == [["drain"], [], []]


def test_one_worker_after_another_is_replaced() -> None:
    world = reloading(ReloadStage.ROLLING, workers=4)
    most = 0

    def done(world: World) -> bool:
        nonlocal most
        most = max(most, sum(worker.successor for worker in world.pool.workers))
        return is_up(world)

    play(world, stubborn=False, until=done)
    assert most == 1


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (lambda w, g: w.post(m.ZygoteLoadFailed(g, "SyntaxError", "Traceback")), "SyntaxError"),
        (lambda w, g: w.zygote_exits(ExitStatus(signal=11), g), "ended its process"),
        (lambda w, g: w.post(m.ZygoteStuck(g, "it said hello")), "it said hello"),
        (lambda w, _: w.post(m.Tick()) if _later(w) else None, "not ended within 60 s"),
        (_refuse, "another queue"),
    ],
    ids=["broken", "dies", "nonsense", "too slow", "another queue"],
)
def test_new_code_that_cannot_be_loaded_costs_nothing(
    what: Callable[[World, int], None], error: str
) -> None:
    world = reloading(ReloadStage.LOADING)
    before = world.pool.workers
    what(world, 2)
    assert world.pool.workers == before
    play(world, stubborn=False, until=is_up)
    assert world.pool.workers == before
    assert list(world.zygotes) == [1]
    (ended,) = world.reloads
    assert error in (ended.error or "")
    assert happenings(world).count(m.Happening.RELOAD_FAILED) == 1


@pytest.mark.parametrize(
    "what",
    [
        lambda w, c: w.post(m.BootFailed(c.slot, c.generation, "no server", "Traceback")),
        _dies,
        lambda w, _: w.post(m.Tick()) if _later(w) else None,
        lambda w, _: w.zygote_exits(KILLED, 2),
    ],
    ids=["says so", "crashes", "never gets ready", "zygote dies"],
)
def test_a_canary_that_fails_is_taken_back_and_nobody_else_notices(
    what: Callable[[World, Worker], None],
) -> None:
    world = reloading(ReloadStage.CANARY)
    play(world, stubborn=False, until=lambda w: canary(w).state is WorkerState.BOOTING)
    what(world, canary(world))
    play(world, stubborn=False, until=is_up)
    assert [(one.slot, one.generation, one.code) for one in world.pool.workers] == [
        (0, 1, 0),
        (1, 1, 0),
        (2, 1, 0),
    ]
    assert all(one.told == [] for one in world.processes.values())
    (ended,) = world.reloads
    assert ended.error is not None


def test_a_canary_that_crashes_after_it_was_ready_is_taken_back_too() -> None:
    world = reloading(ReloadStage.CANARY)
    play(world, stubborn=False, until=canary_is_ready)
    _dies(world, canary(world))
    play(world, stubborn=False, until=is_up)
    assert codes(world) == [0, 0, 0]
    assert world.reloads[0].error == "its first worker killed by SIGKILL"


def test_one_line_says_what_broke_with_its_traceback() -> None:
    world = running_world(workers=2)
    world.broken_code = 1
    world.post(m.ReloadRequested())
    play(world, stubborn=False, until=is_up)
    failed = [one for one in world.reports if one.traceback is not None]
    assert [(one.what, one.detail, one.traceback) for one in failed] == [
        (m.Happening.RELOAD_FAILED, "broken", "Traceback")
    ]
    exits = [one.reason for one in world.reports if one.what is m.Happening.WORKER_EXITED]
    assert exits == [Reason.RELOAD]


def test_a_failure_after_the_canary_brings_the_old_code_back_everywhere() -> None:
    world = reloading(ReloadStage.ROLLING, workers=4)
    play(world, stubborn=False, until=lambda w: codes(w).count(1) == 3)
    world.broken_code = 1
    play(world, stubborn=False, until=is_up)
    assert codes(world) == [0, 0, 0, 0]
    assert list(world.zygotes) == [1]
    assert [ended.error for ended in world.reloads] == ["broken"]


def test_an_old_zygote_that_died_meanwhile_is_started_again_for_a_roll_back() -> None:
    world = reloading(ReloadStage.ROLLING, workers=4)
    world.zygote_exits(KILLED, 1)
    world.broken_code = 1
    play(world, stubborn=False, until=is_up)
    assert codes(world) == [0, 0, 0, 0]
    assert world.pool.zygote.state is ZygoteState.READY


def test_new_code_whose_zygote_cannot_be_kept_alive_is_rolled_back() -> None:
    world = reloading(ReloadStage.ROLLING, workers=4)
    world.zygote_exits(KILLED, 2)
    play(world, stubborn=False, until=is_up)
    assert codes(world) == [0, 0, 0, 0]
    assert world.reloads[0].error is not None


def test_a_crash_during_a_reload_is_made_up_for_with_the_code_that_counts_by_then() -> None:
    for stage, code in ((ReloadStage.CANARY, 0), (ReloadStage.ROLLING, 1)):
        world = reloading(stage)
        last = next(one for one in world.pool.workers if one.slot == 2)
        _dies(world, last)
        play(world, stubborn=False, until=lambda w: w.pool.find(2, 2) in ready(w))
        born = world.pool.find(2, 2)
        assert born is not None
        assert born.code == code
        play(world, stubborn=False, until=is_up)
        assert codes(world) == [1, 1, 1]


def test_a_request_during_a_reload_is_answered_by_the_next_one() -> None:
    world = reloading(ReloadStage.CANARY)
    world.post(m.ReloadRequested())
    world.post(m.ReloadRequested())
    play(world, stubborn=False, until=is_up)
    assert [ended.number for ended in world.reloads] == [1, 2]
    assert codes(world) == [2, 2, 2]


def test_a_request_while_the_first_code_is_still_being_loaded_waits_for_it() -> None:
    world = World(running_world().settings)
    world.post(m.Started())
    world.post(m.ReloadRequested())
    assert list(world.zygotes) == [1]
    play(world, stubborn=False, until=is_up)
    assert codes(world) == [1, 1]


def test_a_roll_back_that_goes_on_does_not_hold_up_the_next_attempt() -> None:
    world = reloading(ReloadStage.ROLLING, workers=4)
    world.broken_code = 1
    play(world, stubborn=False, until=in_stage(ReloadStage.ROLLING_BACK))
    world.post(m.ReloadRequested())
    assert [ended.number for ended in world.reloads] == [1]
    play(world, stubborn=False, until=is_up)
    assert codes(world) == [2, 2, 2, 2]


def test_a_roll_back_that_such_an_attempt_interrupts_goes_on_when_that_fails_too() -> None:
    world = reloading(ReloadStage.ROLLING, workers=4)
    play(world, stubborn=False, until=lambda w: codes(w).count(1) == 3)
    world.broken_code = 1
    play(world, stubborn=False, until=in_stage(ReloadStage.ROLLING_BACK))
    world.post(m.ReloadRequested())
    world.post(m.ZygoteLoadFailed(max(world.zygotes), "SyntaxError", None))
    play(world, stubborn=False, until=is_up)
    assert codes(world) == [0, 0, 0, 0]
    assert [ended.error for ended in world.reloads] == ["broken", "SyntaxError"]


def test_it_is_over_when_the_last_old_worker_is_gone_and_not_before() -> None:
    world = reloading(ReloadStage.FINISHING)
    play(world, stubborn=False, until=lambda w: bool(w.reloads))
    assert {process.generation for process in world.processes.values()} == {2}
    assert world.pool.reload is None


def test_the_successor_of_a_worker_that_dies_before_it_drains_takes_its_slot_at_once() -> None:
    world = reloading(ReloadStage.ROLLING)
    play(world, stubborn=False, until=lambda w: w.pool.successor(1) is not None)
    holder = world.pool.holder(1)
    assert holder is not None
    _dies(world, holder)
    heir = world.pool.holder(1)
    assert heir is not None
    assert (heir.code, heir.successor, heir.restarts) == (1, False, 1)
    play(world, stubborn=False, until=is_up)
    assert codes(world) == [1, 1, 1]


@pytest.mark.parametrize("stage", ReloadStage)
def test_a_stop_in_the_middle_of_a_reload_ends_both_zygotes_and_answers(
    stage: ReloadStage,
) -> None:
    world = reloading(ReloadStage.ROLLING if stage is ReloadStage.ROLLING_BACK else stage)
    if stage is ReloadStage.ROLLING_BACK:
        world.broken_code = 1
        play(world, stubborn=False, until=in_stage(stage))
    world.post(m.Terminate())
    play(world, stubborn=False, until=lambda w: w.exit_code is not None)
    assert (world.exit_code, world.zygotes) == (0, {})
    assert len(world.reloads) == 1
    assert world.reloads[0].error is not None


def test_no_worker_is_recycled_while_code_is_replaced() -> None:
    world = reloading(ReloadStage.LOADING, workers=4)
    for worker in world.pool.workers:
        world.post(m.Worn(worker.slot, worker.generation, "has run 10 tasks"))
    assert not any(worker.successor for worker in world.pool.workers)
    play(world, stubborn=False, until=is_up)
    assert [worker.generation for worker in world.pool.workers] == [2, 2, 2, 2]


def test_a_new_worker_begins_in_good_health() -> None:
    world = running_world(workers=1)
    world.post(m.Hung(0, 1, 12.0, False))
    world.post(m.ReloadRequested())
    play(world, stubborn=False, until=is_up)
    assert [worker.health for worker in world.pool.workers] == [Health.OK]


# --- a broker that gives each task to each worker ------------------------------------------------


def on_a_broadcast_broker() -> World:
    world = World(running_world(workers=1).settings)
    world.post(m.Started())
    world.load(broadcast="it publishes")
    play(world, stubborn=False, until=is_up)
    return world


def taking(world: World) -> int:
    """Workers that take tasks."""
    return sum(worker.state is READY for worker in world.pool.workers)


def test_two_workers_never_take_tasks_at_once_where_both_would_get_each() -> None:
    for event in (m.ReloadRequested(), m.Worn(0, 1, "has run 10 tasks")):
        world = on_a_broadcast_broker()
        world.post(event)
        most = 0

        def done(world: World) -> bool:
            nonlocal most
            for zygote in world.zygotes.values():
                if not zygote.loaded:
                    world.load(zygote.generation, broadcast="it publishes")
            most = max(most, taking(world))
            return is_up(world) and world.pool.workers[0].generation == 2

        play(world, stubborn=False, until=done)
        assert most == 1
        assert world.pool.workers[0].code == (1 if world.reloads else 0)


def test_there_too_new_code_that_does_not_start_is_rolled_back() -> None:
    world = on_a_broadcast_broker()
    world.broken_code = 1
    world.post(m.ReloadRequested())
    world.load(2, broadcast="it publishes")
    play(world, stubborn=False, until=is_up)
    assert codes(world) == [0]
    assert [ended.error for ended in world.reloads] == ["broken"]
    assert list(world.zygotes) == [1]


def test_the_next_one_does_not_wait_for_old_workers_that_take_long_to_leave() -> None:
    world = reloading(ReloadStage.ROLLING)
    world.post(m.ReloadRequested())
    leaving = None

    def second_has_begun(world: World) -> bool:
        nonlocal leaving
        reload = world.pool.reload
        leaving = [one for one in world.pool.workers if one.state is WorkerState.DRAINING]
        return reload is not None and reload.number == 2

    play(world, stubborn=False, until=second_has_begun)
    assert [ended.number for ended in world.reloads] == [1]
    assert leaving
    play(world, stubborn=False, until=is_up)
    assert codes(world) == [2, 2, 2]


def test_slots_that_wait_because_of_the_old_code_get_the_new_one_at_once() -> None:
    world = running_world(workers=3)
    for slot in (1, 2):
        for _ in range(4):
            play(world, stubborn=False, until=has_ready(slot))
            holder = world.pool.holder(slot)
            assert holder is not None
            _dies(world, holder)
    waiting = [one for one in world.pool.workers if one.state is WorkerState.BACKOFF]
    assert waiting
    now = world.now
    world.post(m.ReloadRequested())
    play(world, stubborn=False, until=lambda w: bool(w.reloads))
    assert world.reloads[0].error is None
    assert codes(world) == [1, 1, 1]
    assert len(ready(world)) == 3
    assert world.now == now + world.settings.canary_time


def test_a_canary_that_stands_still_has_proven_nothing() -> None:
    world = reloading(ReloadStage.CANARY)
    play(world, stubborn=False, until=canary_is_ready)
    new = canary(world)
    world.post(m.Stopped(new.slot, new.generation))
    assert "stopped by a signal" in (world.pool.reload.error or "" if world.pool.reload else "")
    play(world, stubborn=False, until=is_up)
    assert codes(world) == [0, 0, 0]


def test_a_canary_whose_event_loop_is_blocked_stays_up_and_is_taken_back_all_the_same() -> None:
    world = reloading(ReloadStage.CANARY)
    play(world, stubborn=False, until=canary_is_ready)
    world.now += world.settings.canary_time
    world.post(m.Tick())
    assert world.processes[canary(world).pid].asked
    world.now += world.settings.canary_timeout
    world.post(m.Tick())
    world.processes[canary_pid(world)].asked = False
    play(world, stubborn=False, until=is_up)
    assert codes(world) == [0, 0, 0]
    assert "does not turn" in (world.reloads[0].error or "")


def canary_pid(world: World) -> int:
    (process,) = (one for one in world.processes.values() if one.generation == 2)
    return process.pid


def test_an_answer_that_nobody_asked_for_proves_nothing() -> None:
    world = reloading(ReloadStage.CANARY)
    play(world, stubborn=False, until=canary_is_ready)
    new = canary(world)
    world.post(m.Answered(new.slot, new.generation))
    assert in_stage(ReloadStage.CANARY)(world)


def test_what_refused_code_said_of_its_broker_is_forgotten_with_it() -> None:
    world = reloading(ReloadStage.LOADING)
    world.load(2, broadcast="it publishes")  # for three workers: refused
    play(world, stubborn=False, until=is_up)
    assert world.reloads[0].error is not None
    world.post(m.Scale(4, "a person"))
    assert world.pool.target == 4
    assert world.pool.broadcast is None


def test_a_broadcast_broker_stays_one_while_other_code_is_tried_and_after_it_has_failed() -> None:
    world = on_a_broadcast_broker()
    world.broken_code = 1
    world.post(m.ReloadRequested())
    world.load(2)  # a queue of ours
    world.post(m.Scale(3, "a person"))
    play(world, stubborn=False, until=is_up)
    world.post(m.Scale(3, "a person"))
    assert world.pool.target == 1
    assert codes(world) == [0]


def test_a_fork_that_fails_after_the_canary_says_nothing_about_the_code() -> None:
    world = reloading(ReloadStage.ROLLING)
    play(world, stubborn=False, until=lambda w: bool(w.asked))
    world.fail_fork(*world.asked[0])
    world.fail_fork(*world.asked[0])
    play(world, stubborn=False, until=is_up)
    assert codes(world) == [1, 1, 1]
    assert world.reloads[0].error is None
