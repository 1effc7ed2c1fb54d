"""The core's answers to starts and failures, told to it in single stories."""

from tests.supervisor.simulated_kernel import (
    KILLED,
    World,
    crash,
    happenings,
    in_quarantine,
    is_up,
    next_deadline,
    play,
    running_world,
)

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import (
    EXIT_NOT_LOADED,
    EXIT_REFUSED,
    ExitStatus,
    Settings,
    WorkerState,
    ZygoteState,
)


def test_a_cold_start_loads_opens_forks_and_says_once_that_all_are_ready() -> None:
    world = running_world()
    assert [worker.generation for worker in world.pool.workers] == [1, 1]
    assert happenings(world).count(m.Happening.POOL_READY) == 1
    assert world.pool.phase == "running"
    assert world.pool.next_deadline is None


def test_an_application_that_cannot_be_loaded_ends_a_cold_start_with_status_3() -> None:
    world = World(Settings(workers=2))
    world.post(m.Started())
    world.post(m.ZygoteLoadFailed(1, "no module named app"))
    world.zygote_exits(ExitStatus(code=0))
    assert world.exit_code == EXIT_NOT_LOADED
    assert [one.detail for one in world.reports if one.what is m.Happening.REFUSED] == [
        "no module named app"
    ]


def test_an_application_that_ends_its_process_while_it_is_imported_is_status_3_too() -> None:
    world = World(Settings(workers=2))
    world.post(m.Started())
    world.zygote_exits(ExitStatus(signal=11))
    assert world.exit_code == EXIT_NOT_LOADED
    assert "SIGSEGV" in world.reports[-1].detail


def test_a_queue_that_has_a_supervisor_ends_a_cold_start_with_status_4() -> None:
    world = World(Settings(workers=2))
    world.post(m.Started())
    world.load()
    world.post(m.QueueRefused(1, "pid 17 has it", EXIT_REFUSED))
    world.zygote_exits(ExitStatus(code=0))
    assert world.exit_code == EXIT_REFUSED


def test_a_broadcast_broker_is_refused_for_more_than_one_worker_and_taken_for_one() -> None:
    for workers, code in ((2, EXIT_NOT_LOADED), (1, None)):
        world = World(Settings(workers=workers))
        world.post(m.Started())
        world.load(broadcast="it publishes to all of them")
        if code is not None:
            assert "it publishes to all of them" in world.reports[-1].detail
            world.zygote_exits(ExitStatus(code=0))
        assert world.exit_code == code


def test_an_application_that_starts_threads_is_loaded_again_without_preloading() -> None:
    world = World(Settings(workers=1))
    world.post(m.Started())
    world.load(threads=("metrics",))
    assert m.Happening.PRELOAD_UNSAFE in happenings(world)
    world.zygote_exits(ExitStatus(code=0))
    assert (world.zygote, world.pool.zygote.preload) == (2, False)
    play(world, stubborn=False, until=is_up)
    assert is_up(world)


def test_workers_go_on_while_a_zygote_that_died_is_replaced() -> None:
    world = running_world()
    world.zygote_exits(KILLED)
    assert is_up(world)
    assert world.zygote == 2


def test_a_worker_that_dies_while_there_is_no_zygote_is_replaced_when_there_is_one_again() -> None:
    world = running_world()
    world.zygote_exits(KILLED)
    crash(world)
    assert world.pool.workers[0].state is WorkerState.EMPTY
    play(world, stubborn=False, until=is_up)
    assert [worker.generation for worker in world.pool.workers] == [2, 1]


def test_code_that_broke_since_the_start_is_tried_again_with_backoff_and_said_in_the_state() -> (
    None
):
    world = running_world()
    for _ in range(3):
        if world.zygote is None:
            next_deadline(world)
        assert world.zygote is not None
        world.zygote_exits(KILLED)
    world.now += 60
    world.post(m.Tick())
    assert world.zygote is not None
    world.post(m.ZygoteLoadFailed(world.zygote, "SyntaxError", "Traceback"))
    world.zygote_exits(ExitStatus(code=0))
    assert is_up(world)
    assert world.pool.zygote.error == "SyntaxError"
    play(world, stubborn=False, until=lambda w: w.pool.zygote.state is ZygoteState.READY)
    assert world.pool.zygote.error is None


def stillborn(world: World) -> None:
    """The next worker that was asked for kills itself while it starts."""
    process = world.fork(*world.asked[0])
    world.answer_fork(process)
    process.exit = KILLED
    world.report_exit(process)


def test_a_zygote_that_died_and_came_back_with_code_that_does_not_start_is_replaced_too() -> None:
    """It has imported what lay there by then, and so will the next one."""
    world = running_world(workers=2)
    world.zygote_exits(KILLED)
    play(world, stubborn=False, until=lambda w: w.pool.zygote.state is ZygoteState.READY)
    crash(world)
    stillborn(world)
    assert not world.zygote_told
    next_deadline(world)
    stillborn(world)
    assert world.zygote_told == ["end"]
    world.zygote_exits(ExitStatus(code=0))
    report = world.reports[-1]
    assert report.what is m.Happening.ZYGOTE_FAILED
    assert "do not get ready (killed by SIGKILL before it was ready)" in report.detail
    assert report.delay == 0.05  # the second failure in a row
    play(world, stubborn=False, until=is_up)
    assert world.zygote == 3
    assert world.pool.zygote.error is None


def test_code_that_was_ready_once_is_not_imported_again_for_what_its_workers_die_of() -> None:
    first, again = running_world(workers=2), running_world(workers=2)
    again.zygote_exits(KILLED)
    crash(again)
    play(again, stubborn=False, until=is_up)
    for world in first, again:
        crash(world)
        for _ in range(4):
            if not world.asked:
                next_deadline(world)
            stillborn(world)
        assert world.zygote is not None
        assert not world.zygote_told


def test_workers_that_import_for_themselves_need_no_other_zygote() -> None:
    world = running_world(workers=2, preload=False)
    world.zygote_exits(KILLED)
    play(world, stubborn=False, until=lambda w: w.pool.zygote.state is ZygoteState.READY)
    crash(world)
    for _ in range(4):
        if not world.asked:
            next_deadline(world)
        stillborn(world)
    assert not world.zygote_told


def test_a_killed_worker_is_buried_before_its_successor_is_forked() -> None:
    world = running_world()
    crash(world)
    worker = world.pool.workers[0]
    assert (worker.state, worker.generation, worker.restarts) == (WorkerState.FORKING, 2, 1)
    assert str(worker.last_exit) == "killed by SIGKILL"
    buried = world.history.index(m.Buried(0, 1, world.jitter))
    assert isinstance(world.history[buried - 1], m.Exited)


def test_a_worker_whose_broker_has_no_server_is_tried_again_ever_more_slowly_and_says_why() -> None:
    world = running_world(workers=1)
    crash(world)
    waits = []
    for _ in range(5):
        process = world.fork(*world.asked[0])
        world.answer_fork(process)
        world.post(m.BootFailed(0, process.generation, "connection refused"))
        process.exit = ExitStatus(code=3)
        world.report_exit(process)
        worker = world.pool.workers[0]
        assert worker.boot_error == "connection refused"
        waits.append(0.0 if worker.deadline is None else worker.deadline - world.now)
        if worker.state is WorkerState.BACKOFF:
            assert worker.deadline is not None
            world.now = worker.deadline
            world.post(m.Tick())
    assert [round(wait, 2) for wait in waits] == [0.05, 0.1, 0.2, 0.4, 0.8]
    play(world, stubborn=False, until=is_up)
    assert world.pool.workers[0].boot_error is None


def test_a_zygote_that_does_not_answer_to_a_fork_is_replaced_and_the_fork_done_again() -> None:
    world = running_world(workers=1)
    crash(world)
    next_deadline(world)
    assert world.zygote_told
    world.zygote_exits(KILLED)
    assert world.pool.workers[0].state is WorkerState.EMPTY
    play(world, stubborn=False, until=is_up)
    assert world.zygote == 2


def test_a_minute_in_order_or_a_task_done_ends_a_row_of_failures() -> None:
    for seconds, worked, failures in ((1.0, False, 2), (61.0, False, 1), (1.0, True, 1)):
        world = running_world(workers=1)
        process = world.processes[101]
        process.exit = KILLED
        world.report_exit(process)
        play(world, stubborn=False, until=is_up)
        world.now += seconds
        process = world.processes[102]
        process.exit = KILLED
        world.report_exit(process, worked=worked)
        assert world.pool.workers[0].history.failures == failures


def test_a_slot_that_restarts_too_often_is_quarantined_and_comes_back_later() -> None:
    world = in_quarantine()
    assert world.reports[-1].quarantined
    assert world.pool.workers[0].restarts == world.settings.restart.slot_limit + 1
    play(world, stubborn=False, until=is_up)
    assert is_up(world)


def test_a_process_for_a_generation_that_was_given_up_is_killed() -> None:
    world = running_world(workers=1)
    crash(world)
    late = world.fork(0, 2)
    world.zygote_exits(KILLED)
    play(world, stubborn=False, until=lambda w: bool(w.asked))
    world.post(m.Forked(0, 2, late.pid, 0.5))
    assert late.told == ["kill"]


def test_the_same_answer_twice_does_not_kill_the_worker_it_names() -> None:
    world = running_world(workers=1)
    (process,) = world.processes.values()
    world.post(m.Forked(0, 1, process.pid, 0.5))
    assert process.told == []
    world.post(m.Forked(0, 1, world.fork(0, 1).pid, 0.5))
    assert [one.told for one in world.processes.values()] == [[], ["kill"]]


def test_an_exit_that_is_seen_before_the_answer_to_the_fork_is_an_exit() -> None:
    world = World(Settings(workers=1))
    world.post(m.Started())
    world.load()
    world.open_queue()
    world.asked.clear()
    world.post(m.Exited(0, 1, 101, KILLED, False))
    assert world.asked == [(0, 2)]


def test_a_fork_that_fails_is_tried_again_with_backoff() -> None:
    world = running_world(workers=1)
    crash(world)
    world.fail_fork(*world.asked[0])
    worker = world.pool.workers[0]
    assert (worker.state, worker.boot_error) == (WorkerState.BACKOFF, "fork failed: EAGAIN")
    play(world, stubborn=False, until=is_up)
    assert is_up(world)


def test_a_zygote_that_talks_nonsense_is_killed_and_replaced_or_ends_a_cold_start() -> None:
    cold = World(Settings(workers=1))
    cold.post(m.Started())
    cold.post(m.ZygoteStuck(1, "it said hello"))
    assert "kill" in cold.zygote_told
    cold.zygote_exits(KILLED)
    assert cold.exit_code == EXIT_NOT_LOADED

    warm = running_world()
    for attach in (False, True):
        assert warm.zygote is not None
        if attach:
            warm.load()
        warm.post(m.ZygoteStuck(warm.zygote, "it said hello"))
        assert "kill" in warm.zygote_told
        warm.zygote_exits(KILLED)
        play(warm, stubborn=False, until=lambda world: world.zygote is not None)
    assert is_up(warm)


def test_a_zygote_that_dies_while_its_queue_is_opened_is_replaced() -> None:
    world = running_world()
    world.zygote_exits(KILLED)
    world.load()
    world.zygote_exits(KILLED)
    play(world, stubborn=False, until=lambda w: w.pool.zygote.state is ZygoteState.READY)
    assert world.zygote == 3


def test_an_application_that_moved_to_another_queue_is_not_followed() -> None:
    world = running_world()
    world.zygote_exits(KILLED)
    world.load()
    assert world.zygote is not None
    world.post(m.QueueRefused(world.zygote, "another queue", 1))
    assert world.zygote_told == ["end"]
    world.zygote_exits(ExitStatus(code=0))
    assert (world.pool.zygote.error, world.exit_code) == ("another queue", None)
    assert is_up(world)
