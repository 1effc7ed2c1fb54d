"""Payload files, whoever is killed or stands still at whatever line, and in a crowd."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest
from tests.ipc.files.conftest import SIZE, content, exiting, read, spares

from taskiq_supervise.ipc import files as files_module
from taskiq_supervise.ipc import mappings as mappings_module
from taskiq_supervise.ipc import spares as spares_module
from taskiq_supervise.ipc.files import PayloadFiles

if TYPE_CHECKING:
    from tests.ipc.conftest import Peer


TRACED = {module.__file__ for module in (files_module, mappings_module, spares_module)}


def at_line(number: int, act: Callable[[], object]) -> None:
    """Calls `act` before the line of the payload files' code that is executed as number such."""
    left = number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                act()
        return trace

    sys.settrace(trace)


def life(files: PayloadFiles) -> None:
    """Everything that can be done with files; with a new one, with a spare, with none free."""
    files.write("q-1-1", [content(11)])
    (first,) = files.map("q-1-1", [SIZE])
    files.drop("q-1-1")
    files.write("q-1-2", [content(12)])
    assert bytes(first) == content(11)
    del first
    files.write("q-1-3", [content(13)])
    files.rename("q-1-3", "q-1-4")
    assert read(files, "q-1-2") == content(12)
    assert read(files, "q-1-4") == content(13)
    files.drop("q-1-2")
    files.drop("q-1-4")
    files.write("q-1-5", [content(15)])
    assert read(files, "q-1-5") == content(15)
    files.trim(0)
    files.drop("q-1-5")


CONTENT_OF = {"q-1-1": 11, "q-1-2": 12, "q-1-3": 13, "q-1-4": 13, "q-1-5": 15}


def fork_life(files: PayloadFiles, line: int, number: int) -> int:
    pid = os.fork()
    if pid == 0:
        with exiting():
            at_line(line, lambda: os.kill(os.getpid(), number))
            life(files)
    return pid


EVERY = pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.stress)])


@EVERY
@pytest.mark.parametrize("with_spares", [False, True])
def test_killed_at_any_line_it_leaves_nothing_wrong_and_nothing_for_good(
    make_files: Callable[[], PayloadFiles], directory: Path, with_spares: bool, stride: int
) -> None:
    files = make_files()
    line, died = 0, True
    while died:
        line += stride
        if with_spares:
            for number in range(3):
                files.write(f"q-9-{number}", [content(9)])
            assert files.sweep(lambda name: False) == 3
        _, status = os.waitpid(fork_life(make_files(), line, signal.SIGKILL), 0)
        died = os.WIFSIGNALED(status)
        assert died or status == 0
        for name in files.names():
            assert read(files, name) == content(CONTENT_OF[name]), f"line {line}: incomplete"
        files.sweep(lambda name: False)
        assert files.names() == []
        files.write("q-8-1", [content(8)])
        assert read(files, "q-8-1") == content(8)
        files.drop("q-8-1")
        assert len(spares(directory)) <= 8
        files.trim(seconds=-1)
        assert spares(directory) == [], f"line {line}: left for good"
    assert line > 200


@EVERY
def test_stopped_at_any_line_it_stops_nobody_and_goes_on_unharmed(
    make_files: Callable[[], PayloadFiles], directory: Path, stride: int
) -> None:
    files = make_files()
    line, stopped = 0, True
    while stopped:
        line += stride
        pid = fork_life(make_files(), line, signal.SIGSTOP)
        _, status = os.waitpid(pid, os.WUNTRACED)
        stopped = os.WIFSTOPPED(status)
        if stopped:
            assert files.sweep(lambda name: name in CONTENT_OF) == 0
            for number in range(3):
                files.write(f"q-8-{number}", [content(number)])
            for name in set(files.names()) & set(CONTENT_OF):
                assert read(files, name) == content(CONTENT_OF[name])
            for number in range(3):
                assert read(files, f"q-8-{number}") == content(number)
                files.drop(f"q-8-{number}")
            if line // stride % 2:
                files.trim(0)
            os.kill(pid, signal.SIGCONT)
            _, status = os.waitpid(pid, 0)
        assert status == 0, f"line {line}"
        assert files.names() == []
        files.trim(seconds=-1)
        assert spares(directory) == []
    assert line > 200


def test_writers_that_want_the_same_spare_never_share_it(
    files: PayloadFiles, join: "Callable[[], Peer]", directory: Path
) -> None:
    peers = [join() for _ in range(3)]
    asked = [
        peer.begin(
            f"for turn in range(300):\n"
            f"    name = 'q-{index}-%d' % turn\n"
            f"    mark = bytes([turn % 80 + 80 * {index}]) * {SIZE}\n"
            f"    files.write(name, [mark])\n"
            f"    view, = files.map(name, [{SIZE}])\n"
            f"    files.drop(name)\n"
            f"    assert view == mark\n"
            f"    view = None\n"
            f"    turn % 50 or files.trim(0)\n"
            "turn"
        )
        for index, peer in enumerate(peers)
    ]
    assert [peer.answer(number) for peer, number in zip(peers, asked, strict=True)] == [299] * 3
    assert files.names() == []
    assert len(spares(directory)) <= 9


def test_threads_do_not_get_in_each_others_way(files: PayloadFiles) -> None:
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            for turn in range(150):
                name, mark = f"q-{index}-{turn}", content(turn + 40 * index)
                files.write(name, [mark])
                (view,) = files.map(name, [SIZE])
                files.drop(name)
                if turn % 3 == 0:
                    assert view[0] == mark[0]
                    view[0] = 0
                    view[0] = mark[0]
                assert view == mark
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
