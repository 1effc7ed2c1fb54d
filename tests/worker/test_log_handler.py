"""Which way log lines go, and what the journal learns of those that come as plain text."""

import json
import logging

import pytest

from taskiq_supervise.worker import log_handler
from taskiq_supervise.worker.journald import JournalHandler
from taskiq_supervise.worker.log_handler import handler, own_style, say_error


def reads(monkeypatch: pytest.MonkeyPatch, journal: bool, fields: bool = True) -> None:
    """Whether the journal reads standard error, and takes fields beside it."""
    monkeypatch.setattr(log_handler, "is_stderr_the_journal", lambda _: journal)
    monkeypatch.setattr(log_handler, "has_journal", lambda: fields)


@pytest.mark.parametrize(
    ("journal", "fields", "style"),
    [(True, True, "journal"), (True, False, "text"), (False, True, "text")],
)
def test_the_style_is_the_journal_s_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch, journal: bool, fields: bool, style: str
) -> None:
    reads(monkeypatch, journal, fields)
    assert own_style({}) == style


def log(style: str) -> None:
    output = handler(style, "%(levelname)s %(message)s")
    logger = logging.Logger("orders")  # noqa: LOG001 - of no tree
    logger.addHandler(output)
    logger.warning("two\nlines")
    logger.info("one")


def test_lines_for_people_have_no_prefix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reads(monkeypatch, journal=False)
    log("text")
    say_error("it failed")
    assert capsys.readouterr().err == "WARNING two\nlines\nINFO one\nit failed\n"


def test_the_journal_learns_the_priority_of_each_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reads(monkeypatch, journal=True)
    log("text")
    say_error("it failed\nhere")
    assert capsys.readouterr().err.splitlines() == [
        "<4>WARNING two",
        "<4>lines",
        "<6>INFO one",
        "<3>it failed",
        "<3>here",
    ]


def test_the_journal_learns_the_priority_of_json_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reads(monkeypatch, journal=True)
    log("json")
    first, second = capsys.readouterr().err.splitlines()
    assert json.loads(first.removeprefix("<4>"))["message"] == "two\nlines"
    assert json.loads(second.removeprefix("<6>"))["message"] == "one"


def test_fields_go_another_way() -> None:
    output = handler("journal", "")
    assert isinstance(output, JournalHandler)
    output.close()
    with pytest.raises(ValueError, match="'yaml', not text, json or journal"):
        handler("yaml", "")
