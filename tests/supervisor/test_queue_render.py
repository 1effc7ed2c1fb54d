"""What is shown for people is short, and never misleads."""

import io
import time

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from taskiq_supervise.supervisor.commands.queue_render import (
    moment,
    printable,
    short_moment,
    shortest_ids,
    show_queues,
)

NOON = time.mktime((2026, 3, 1, 12, 0, 0, 0, 0, -1))


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False)


@given(st.sets(st.text("abc", min_size=1, max_size=14), min_size=1))
def test_a_short_id_is_the_beginning_of_one_id_only(ids: set[str]) -> None:
    short = shortest_ids(ids)
    assert short.keys() == ids
    for one, beginning in short.items():
        assert one.startswith(beginning)
        assert beginning == one or [each for each in ids if each.startswith(beginning)] == [one]
        assert len(beginning) >= min(8, len(one))


def test_ids_that_are_easily_told_apart_are_cut_to_eight() -> None:
    ids = ["0123456789", "1123456789", "012345678X"]
    assert shortest_ids(ids) == {
        "0123456789": "0123456789",
        "1123456789": "11234567",
        "012345678X": "012345678X",
    }


@given(st.text())
def test_what_is_printed_is_one_line_without_control_characters(text: str) -> None:
    shown = printable(text)
    assert all(char.isprintable() for char in shown)
    shown.encode()
    if text.isprintable():
        assert shown == text


def test_lone_surrogates_can_be_printed() -> None:
    assert printable("a\udcffb") == r"a\udcffb"


def test_of_today_the_time_is_enough() -> None:
    assert moment(NOON) == "2026-03-01 12:00:00"
    assert short_moment(NOON, NOON + 3_600, terminal()) == "12:00:00"
    assert short_moment(NOON, NOON + 13 * 3_600, terminal()) == "2026-03-01 12:00"
    assert short_moment(NOON, NOON + 366 * 86_400, terminal()) == "2026-03-01 12:00"
    assert short_moment(None, NOON, terminal()) == "-"
    piped = Console(file=io.StringIO())
    assert short_moment(NOON, NOON, piped) == "2026-03-01 12:00:00"


def test_a_queue_that_cannot_be_opened_is_not_coloured_by_its_error() -> None:
    out = terminal()
    show_queues([{"name": "q", "counts": None, "error": "it is [bold]broken[/]\x1b[2J"}], out)
    assert isinstance(out.file, io.StringIO)
    assert r"q cannot be opened: it is [bold]broken[/]\x1b[2J" in out.file.getvalue()
