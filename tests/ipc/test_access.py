"""Who may use a queue, as far as one user can find out; test_sharing.py has real other users."""

import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.ipc.conftest import run_one
from tests.ipc.peer import SMALL

from taskiq_supervise.broker import SharedMemoryBroker
from taskiq_supervise.broker.progress import ProgressFolder
from taskiq_supervise.ipc import (
    QueueError,
    QueueMissing,
    Role,
    SegmentError,
    TaskQueue,
    default_base_directory,
)
from taskiq_supervise.ipc.access import Access, make_folder
from taskiq_supervise.ipc.removal import destroy_queue

NOBODY_KNOWS = 4_000_000_000
"""A group that no process of the tests is in."""


@pytest.fixture
def base() -> Path:
    """Where a shared queue may be; not made yet."""
    return Path(os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"]) / "base"


@pytest.fixture(autouse=True)
def careful_umask() -> Iterator[None]:
    """What is shared is so although the umask keeps everything to oneself."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def open_shared(base: Path, mode: int = 0o660, **arguments: Any) -> TaskQueue:
    return TaskQueue.open("q", base, geometry=SMALL, mode=mode, **arguments)


def use_everything(queue: TaskQueue) -> None:
    """So that there is one of each kind of file."""
    queue.become_supervisor("test")
    queue.put("large", bytes(100_000))
    run_one(queue, bytes(100_000))
    queue.sweep_files()
    progress: Any = type("Progress", (), {"state": "x", "meta": None})
    ProgressFolder(queue.directory / "progress").set("large", progress)


@pytest.mark.parametrize(
    ("mode", "group", "sentence"),
    [
        (0o640, None, r"mode 0o640 \(416\): use 0o600 .*, 0o660 .* or 0o666"),
        (660, None, r"mode 0o1224 \(660\): use 0o600"),
        ("0660", None, "mode '0660': use 0o600"),
        (True, None, "use 0o600"),
        ([], None, r"mode \[\]: use 0o600"),
        (0o600, "users", "group 'users' with mode 0o600: only 0o660 is for a group"),
        (0o666, 0, "group 0 with mode 0o666: only 0o660 is for a group"),
        (0o660, 1.5, "group 1.5: use its name or its number"),
        (0o660, True, "group True: use its name or its number"),
    ],
)
def test_what_nobody_could_mean_is_refused_where_it_is_said(
    base: Path, mode: Any, group: Any, sentence: str
) -> None:
    with pytest.raises(QueueError, match=sentence):
        TaskQueue.open("q", base, mode=mode, group=group)
    with pytest.raises(QueueError, match=sentence):
        SharedMemoryBroker("q", directory=base, mode=mode, group=group)
    assert not base.exists()


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        ("there-is-none", "group 'there-is-none': there is none of this name on this machine"),
        (-1, "group -1: no group has this number"),
        (1 << 32, "group 4294967296: no group has this number"),
    ],
)
def test_a_group_that_is_not_there_is_refused(base: Path, group: Any, sentence: str) -> None:
    with pytest.raises(QueueError, match=sentence):
        open_shared(base, group=group)
    assert not base.exists()


def test_who_is_not_in_the_group_is_told_so(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(QueueError, match=f"user 4711 is not in group {NOBODY_KNOWS}"):
        open_shared(base, group=NOBODY_KNOWS)


def test_a_queue_that_exists_has_to_be_named_with_a_mode_to_be_made(base: Path) -> None:
    with pytest.raises(QueueError, match="mode None: use 0o600"):
        TaskQueue.open("q", base, mode=None)
    with pytest.raises(QueueMissing):
        TaskQueue.open("q", base, mode=None, create=False)
    assert not base.exists()


def test_sharing_needs_a_directory_that_others_can_name(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKIQ_SUPERVISE_QUEUE_DIR", str(base))
    with TaskQueue.open("q", geometry=SMALL, mode=0o660) as queue:
        assert queue.directory == base / "q"
    monkeypatch.delenv("TASKIQ_SUPERVISE_QUEUE_DIR")
    own = default_base_directory()
    for directory in (None, own):  # a supervisor is told of it by name
        with pytest.raises(SegmentError, match=r"cannot be shared in .*user's own: say where"):
            TaskQueue.open("q", directory, mode=0o660)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_everything_in_the_folder_follows_it(base: Path, mode: int) -> None:
    folders = {0o600: 0o700, 0o660: 0o2770, 0o666: 0o2777}
    with open_shared(base, mode) as queue:
        use_everything(queue)
        found = {path.name: path.lstat() for path in queue.directory.rglob("*")}
        assert {"segment", "lock", "bell-1", "supervisor", "files", "spares", "progress"} < set(
            found
        )
        found["q"] = queue.directory.lstat()
        for name, status in found.items():
            expected = folders[mode] if stat.S_ISDIR(status.st_mode) else mode
            assert stat.S_IMODE(status.st_mode) == expected, name
            assert status.st_gid == os.getegid(), name
    bases = {0o600: 0o700, 0o660: 0o2770, 0o666: 0o1777}
    assert stat.S_IMODE(base.stat().st_mode) == bases[mode]
    destroy_queue(base / "q")
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("made", [0o600, 0o660, 0o666])
@pytest.mark.parametrize("asked", [0o600, 0o660, 0o666])
def test_another_mode_than_it_was_made_with_is_refused(base: Path, made: int, asked: int) -> None:
    base.mkdir()
    base.chmod(0o755)  # good for all
    open_shared(base, made).close()
    if asked == made:
        open_shared(base, asked).close()
        return
    sentence = "has group .* needs .*: open it as it was made, or destroy it first"
    if asked == 0o600:
        sentence = rf"writable for others.*refused; .* open it with mode=0o{made:o}"
    with pytest.raises(SegmentError, match=sentence):
        open_shared(base, asked)
    with pytest.raises(SegmentError, match=sentence):
        open_shared(base, asked, create=False)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_queue_of_ones_own_is_looked_at_as_it_is(base: Path, mode: int) -> None:
    open_shared(base, mode).close()
    with TaskQueue.open("q", base, mode=None, create=False) as queue:
        assert Access.inside(queue.directory).mode == mode


def test_a_folder_that_is_writable_for_others_by_mistake_is_refused_as_it_is(base: Path) -> None:
    open_shared(base, 0o600).close()
    (base / "q").chmod(0o770)
    with pytest.raises(SegmentError, match="writable for others"):
        TaskQueue.open("q", base, mode=None, create=False)


def test_a_segment_that_does_not_follow_its_folder_is_refused(base: Path) -> None:
    open_shared(base).close()
    (base / "q" / "segment").chmod(0o640)
    with pytest.raises(SegmentError, match=r"mode 0640, its folder is for mode=0o660.*nothing was"):
        open_shared(base)


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        (0o777, "others could put another in its place"),
        (0o2777, "others could put another in its place"),
        (0o700, "nobody else can get into it"),
        (0o744, "nobody else can get into it"),
        (0o755, ""),
        (0o770, ""),
        (0o1777, ""),
        (0o3777, ""),  # strangers could make a folder of the group, but this one is our own
    ],
)
def test_what_holds_a_shared_queue_protects_it(base: Path, mode: int, sentence: str) -> None:
    base.mkdir()
    base.chmod(mode)
    if not sentence:
        open_shared(base).close()
        return
    with pytest.raises(SegmentError, match=sentence):
        open_shared(base)
    assert list(base.iterdir()) == []


def test_a_folder_is_made_by_one_of_many_and_never_half(base: Path) -> None:
    base.mkdir()
    for number in range(100):
        path = base / f"q{number}"
        seen: list[int] = []
        start = threading.Barrier(4)

        def make(path: Path = path, seen: list[int] = seen, start: Any = start) -> None:
            start.wait()
            make_folder(path, 0o2770, os.getegid())
            with suppress(FileExistsError):
                (path / "inside").touch(exist_ok=False)
            seen.append(path.stat().st_mode)

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [stat.S_IMODE(mode) for mode in seen] == [0o2770] * 4
        assert [inside.name for inside in path.iterdir()] == ["inside"]
    assert all(path.name.startswith("q") for path in base.iterdir())


def test_what_is_left_of_making_a_folder_is_removed_by_the_next(base: Path) -> None:
    base.mkdir(parents=True)
    (base / ".new-q-0123abcd").mkdir()
    (base / ".new-other-0123abcd").mkdir()
    make_folder(base / "q", 0o2770)
    assert {path.name for path in base.iterdir()} == {"q", ".new-other-0123abcd"}


def test_a_folder_whose_place_is_gone_is_not_made(base: Path) -> None:
    with pytest.raises(FileNotFoundError):
        make_folder(base / "q", 0o2770)
    with pytest.raises(SegmentError, match="No such file or directory"):
        open_shared(base / "deeper")


def test_a_group_that_cannot_be_given_leaves_nothing(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.mkdir()

    def chown(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", chown)
    with pytest.raises(PermissionError):
        make_folder(base / "q", 0o2770, NOBODY_KNOWS)
    assert list(base.iterdir()) == []


def test_a_supervisor_replaces_the_note_of_a_dead_one(base: Path) -> None:
    with open_shared(base, role=Role.SUPERVISOR) as queue:
        note = queue.directory / "supervisor"
        note.write_text("left")
        note.chmod(0o400)
        queue.become_supervisor("second")
        assert "second" in note.read_text()
        assert stat.S_IMODE(note.stat().st_mode) == 0o660


if os.geteuid() != 0:

    def test_sharing_between_users_in_a_namespace_where_this_one_is_root(tmp_path: Path) -> None:
        """What root's tests need is other users; a namespace has them if /etc/subuid gives some."""
        enter = ["unshare", "--user", "--map-root-user", "--map-auto"]
        if (
            shutil.which("unshare") is None
            or subprocess.run([*enter, "true"], check=False).returncode
        ):
            return  # the checks of modes above are what can be had here
        tests = Path(__file__).with_name("test_sharing.py")
        pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
        done = subprocess.run([*enter, *pytest_run], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
