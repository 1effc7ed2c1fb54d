"""Entries in the form that systemd's journal takes, read back from a socket like its own."""

import array
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_supervise.worker import journald, log_style
from taskiq_supervise.worker.journald import JournalHandler, JournalSocket, encode, field_name


def decode(entry: bytes) -> dict[str, bytes]:
    """As the journal reads it."""
    fields: dict[str, bytes] = {}
    while entry:
        line, _, rest = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if equals:
            entry = rest
        else:
            size = int.from_bytes(rest[:8], "little")
            value, entry = rest[8 : 8 + size], rest[8 + size + 1 :]
            assert rest[8 + size : 8 + size + 1] == b"\n"
        key = name.decode()
        fields[key] = fields[key] + b"|" + value if key in fields else value
    return fields


class Journal:
    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(10)

    def entry(self) -> dict[str, bytes]:
        data, ancillary, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _, kind, rights in ancillary:
            assert kind == socket.SCM_RIGHTS
            with open(array.array("i", rights)[0], "rb") as file:
                file.seek(0)
                data = file.read()
        return decode(data)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    found = Journal(tmp_path / "journal")
    yield found
    found.socket.close()


@pytest.fixture
def logger(journal: Journal) -> Iterator[logging.Logger]:
    made = logging.Logger("orders")  # noqa: LOG001 - of no tree
    handler = JournalHandler(journal.path)
    made.addHandler(handler)
    yield made
    handler.close()


NAMES = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", min_size=1, max_size=20)


@given(st.dictionaries(NAMES, st.text().map(str.encode)))
def test_any_fields_come_back_as_they_were(fields: dict[str, bytes]) -> None:
    assert decode(encode(fields)) == fields


@given(st.text())
def test_any_name_becomes_one_that_the_journal_takes(name: str) -> None:
    made = field_name(name)
    assert len(made) <= 64
    assert not made or (made[0].isalpha() and made.isascii())
    assert made == made.upper()


def test_an_entry_says_what_is_known(journal: Journal, logger: logging.Logger) -> None:
    token = log_style.current_task.set({"task_id": "4711", "task_name": "app:bill"})
    try:
        logger.warning("two\nlines", extra={"reason": "crash"})
    finally:
        log_style.current_task.reset(token)
    entry = journal.entry()
    assert entry["MESSAGE"] == b"two\nlines"
    assert entry["PRIORITY"] == b"4"
    assert entry["TASK_ID"] == b"4711"
    assert entry["TASK_NAME"] == b"app:bill"
    assert entry["REASON"] == b"crash"
    assert entry["SYSLOG_IDENTIFIER"] == b"taskiq-supervise"


def test_a_line_about_several_tasks_has_the_id_of_each(journal: Journal) -> None:
    handler = JournalHandler(journal.path)
    ours, theirs = logging.Logger("taskiq_supervise"), logging.Logger("orders")  # noqa: LOG001
    for logger in (ours, theirs):
        logger.addHandler(handler)
        logger.warning("given back", extra={"tasks": ["a", "b"]})
    assert journal.entry()["TASK_ID"] == b"a|b"
    assert journal.entry()["TASKS"] == b"a|b"
    handler.close()


def test_text_that_no_encoding_has_arrives(journal: Journal, logger: logging.Logger) -> None:
    logger.warning("a \ud800 name")
    assert journal.entry()["MESSAGE"] == rb"a \ud800 name"


def test_a_traceback_is_part_of_the_message(journal: Journal, logger: logging.Logger) -> None:
    try:
        raise ValueError("seven")
    except ValueError:
        logger.exception("it broke")
    assert b"ValueError: seven" in journal.entry()["MESSAGE"]


def test_an_entry_too_large_for_a_datagram_arrives_whole(journal: Journal) -> None:
    text = b"x" * 5_000_000
    sender = JournalSocket(journal.path)
    sender.send(encode({"MESSAGE": text}))
    assert journal.entry() == {"MESSAGE": text}
    sender.close()


@pytest.mark.parametrize(
    ("level", "priority"),
    [(10, 7), (20, 6), (25, 6), (30, 4), (40, 3), (50, 2), (60, 2)],
)
def test_levels_become_syslog_s_priorities(level: int, priority: int) -> None:
    assert journald.priority(level) == priority


def test_only_the_very_stream_counts(tmp_path: Path) -> None:
    """A service's environment reaches processes whose standard error is somewhere else."""
    file = tmp_path / "stderr"
    code = (
        "import os, sys; from taskiq_supervise.worker.journald import is_stderr_the_journal; "
        "print(is_stderr_the_journal(os.environ))"
    )
    with file.open("w") as stream:
        found = os.fstat(stream.fileno())
        for device, inode, expected in (
            (found.st_dev, found.st_ino, "True"),
            (found.st_dev, found.st_ino + 1, "False"),
        ):
            environment = {**os.environ, "JOURNAL_STREAM": f"{device}:{inode}"}
            command = [sys.executable, "-c", code]
            ran = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=stream, env=environment, check=True
            )
            assert ran.stdout.decode().strip() == expected
