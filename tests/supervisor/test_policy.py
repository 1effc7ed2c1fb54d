"""How soon something that ended is started again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_supervise.supervisor.core.policy import (
    History,
    PolicyError,
    RestartPolicy,
    StopLevel,
    Verdict,
    backoff,
    judge,
    stop_level,
)

POLICY = RestartPolicy()
LAST = 0.999999


def crash(
    history: History,
    now: float,
    *,
    proven: bool = False,
    pool_recent: int = 0,
    jitter: float = LAST,
    policy: RestartPolicy = POLICY,
) -> Verdict:
    return judge(
        policy,
        history,
        failed=True,
        proven=proven,
        pool_recent=pool_recent,
        now=now,
        jitter=jitter,
    )


def delays(count: int, *, spacing: float = 0.0) -> list[float]:
    history, found, now = History(), [], 0.0
    for _ in range(count):
        verdict = crash(history, now)
        history = verdict.history
        found.append(round(verdict.delay, 2))
        now += verdict.delay + spacing
    return found


def test_the_first_crash_restarts_at_once_and_further_ones_ever_later_up_to_the_cap() -> None:
    assert delays(12) == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]


@given(failures=st.integers(2, 10_000), jitter=st.floats(0, 1, exclude_max=True))
def test_the_jitter_is_full(failures: int, jitter: float) -> None:
    limit = backoff(POLICY, failures, LAST) / LAST
    assert backoff(POLICY, failures, jitter) == pytest.approx(jitter * limit)
    assert 0.1 <= limit <= POLICY.cap


def test_one_that_was_proven_starts_at_once_after_its_next_crash() -> None:
    history = History(failures=9)
    verdict = crash(history, 0.0, proven=True)
    assert (verdict.delay, verdict.history.failures) == (0, 1)


def test_leaving_in_good_order_is_no_failure() -> None:
    verdict = judge(
        POLICY, History(failures=3), failed=False, proven=False, pool_recent=0, now=0, jitter=LAST
    )
    assert (verdict.delay, verdict.history.failures) == (0, 3)


def test_one_that_works_and_dies_again_and_again_becomes_slow() -> None:
    history, now = History(), 0.0
    verdicts = []
    for _ in range(POLICY.slot_limit + 1):
        verdict = crash(history, now, proven=True)
        history = verdict.history
        verdicts.append(verdict)
        now += POLICY.window / (POLICY.slot_limit + 2)
    assert [verdict.quarantined for verdict in verdicts] == [False] * POLICY.slot_limit + [True]
    assert POLICY.cap / 2 <= verdicts[-1].delay <= POLICY.cap


def test_the_window_forgets() -> None:
    history = History(restarts=tuple(float(second) for second in range(POLICY.slot_limit)))
    assert crash(history, 30.0, proven=True).quarantined
    assert not crash(history, 30.0 + POLICY.window, proven=True).quarantined


def test_a_pool_that_restarts_too_often_becomes_slow_even_if_each_slot_is_within_its_limit() -> (
    None
):
    assert not crash(History(), 0.0, pool_recent=POLICY.pool_limit - 1).quarantined
    assert crash(History(), 0.0, pool_recent=POLICY.pool_limit).quarantined


@given(
    times=st.lists(st.floats(-1e6, 1e6), max_size=200),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_whatever_the_clock_does_the_delay_is_bounded_and_memory_too(
    times: list[float], jitter: float
) -> None:
    history = History()
    for now in times:
        verdict = crash(history, now, jitter=jitter)
        history = verdict.history
        assert 0 <= verdict.delay <= POLICY.cap
        assert len(history.restarts) <= POLICY.slot_limit + 1


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"base": 0}, "base"),
        ({"cap": -1.0}, "cap"),
        ({"base": 2.0, "cap": 1.0}, "base"),
        ({"window": 0}, "window"),
        ({"steady": -1}, "steady"),
        ({"slot_limit": 0}, "slot_limit"),
        ({"slot_limit": 5, "pool_limit": 4}, "pool_limit"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused_by_name(
    values: dict[str, float], named: str
) -> None:
    with pytest.raises(PolicyError, match=named):
        RestartPolicy(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hardkill_count", "levels"),
    [
        (3, [StopLevel.DRAIN, StopLevel.STOP, StopLevel.KILL, StopLevel.KILL]),
        (1, [StopLevel.KILL, StopLevel.KILL]),
        (2, [StopLevel.DRAIN, StopLevel.KILL]),
        (5, [StopLevel.DRAIN, StopLevel.STOP, StopLevel.STOP, StopLevel.STOP, StopLevel.KILL]),
    ],
)
def test_each_signal_stops_harder(hardkill_count: int, levels: list[StopLevel]) -> None:
    asked = [stop_level(number, hardkill_count) for number in range(1, len(levels) + 1)]
    assert asked == levels
