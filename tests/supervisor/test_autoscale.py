"""How a pool follows its load: within bounds, soon up, slowly down, and still when it fits."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_supervise.supervisor.autoscale import INTERVAL, Autoscaler, Sample


class Pool:
    """Workers that take one unit of load each; new ones need `boot` seconds to get READY."""

    def __init__(self, minimum: int, maximum: int, *, workers: int = 1, boot: float = 0.0) -> None:
        self.autoscaler = Autoscaler(minimum, maximum)
        self.boot = boot
        self.now = 1000.0
        self.target = workers
        self.ready = workers
        self.booting: list[float] = []
        self.targets: list[tuple[float, int]] = []
        self.knows_backlog = True

    def run(self, seconds: float, load: Callable[[float], float] | float) -> None:
        for _ in range(round(seconds / INTERVAL)):
            self.now += INTERVAL
            self.step(load(self.now) if callable(load) else load)

    def step(self, load: float) -> None:
        self.ready += sum(at <= self.now for at in self.booting)
        self.booting = [at for at in self.booting if at > self.now]
        waiting = max(0, math.ceil((load - self.ready) * 10))
        sample = Sample(
            backlog=waiting if self.knows_backlog else None,
            busy=min(1.0, load / self.ready) if self.ready else 0.0,
            workers=self.ready,
            target=self.target,
            now=self.now,
        )
        self.scale(self.autoscaler.decide(sample))

    def scale(self, target: int) -> None:
        if target == self.target:
            return
        self.targets.append((self.now - 1000, target))
        self.target = target
        while len(self.booting) and self.ready + len(self.booting) > target:
            self.booting.pop()
        self.ready = min(self.ready, target)
        missing = target - self.ready - len(self.booting)
        self.booting += [self.now + self.boot] * missing


def directions(pool: Pool) -> int:
    """How often it turned from growing to shrinking or back."""
    grew = [after > before for (_, before), (_, after) in pairwise(pool.targets)]
    return sum(before != after for before, after in pairwise(grew))


bounds = st.tuples(st.integers(1, 40), st.integers(0, 60)).map(lambda b: (b[0], b[0] + b[1]))
samples = st.tuples(
    st.none() | st.integers(0, 10_000), st.floats(0, 1), st.integers(0, 120), st.floats(0, 40)
)


@given(bounds=bounds, start=st.integers(1, 120), load=st.lists(samples, max_size=60))
def test_whatever_the_load_the_target_is_within_the_bounds(
    bounds: tuple[int, int],
    start: int,
    load: list[tuple[int | None, float, int, float]],
) -> None:
    autoscaler = Autoscaler(*bounds)
    target, now = start, 0.0
    for backlog, busy, workers, pause in load:
        now += pause
        before = target
        target = autoscaler.decide(Sample(backlog, busy, workers, target, now))
        assert bounds[0] <= target <= bounds[1]
        if bounds[0] <= before <= bounds[1]:
            assert before - 1 <= target <= before + max(1, before // 2)


@given(
    bounds=st.sampled_from([(1, 1), (1, 4), (2, 10), (4, 30), (25, 30)]),
    start=st.integers(1, 30),
    load=st.floats(0, 40),
    boot=st.sampled_from([0.0, 0.7, 5.0]),
    knows_backlog=st.booleans(),
)
def test_a_constant_load_is_met_and_then_nothing_moves_any_more(
    bounds: tuple[int, int], start: int, load: float, boot: float, knows_backlog: bool
) -> None:
    minimum, maximum = bounds
    pool = Pool(minimum, maximum, workers=min(max(start, minimum), maximum), boot=boot)
    pool.knows_backlog = knows_backlog
    pool.run(30 * 31, load)
    settled = pool.target
    assert settled == maximum or load <= 0.8 * settled
    assert settled == minimum or load > 0.5 * (settled - 1)
    assert directions(pool) == 0
    pool.targets.clear()
    pool.run(600, load)
    assert pool.targets == []


def test_a_burst_makes_it_grow_by_half_of_the_pool_a_second() -> None:
    pool = Pool(2, 20, workers=4)
    pool.run(10, 100.0)
    assert pool.targets == [(1.5, 6), (3.0, 9), (4.5, 13), (6.0, 19), (7.5, 20)]


def test_it_does_not_grow_again_before_the_last_growth_is_ready() -> None:
    pool = Pool(1, 100, workers=4, boot=10.0)
    pool.run(10, 100.0)
    assert pool.targets == [(1.5, 6)]
    pool.run(5, 100.0)
    assert pool.targets == [(1.5, 6), (12.5, 9)]


def test_a_worker_that_never_gets_ready_does_not_hold_up_the_others_for_ever() -> None:
    autoscaler = Autoscaler(1, 100)
    targets = [
        autoscaler.decide(Sample(50, 1.0, workers=3, target=4, now=number * INTERVAL))
        for number in range(200)
    ]
    assert targets.index(6) * INTERVAL == 30.0


def test_a_backlog_of_few_tasks_asks_for_few_workers() -> None:
    autoscaler = Autoscaler(1, 100)
    targets = [
        autoscaler.decide(Sample(2, 0.1, workers=10, target=10, now=number * INTERVAL))
        for number in range(3)
    ]
    assert targets == [10, 10, 12]


def test_a_backlog_that_is_gone_within_a_second_changes_nothing() -> None:
    pool = Pool(2, 20, workers=4)
    pool.run(600, lambda now: 6.0 if now % 5 < 1.0 else 2.5)
    assert pool.targets == []


def test_it_shrinks_one_by_one_after_thirty_quiet_seconds_each() -> None:
    pool = Pool(2, 20, workers=5)
    pool.run(200, 0.0)
    assert pool.targets == [(30.5, 4), (61.0, 3), (91.5, 2)]


def test_a_busy_moment_in_between_puts_off_shrinking() -> None:
    pool = Pool(1, 20, workers=4)
    pool.run(1000, lambda now: 3.0 if now % 25 < INTERVAL else 0.0)
    assert pool.targets == []


def test_a_load_that_comes_back_again_and_again_makes_shrinking_ever_rarer() -> None:
    """A load that changes every 40 seconds would take a worker away and bring it back each time."""
    pool = Pool(1, 20, workers=4)
    pool.run(7200, lambda now: 4.0 if now % 80 < 40 else 0.1)
    assert len(pool.targets) < 20
    assert not [at for at, _ in pool.targets if at > 600]


def test_patience_that_was_lost_to_a_changing_load_comes_back_in_quiet_times() -> None:
    pool = Pool(1, 20, workers=8)
    pool.run(600, lambda now: 8.0 if now % 80 < 40 else 0.1)
    pool.targets.clear()
    pool.run(7200, 0.0)
    times = [at for at, _ in pool.targets]
    waits = [round(after - before) for before, after in pairwise(times)]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] > waits[-1] == 30


def test_rare_bursts_do_not_wear_out_the_patience() -> None:
    """One burst every hour: each finds the pool at its minimum again."""
    pool = Pool(2, 12, workers=2)
    for _ in range(5):
        pool.run(60, 12.0)
        assert pool.target == 12
        pool.run(3540, 0.0)
        assert pool.target == 2


def test_what_an_operator_decides_is_the_start_of_what_follows() -> None:
    pool = Pool(1, 10, workers=2)
    pool.run(20, 1.2)
    pool.target = pool.ready = 8
    pool.run(29, 1.2)
    assert pool.targets == []
    pool.run(5, 1.2)
    assert [target for _, target in pool.targets] == [7]


def test_a_pool_outside_of_its_bounds_is_brought_into_them_at_once() -> None:
    assert Autoscaler(2, 4).decide(Sample(0, 0.0, 1, 1, 0.0)) == 2
    assert Autoscaler(2, 4).decide(Sample(0, 0.0, 9, 9, 0.0)) == 4


def test_what_was_not_seen_does_not_count_as_quiet() -> None:
    """A suspended machine: the samples before it and after it are no thirty seconds of quiet."""
    autoscaler = Autoscaler(1, 4)
    for number in range(10):
        now = number * 10.0
        assert autoscaler.decide(Sample(0, 0.0, workers=4, target=4, now=now)) == 4


@pytest.mark.parametrize("bad", [(0, 3), (4, 3)])
def test_bounds_that_are_none_are_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot scale between"):
        Autoscaler(*bad)
