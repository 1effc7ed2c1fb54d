"""The core against a simulated kernel: whatever happens, no worker is forgotten and a stop ends."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.supervisor.simulated_kernel import (
    KILLED,
    Process,
    World,
    ZygoteProcess,
    has_ended,
    is_at_rest,
    is_up,
    play,
)

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import (
    LISTENER,
    UNHURRIED,
    ExitStatus,
    Settings,
    WorkerState,
    ZygoteState,
)

EXITS = st.sampled_from(
    [ExitStatus(code=0), ExitStatus(code=1), ExitStatus(code=3), ExitStatus(signal=9), ExitStatus()]
)


TAKING = {WorkerState.BOOTING, WorkerState.READY}
NOTICES: list[Callable[[int, int], m.WorkerEvent]] = [
    lambda slot, generation: m.Worn(slot, generation, "has run 10 tasks"),
    lambda slot, generation: m.Hung(slot, generation, 12.0, False),
    lambda slot, generation: m.Hung(slot, generation, 120.0, True),
    lambda slot, generation: m.Recovered(slot, generation, 12.0),
    lambda slot, generation: m.Overdue(slot, generation, ("task",)),
    m.Stopped,
    m.Continued,
    m.Answered,
]


class Supervision(RuleBasedStateMachine):
    """Rules are what can happen; the invariants must hold between any two of them."""

    world: World

    @initialize(
        workers=st.integers(1, 5),
        hardkill_count=st.integers(1, 4),
        lifetime=st.sampled_from([None, 3600.0]),
        turns=st.integers(0, 12),
        listens=st.booleans(),
        joins=st.booleans(),
    )
    def start(
        self,
        workers: int,
        hardkill_count: int,
        lifetime: float | None,
        turns: int,
        listens: bool,
        joins: bool,
    ) -> None:
        settings = Settings(workers=workers, hardkill_count=hardkill_count, max_lifetime=lifetime)
        self.given_up = False
        self.world = World(settings, listens=listens, joins=joins)
        self.world.post(m.Started())
        play(self.world, stubborn=False, until=is_up, turns=turns)

    def processes(self, *, ended: bool) -> list[Process]:
        return [p for p in self.world.processes.values() if (p.exit is not None) is ended]

    # --- zygotes ---------------------------------------------------------------------------------

    def zygote(self, data: st.DataObject, **marks: bool) -> ZygoteProcess | None:
        found = [
            one
            for one in self.world.zygotes.values()
            if all(getattr(one, name) is value for name, value in marks.items())
        ]
        return data.draw(st.sampled_from(found)) if found else None

    @precondition(lambda self: any(not one.loaded for one in self.world.zygotes.values()))
    @rule(data=st.data(), threads=st.sampled_from([(), ("pool",)]), publishes=st.booleans())
    def zygote_loads(self, data: st.DataObject, threads: tuple[str, ...], publishes: bool) -> None:
        zygote = self.zygote(data, loaded=False)
        assert zygote is not None
        # With more workers than one it would be refused, and a cold start would be over.
        broadcast = "it publishes" if publishes and self.world.pool.target == 1 else None
        listens = self.world.listens and broadcast is None
        self.world.load(zygote.generation, listens=listens, threads=threads, broadcast=broadcast)

    @precondition(lambda self: self.world.zygotes and self.world.pool.loaded)
    @rule(data=st.data())
    def zygote_cannot_load_again(self, data: st.DataObject) -> None:
        zygote = self.zygote(data)
        assert zygote is not None
        self.world.post(m.ZygoteLoadFailed(zygote.generation, "SyntaxError", None))

    @precondition(lambda self: any(one.opening for one in self.world.zygotes.values()))
    @rule(data=st.data())
    def queue_opens(self, data: st.DataObject) -> None:
        zygote = self.zygote(data, opening=True)
        assert zygote is not None
        self.world.open_queue(zygote.generation)

    @precondition(lambda self: self.world.zygotes)
    @rule(data=st.data(), status=EXITS)
    def zygote_exits(self, data: st.DataObject, status: ExitStatus) -> None:
        zygote = self.zygote(data)
        assert zygote is not None
        if self.world.pool.loaded or zygote.told:
            self.world.zygote_exits(status, zygote.generation)

    @precondition(lambda self: self.world.zygotes and self.world.pool.loaded)
    @rule(data=st.data())
    def zygote_talks_nonsense(self, data: st.DataObject) -> None:
        zygote = self.zygote(data)
        assert zygote is not None
        self.world.post(m.ZygoteStuck(zygote.generation, "nonsense"))

    @precondition(lambda self: self.world.asked)
    @rule(data=st.data(), dies_first=st.booleans(), reuse_pid=st.booleans())
    def zygote_forks(self, data: st.DataObject, dies_first: bool, reuse_pid: bool) -> None:
        slot, generation = data.draw(st.sampled_from(self.world.asked))
        process = self.world.fork(slot, generation, reuse_pid=reuse_pid)
        if dies_first:
            process.exit = KILLED
        self.world.answer_fork(process)

    @precondition(lambda self: self.world.asked)
    @rule(data=st.data())
    def zygote_forks_and_dies_before_it_answers(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(self.world.asked))
        self.world.fork(*asked)
        self.world.zygote_exits(KILLED, self.world.asked_of[asked])

    @precondition(lambda self: self.world.asked)
    @rule(data=st.data())
    def fork_fails(self, data: st.DataObject) -> None:
        self.world.fail_fork(*data.draw(st.sampled_from(self.world.asked)))

    # --- workers ---------------------------------------------------------------------------------

    @precondition(lambda self: self.processes(ended=False))
    @rule(data=st.data(), event=st.sampled_from([m.Ready, m.Draining, m.Drained]))
    def worker_speaks(self, data: st.DataObject, event: Any) -> None:
        process = data.draw(st.sampled_from(self.processes(ended=False)))
        if process.answered:
            self.world.post(event(process.slot, process.generation))

    @precondition(lambda self: self.processes(ended=False))
    @rule(data=st.data(), final=st.booleans())
    def worker_cannot_boot(self, data: st.DataObject, final: bool) -> None:
        process = data.draw(st.sampled_from(self.processes(ended=False)))
        if process.answered:
            failed = m.BootFailed(process.slot, process.generation, "no server", final=final)
            stopped = self.world.pool.stopping
            self.world.post(failed)
            self.given_up = self.given_up or (self.world.pool.stopping and not stopped)

    @precondition(lambda self: self.processes(ended=False))
    @rule(data=st.data(), notice=st.sampled_from(NOTICES))
    def worker_is_noticed(
        self, data: st.DataObject, notice: Callable[[int, int], m.WorkerEvent]
    ) -> None:
        process = data.draw(st.sampled_from(self.processes(ended=False)))
        if process.answered:
            self.world.post(notice(process.slot, process.generation))

    @precondition(lambda self: self.processes(ended=False))
    @rule(data=st.data(), status=EXITS)
    def worker_ends(self, data: st.DataObject, status: ExitStatus) -> None:
        data.draw(st.sampled_from(self.processes(ended=False))).exit = status

    @precondition(lambda self: self.processes(ended=True))
    @rule(data=st.data(), worked=st.booleans())
    def exit_is_seen(self, data: st.DataObject, worked: bool) -> None:
        process = data.draw(st.sampled_from(self.processes(ended=True)))
        self.world.report_exit(process, worked=worked)

    # --- time, people, noise ---------------------------------------------------------------------

    @rule(seconds=st.floats(0, 1e6), jitter=st.floats(0, 1, exclude_max=True))
    def time_passes(self, seconds: float, jitter: float) -> None:
        self.world.now += seconds
        self.world.jitter = jitter
        self.world.post(m.Tick())

    @rule()
    def the_deadline_comes(self) -> None:
        deadline = self.world.pool.next_deadline
        if deadline is not None:
            self.world.now = max(self.world.now, deadline)
            self.world.post(m.Tick())

    @rule(listens=st.booleans())
    def reload(self, listens: bool) -> None:
        """Of code that may need a listener or not, whatever the present one does."""
        self.world.listens = listens
        self.world.post(m.ReloadRequested())

    @rule(workers=st.integers(1, 5))
    def scale(self, workers: int) -> None:
        self.world.post(m.Scale(workers, "a person"))

    @precondition(lambda self: self.world.pool.loaded)
    @rule()
    def sigterm(self) -> None:
        self.world.post(m.Terminate())

    @precondition(lambda self: self.world.pool.loaded)
    @rule()
    def sigquit(self) -> None:
        self.world.post(m.Quit())

    @rule(data=st.data())
    def an_old_event_comes_again(self, data: st.DataObject) -> None:
        """Not those that the shell itself makes once per call: they have no second sender."""
        repeatable = (m.Exited, m.Ready, m.ForkFailed, m.ForkLost, m.Draining, m.Drained, m.Tick)
        old = [event for event in self.world.history if isinstance(event, repeatable)]
        gone = [
            event
            for event in old
            if not isinstance(event, m.WorkerEvent) or not self.lives(event.slot, event.generation)
        ]
        if gone:
            self.world.post(data.draw(st.sampled_from(gone)))

    @rule(turns=st.integers(1, 6))
    def all_goes_well_for_a_while(self, turns: int) -> None:
        play(self.world, stubborn=False, until=is_at_rest, turns=turns)

    @rule(slot=st.integers(-2, 9), generation=st.integers(50, 60), status=EXITS)
    def an_event_about_nobody(self, slot: int, generation: int, status: ExitStatus) -> None:
        self.world.post(m.Exited(slot, generation, 99, status, False))
        self.world.post(m.Ready(slot, generation))
        self.world.post(m.ZygoteExited(generation, status, 0.5))

    def lives(self, slot: int, generation: int) -> bool:
        return (slot, generation) in self.world.asked or any(
            (process.slot, process.generation) == (slot, generation)
            for process in self.world.processes.values()
        )

    # --- what must hold --------------------------------------------------------------------------

    @invariant()
    def every_process_is_known(self) -> None:
        for process in self.world.processes.values():
            if process.abandoned or "kill" in process.told:
                continue
            worker = self.world.pool.find(process.slot, process.generation)
            assert worker is not None
            known = worker.alive and worker.pid == process.pid
            assert known or (worker.state is WorkerState.FORKING and not process.answered)

    @invariant()
    def every_worker_is_a_process(self) -> None:
        for worker in self.world.pool.workers:
            if worker.alive:
                assert worker.pid in self.world.processes
            if worker.state is WorkerState.FORKING:
                assert (worker.slot, worker.generation) in self.world.asked

    @invariant()
    def a_slot_has_one_worker_that_is_wanted_and_one_successor_at_most(self) -> None:
        pool = self.world.pool
        wanted = [one.slot for one in pool.workers if one.wanted and not one.successor]
        assert len(wanted) == len(set(wanted))
        successors = [one.slot for one in pool.workers if one.wanted and one.successor]
        assert len(successors) == len(set(successors))
        assert set(successors) <= set(wanted)
        if pool.ends_need_listener:
            assert wanted in ([], [LISTENER])
        elif pool.stopping:
            assert wanted == []
        else:
            assert [slot for slot in wanted if slot != LISTENER] == list(range(pool.target))
        keys = [(one.slot, one.generation) for one in pool.workers if one.generation]
        assert len(keys) == len(set(keys))

    @invariant()
    def there_is_a_listener_where_the_code_needs_one_and_none_elsewhere(self) -> None:
        pool = self.world.pool
        if pool.stopping:
            return
        if not pool.zygote.listens:
            assert pool.holder(LISTENER) is None
        elif not any(one.code != pool.zygote.code for one in pool.crew):
            assert pool.holder(LISTENER) is not None

    @invariant()
    def a_listener_that_stays_has_no_workers_beside_it_that_listen_for_themselves(self) -> None:
        staying = [one for one in self.world.pool.workers if one.wanted and not one.canary]
        up = [one for one in staying if one.state in TAKING]
        if any(one.slot == LISTENER for one in up):
            assert all(self.world.said[one.zygote] for one in up)

    @invariant()
    def never_do_two_take_tasks_that_each_of_them_would_get(self) -> None:
        pool = self.world.pool
        if pool.broadcast is not None:
            assert sum(worker.state is WorkerState.READY for worker in pool.crew) <= 1

    @invariant()
    def one_worker_is_recycled_at_a_time_in_pools_as_small_as_these(self) -> None:
        successors = [one for one in self.world.pool.crew if one.successor and one.wanted]
        assert len([one for one in successors if not one.canary]) <= 1

    @invariant()
    def whoever_waits_for_time_has_a_deadline(self) -> None:
        waits = {
            WorkerState.FORKING,
            WorkerState.BOOTING,
            WorkerState.DRAINING,
            WorkerState.STOPPING,
            WorkerState.KILLING,
            WorkerState.BACKOFF,
            WorkerState.QUARANTINED,
        }
        for worker in self.world.pool.workers:
            at_leisure = worker.state is WorkerState.DRAINING and worker.reason in UNHURRIED
            if not at_leisure:
                assert (worker.deadline is not None) == (worker.state in waits)
            elif self.world.pool.stopping:
                assert worker.deadline is not None
        waiting = {
            ZygoteState.LOADING,
            ZygoteState.ATTACHING,
            ZygoteState.ENDING,
            ZygoteState.BACKOFF,
        }
        for zygote in (self.world.pool.zygote, *self.world.pool.others):
            assert (zygote.deadline is not None) == (zygote.state in waiting)

    @invariant()
    def every_zygote_is_known(self) -> None:
        pool = self.world.pool
        known = {zygote.generation for zygote in (pool.zygote, *pool.others)}
        assert set(self.world.zygotes) <= known

    @invariant()
    def nothing_is_left_when_it_has_ended(self) -> None:
        if self.world.exit_code is not None:
            assert not [one for one in self.world.processes.values() if not one.abandoned]
            assert not self.world.zygotes
            assert self.world.pool.reload is None

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        if not self.world.pool.stopping:
            play(self.world, stubborn=False, until=is_at_rest)
            assert is_up(self.world), self.world.pool
            assert len({worker.code for worker in self.world.pool.workers}) == 1
            self.world.post(m.Terminate())
        # The worst of workers: it neither drains nor stops, and ends only by SIGKILL.
        play(self.world, stubborn=True, until=has_ended)
        # Only a start that took too long, or can never succeed, is a failure here.
        failed = self.given_up or not self.world.pool.loaded
        assert self.world.exit_code == (3 if failed else 0), self.world.pool


Supervision.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestSupervision = Supervision.TestCase
