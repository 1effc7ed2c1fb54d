"""What was put is known to the next listener, for as long as two can be there."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskiq_supervise.worker.listener.seen import OLDEST, ROOM, Seen


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Seen]:
    made = Seen(tmp_path / "seen")
    yield made
    made.close()


@pytest.fixture
def other(ring: Seen, tmp_path: Path) -> Iterator[Seen]:
    """The next listener's, opened beside it."""
    made = Seen(tmp_path / "seen")
    yield made
    made.close()


def digests(count: int) -> list[bytes]:
    return [Seen.digest(number.to_bytes(4, "big")) for number in range(count)]


def test_the_other_knows_what_was_added_since_and_how_often(ring: Seen, other: Seen) -> None:
    one, two, three = digests(3)
    ring.add(one, settled=True)
    before = other.count
    assert before == 1
    for digest in (two, three, two):
        ring.add(digest, settled=True)
    assert other.since(before) == {two: 2, three: 1}
    assert not other.since(other.count)


def test_what_was_not_acknowledged_may_come_again(ring: Seen, other: Seen) -> None:
    one, two, three = digests(3)
    ring.add(one, settled=True)
    second, third = (ring.add(digest, settled=False) for digest in (two, three))
    assert other.unsettled() == {two: second, three: third}
    other.settle(second)
    assert ring.unsettled() == {three: third}


def test_after_a_long_time_it_is_not_expected_any_more(
    ring: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = digests(1)
    ring.add(one, settled=False)
    assert ring.unsettled()
    later = time.time_ns() + int((OLDEST + 1) * 1e9)
    monkeypatch.setattr(time, "time_ns", lambda: later)
    assert not ring.unsettled()


def test_the_oldest_makes_room(ring: Seen, other: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    added = digests(ROOM + 3)
    for digest in added:
        ring.add(digest, settled=False)
    assert other.unsettled() == {
        digest: number for number, digest in enumerate(added) if number > 2
    }
    assert set(other.since(0)) == set(added[3:])
    ring.settle(0)  # its place is another's by now
    assert len(other.unsettled()) == ROOM
