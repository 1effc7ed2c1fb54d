"""Who is accused of hanging, when, and that nobody is for what we have slept through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_supervise.supervisor.health import Hang, HealthWatch, Recovery

WARN = 10.0
TIMEOUT = 60.0
START = 1000.0


class Machine:
    """A clock, workers that beat every second unless they hang, and looks when they are due."""

    def __init__(self, warn: float | None = WARN, timeout: float | None = TIMEOUT) -> None:
        self.now = START
        self.watch: HealthWatch[str] = HealthWatch(warn, timeout)
        self.beats = {"a": START, "b": START}
        self.hanging: set[str] = set()
        self.looks = 0
        self.news: list[tuple[float, Hang[str] | Recovery[str]]] = []
        self.look()

    def look(self) -> None:
        self.looks += 1
        self.news += [(self.now - START, one) for one in self.watch.look(self.beats, self.now)]

    def run(self, seconds: float) -> None:
        """Time goes on, and everything in it happens when it is due."""
        end = self.now + seconds
        while True:
            due = self.watch.next_look
            beats = [beat + 1 for key, beat in self.beats.items() if key not in self.hanging]
            self.now = min(time for time in (due, *beats, end) if time is not None)
            if self.now >= end:
                self.now = end
                return
            for key, beat in self.beats.items():
                if key not in self.hanging and beat + 1 <= self.now:
                    self.beats[key] = self.now
            if due is not None and due <= self.now:
                self.look()

    def pause(self, seconds: float) -> None:
        """Nothing runs, neither workers nor we, while the clock goes on."""
        self.now += seconds
        while self.watch.next_look is not None and self.watch.next_look <= self.now:
            self.look()
        for key in self.beats.keys() - self.hanging:
            self.beats[key] = self.now


def test_workers_that_beat_are_never_accused_and_hardly_looked_at() -> None:
    machine = Machine()
    machine.run(3600)
    assert machine.news == []
    assert machine.looks <= 3600 / (WARN / 2) + 2


def test_a_blocked_loop_is_reported_once_at_the_limit_and_again_when_it_is_too_long() -> None:
    machine = Machine()
    machine.run(30.5)
    machine.hanging.add("a")
    machine.run(200)
    # The last heartbeat was at 30.
    assert machine.news == [
        (40.0, Hang("a", 10.0, too_long=False)),
        (90.0, Hang("a", 60.0, too_long=True)),
    ]


def test_a_loop_that_turns_again_is_reported_with_the_time_it_did_not() -> None:
    machine = Machine()
    machine.hanging.add("b")
    machine.run(25.5)
    machine.hanging.clear()
    machine.beats["b"] = machine.now
    machine.run(5)
    assert [one for _, one in machine.news] == [
        Hang("b", 10.0, too_long=False),
        Recovery("b", 25.5),
    ]
    assert machine.news[1][0] < 27  # while somebody hangs we look every second


def test_a_second_hang_is_news_again() -> None:
    machine = Machine(timeout=None)
    for _ in range(2):
        machine.hanging.add("a")
        machine.run(15)
        machine.hanging.clear()
        machine.beats["a"] = machine.now
        machine.run(15)
    assert [type(one) for _, one in machine.news] == [Hang, Recovery] * 2


def test_a_pause_for_which_nobody_is_woken_accuses_nobody() -> None:
    machine = Machine()
    machine.run(20)
    machine.pause(3600)
    machine.run(20)
    assert machine.news == []


def test_after_a_pause_a_hang_is_measured_anew() -> None:
    machine = Machine()
    machine.run(20)
    machine.hanging.add("a")
    machine.run(5)
    machine.pause(3600)
    machine.run(9.5)
    assert machine.news == []
    machine.run(1)
    assert [one for _, one in machine.news] == [Hang("a", 10.0, too_long=False)]


def test_a_pause_does_not_count_towards_the_time_after_which_a_known_hang_is_too_long() -> None:
    machine = Machine()
    machine.hanging.add("a")
    machine.run(50)
    machine.pause(100)
    machine.run(59)
    assert [one for _, one in machine.news] == [Hang("a", 10.0, too_long=False)]
    machine.run(2)
    assert machine.news[-1][1] == Hang("a", 60.0, too_long=True)


@given(
    began=st.floats(0, 30),
    lengths=st.lists(st.floats(0.01, 100), min_size=1, max_size=5),
    gaps=st.lists(st.floats(0.5, 12), min_size=5, max_size=5),
)
def test_no_pause_of_any_length_at_any_moment_accuses_anybody(
    began: float, lengths: list[float], gaps: list[float]
) -> None:
    machine = Machine(timeout=12.0)
    machine.run(began)
    for length, gap in zip(lengths, gaps, strict=False):
        machine.pause(length)
        machine.run(gap)
    assert machine.news == []


@given(began=st.floats(0, 30), other=st.floats(0.1, 100))
def test_every_hang_is_found_in_time(began: float, other: float) -> None:
    machine = Machine(timeout=None)
    machine.run(began)
    machine.hanging.add("a")
    last = machine.beats["a"] - START
    machine.run(WARN + 1 + other)
    [(at, news)] = machine.news
    assert isinstance(news, Hang)
    # A worker is measured from its first look on, which is later than its first heartbeat.
    assert at == pytest.approx(max(last, 0) + WARN)
    assert news.seconds == pytest.approx(WARN)


def test_who_is_missing_is_forgotten_and_measured_from_its_return() -> None:
    machine = Machine(timeout=None)
    machine.hanging.add("a")
    machine.run(8)
    stopped = machine.beats.pop("a")
    machine.run(30)
    machine.beats["a"] = stopped
    machine.look()
    machine.run(9.5)
    assert machine.news == []
    machine.run(1)
    assert [one for _, one in machine.news] == [Hang("a", 10.0, too_long=False)]


def test_an_empty_pool_wants_no_look() -> None:
    watch: HealthWatch[str] = HealthWatch(WARN, TIMEOUT)
    assert watch.next_look is None
    watch.look({"a": START}, START)
    assert watch.next_look is not None
    watch.look({}, START + 1)
    assert watch.next_look is None


def test_without_limits_nobody_is_looked_at() -> None:
    watch: HealthWatch[str] = HealthWatch(None, None)
    assert watch.look({"a": 0.0}, START) == []
    assert watch.next_look is None


@pytest.mark.parametrize(("warn", "timeout"), [(None, 20.0), (20.0, 20.0), (30.0, 20.0)])
def test_without_a_warning_before_only_the_end_is_news(warn: float | None, timeout: float) -> None:
    machine = Machine(warn, timeout)
    machine.hanging.add("a")
    machine.run(100)
    assert machine.news == [(20.0, Hang("a", 20.0, too_long=True))]


def test_a_look_before_its_time_changes_nothing() -> None:
    machine = Machine(timeout=None)
    machine.hanging.add("a")
    for _ in range(40):
        machine.run(0.5)
        machine.look()
    [(at, news)] = machine.news
    assert news == Hang("a", 10.0, too_long=False)
    assert at == 10.0


def test_looks_that_come_a_little_late_find_a_hang_all_the_same() -> None:
    watch: HealthWatch[str] = HealthWatch(WARN, None)
    news: list[object] = []
    now = START
    for _ in range(10):
        news += watch.look({"a": START}, now)
        assert watch.next_look is not None
        now = watch.next_look + 0.9
    assert len(news) == 1
