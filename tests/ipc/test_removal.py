"""A queue is removed as a whole, when nobody lives in it, and whoever joins meanwhile loses
nothing."""

import os
import threading
import time
from pathlib import Path

import pytest
from tests.ipc.conftest import PATIENCE, PeerError
from tests.ipc.events import NewPeer, Open

from taskiq_supervise.ipc import QueueError, QueueMissing, Role, SegmentError, TaskQueue
from taskiq_supervise.ipc.removal import QueueInUse, destroy_queue

MEANTIME = """
def meantime(module, name, before):
    '''Stands still, once, before or after the function.'''
    original = getattr(module, name)
    left = [1]
    def stop():
        if left:
            left.pop()
            os.kill(os.getpid(), signal.SIGSTOP)
    def stopping(*arguments):
        if before:
            stop()
        result = original(*arguments)
        stop()
        return result
    setattr(module, name, stopping)
"""


@pytest.fixture
def base() -> Path:
    return Path(os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"])


@pytest.fixture
def folder(base: Path, open_queue: Open) -> Path:
    """Of a queue with a message in it, that nobody uses."""
    queue = open_queue()
    queue.put("old", b"message")
    queue.close()
    return base / "q"


def is_there(name: str, task_id: str) -> bool:
    queue = TaskQueue.open(name)
    try:
        return queue.find(task_id).task_id == task_id
    finally:
        queue.close()


def test_nothing_is_left_of_a_removed_queue(folder: Path, base: Path, open_queue: Open) -> None:
    (folder / "segment.boot-1234-5678").write_bytes(b"of an earlier boot")
    (folder / "files" / "spares").mkdir(parents=True, exist_ok=True)
    (folder / "files" / "q-1-1").write_bytes(b"large")
    (folder / "files" / "spares" / "spare-5-abc").write_bytes(b"spare")
    destroy_queue(folder)
    assert list(base.iterdir()) == []
    assert open_queue().stats().ready == 0


def test_a_queue_that_is_not_there_is_not_made(base: Path) -> None:
    with pytest.raises(QueueMissing, match="no queue 'q' in "):
        destroy_queue(base / "q")
    assert list(base.iterdir()) == []
    with pytest.raises(QueueMissing):
        destroy_queue(base / "not" / "q")


@pytest.mark.parametrize("role", [Role.CLIENT, Role.WORKER, Role.SUPERVISOR])
def test_whoever_lives_in_it_is_named_and_keeps_it(
    folder: Path, new_peer: NewPeer, role: Role
) -> None:
    peer = new_peer()
    peer.join(f"role=Role.{role.name}")
    with pytest.raises(QueueInUse, match=f"{role.name.lower()} pid {peer.pid}; stop") as refused:
        destroy_queue(folder)
    assert [(one.role, one.pid) for one in refused.value.participants] == [(role, peer.pid)]
    assert peer.ask("queue.find('old').task_id") == "old"
    peer.kill()
    destroy_queue(folder)
    assert not folder.exists()


def test_one_that_is_stopped_lives(folder: Path, new_peer: NewPeer) -> None:
    peer = new_peer()
    peer.join()
    peer.stop()
    with pytest.raises(QueueInUse, match=str(peer.pid)):
        destroy_queue(folder)
    peer.go_on()
    assert peer.ask("queue.find('old').task_id") == "old"


def test_the_process_that_asks_counts_too(folder: Path, open_queue: Open) -> None:
    queue = open_queue()
    with pytest.raises(QueueInUse, match=f"client pid {os.getpid()}"):
        destroy_queue(folder)
    queue.put("new", b"")
    assert queue.stats().ready == 2
    queue.close()
    destroy_queue(folder)


def test_many_are_counted(folder: Path, open_queue: Open) -> None:
    for _ in range(11):
        open_queue()
    with pytest.raises(QueueInUse, match=r"(client pid \d+, ){7}client pid \d+ and 3 more; stop"):
        destroy_queue(folder)


@pytest.mark.parametrize("content", [b"", b"garbage" * 10_000])
def test_a_damaged_segment_is_no_obstacle(folder: Path, content: bytes) -> None:
    (folder / "segment").write_bytes(content)
    destroy_queue(folder)
    assert not folder.exists()


def test_the_living_are_named_even_if_the_segment_is_damaged(
    folder: Path, new_peer: NewPeer
) -> None:
    peer = new_peer()
    peer.join()
    (folder / "segment").rename(folder / "segment.lost")
    with pytest.raises(QueueInUse, match=f"in use by pid {peer.pid}; stop"):
        destroy_queue(folder)


def test_a_folder_with_other_things_in_it_is_nobodys_queue(base: Path) -> None:
    home = base / "home"
    home.mkdir()
    (home / "lock").touch()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(SegmentError, match=r"'thesis\.tex' is in it"):
        destroy_queue(home)
    assert (home / "thesis.tex").read_text() == "years of work"
    (home / "thesis.tex").unlink()


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_no_folder_stays(folder: Path, base: Path, kind: str) -> None:
    other = base / "other"
    other.symlink_to(folder) if kind == "link" else other.touch()
    with pytest.raises(SegmentError, match="is not a folder"):
        destroy_queue(other)
    assert (folder / "segment").exists()
    assert other.exists()
    other.unlink()


def test_a_link_among_the_files_is_removed_and_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    (folder / "files").symlink_to(tmp_path)
    destroy_queue(folder)
    assert (tmp_path / "precious").exists()


def test_what_may_not_be_removed_is_said_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(SegmentError, match="Permission denied; nothing was changed"):
            destroy_queue(folder)
    assert is_there("q", "old")


@pytest.mark.parametrize("step", ["open_lock_file", "_seal", "is_at", "_remove"])
def test_killed_at_any_step_it_is_there_or_gone_and_the_next_one_finishes(
    folder: Path, base: Path, new_peer: NewPeer, step: str
) -> None:
    peer = new_peer()
    peer.ask("from taskiq_supervise.ipc import locks, removal; from pathlib import Path")
    peer.ask(MEANTIME)
    module = "locks" if step == "open_lock_file" else "removal"
    peer.ask(f"meantime({module}, {step!r}, before=True)")
    peer.begin(f"removal.destroy_queue(Path({str(folder)!r}))")
    peer.wait_stopped()
    if step == "_remove":
        assert not folder.exists()
    peer.kill()
    if step == "_remove":
        assert len(list(base.iterdir())) == 1
        with pytest.raises(QueueMissing):
            destroy_queue(folder)
    else:
        assert is_there("q", "old")
        destroy_queue(folder)
    assert list(base.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "step", "before"),
    [
        ("segment", "queue_directory", False),
        ("joining", "open_lock_file", False),
        ("segment", "_create", True),
        ("queue_module", "open_core", False),
        ("joining", "is_at", True),
    ],
)
@pytest.mark.parametrize("made_again", [False, True])
def test_who_joins_while_it_is_removed_is_in_the_queue_that_is_there_then(
    folder: Path,
    base: Path,
    new_peer: NewPeer,
    open_queue: Open,
    module: str,
    step: str,
    before: bool,
    made_again: bool,
) -> None:
    if step == "_create":
        (folder / "segment").unlink()
    peer = new_peer()
    peer.ask("from taskiq_supervise.ipc import joining, queue as queue_module, segment")
    peer.ask(MEANTIME)
    peer.ask(f"meantime({module}, {step!r}, before={before})")
    joining = peer.begin("queue = TaskQueue.open('q', geometry=SMALL); queue.put('new', b''); 1")
    peer.wait_stopped()
    if step == "is_at":  # it has its byte by now
        with pytest.raises(QueueInUse, match=str(peer.pid)):
            destroy_queue(folder)
    else:
        destroy_queue(folder)
    if made_again:
        open_queue()
    peer.go_on()
    assert peer.answer(joining) == 1
    assert is_there("q", "new")
    with pytest.raises(QueueInUse, match=str(peer.pid)):
        destroy_queue(folder)
    peer.ask("queue.close()")


@pytest.mark.parametrize(
    ("module", "step"),
    [
        ("queue_module", "existing_queue"),
        ("joining", "open_lock_file"),
        ("queue_module", "open_core"),
    ],
)
def test_who_only_looks_makes_no_new_one(
    folder: Path, base: Path, new_peer: NewPeer, module: str, step: str
) -> None:
    peer = new_peer()
    peer.ask("from taskiq_supervise.ipc import joining, queue as queue_module")
    peer.ask(MEANTIME)
    peer.ask(f"meantime({module}, {step!r}, before=False)")
    looking = peer.begin("TaskQueue.open('q', create=False)")
    peer.wait_stopped()
    destroy_queue(folder)
    peer.go_on()
    with pytest.raises(PeerError, match="QueueMissing: there is no queue 'q'"):
        peer.answer(looking)
    assert list(base.iterdir()) == []


def test_who_joins_waits_for_one_that_is_about_to_remove_it(
    folder: Path, new_peer: NewPeer
) -> None:
    remover, joiner = new_peer(), new_peer()
    remover.ask("from taskiq_supervise.ipc import removal; from pathlib import Path")
    remover.ask(MEANTIME)
    remover.ask("meantime(removal, 'is_at', before=True)")  # it has all the bytes
    removing = remover.begin(f"removal.destroy_queue(Path({str(folder)!r}))")
    remover.wait_stopped()
    reading, writing = os.pipe()
    joiner.ask(f"asked = []; pipe = os.open('/proc/{os.getpid()}/fd/{writing}', os.O_WRONLY)")
    joiner.ask("from taskiq_supervise.ipc import joining; real = joining.is_being_removed")
    joiner.ask(
        "def is_being_removed(lock):\n"
        "    asked.append(real(lock))\n"
        "    if len(asked) == 3: os.write(pipe, b'x')\n"
        "    return asked[-1]\n"
        "joining.is_being_removed = is_being_removed"
    )
    joining = joiner.begin("queue = TaskQueue.open('q', geometry=SMALL); queue.put('new', b''); 1")
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)
    remover.go_on()
    remover.answer(removing)
    assert joiner.answer(joining) == 1
    assert is_there("q", "new")
    joiner.ask("queue.close()")


STORM = """
def storm(stop):
    '''Joins twice, looks whether both are in one queue, leaves.'''
    rounds = apart = 0
    while not rounds or not os.path.exists(stop):
        with TaskQueue.open('q', geometry=SMALL) as one, TaskQueue.open('q') as other:
            there = [each.index for each in other.participants() if each.pid == os.getpid()]
            apart += sorted(there) != sorted([one.participant, other.participant])
        rounds += 1
    return rounds, apart
"""


def test_nobody_is_ever_in_a_removed_queue(base: Path, new_peer: NewPeer, tmp_path: Path) -> None:
    peers = [new_peer() for _ in range(3)]
    stop, least = tmp_path / "stop", 3
    until = time.monotonic() + float(os.environ.get("STRESS_SECONDS", "1"))
    for peer in peers:
        peer.ask(STORM)
    running = [peer.begin(f"storm({str(stop)!r})") for peer in peers]
    removed = refused = 0
    while min(removed, refused) < least or time.monotonic() < until:
        try:
            destroy_queue(base / "q")
            removed += 1
        except QueueMissing:
            continue
        except QueueInUse:
            refused += 1
    stop.touch()
    counts = [peer.answer(number, PATIENCE) for peer, number in zip(peers, running, strict=True)]
    assert sum(apart for _, apart in counts) == 0


def test_a_file_that_is_made_at_the_last_moment_is_removed_too(
    folder: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a system call that had found the folder before it was renamed."""
    rmdir, late = Path.rmdir, ["lock", "files/q-1-1"]

    def too_late(path: Path) -> None:
        if late and path.name.startswith(".removed-"):
            file = path / late.pop()
            file.parent.mkdir(exist_ok=True)
            file.touch()
        rmdir(path)

    monkeypatch.setattr(Path, "rmdir", too_late)
    destroy_queue(folder)
    assert (list(base.iterdir()), late) == ([], [])


def test_of_several_that_remove_it_one_does(folder: Path) -> None:
    outcomes: list[str] = []
    start = threading.Barrier(4)

    def remove() -> None:
        start.wait()
        try:
            destroy_queue(folder)
            outcomes.append("removed")
        except QueueError as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=remove) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("removed") == 1
    assert set(outcomes) <= {"removed", "QueueMissing", "QueueInUse"}
    assert not folder.exists()
