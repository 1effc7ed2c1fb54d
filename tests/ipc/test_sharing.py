"""Queues that several users share on purpose: each works on what the others have made.

Only root can be other users; who is not runs this in a namespace, from test_access.py.
"""

import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import DEV_SHM
from tests.ipc.conftest import Peer, PeerError
from tests.ipc.events import NewPeer
from tests.ipc.users import ANN, BOB, GROUP, IMPORTS, OTHERS, STRANGER, become

from taskiq_supervise.ipc import SegmentError, TaskQueue

SHARED = f"mode=0o660, group={GROUP}"
PRIVATE = "mode=0o600"

User = Callable[..., Peer]


@pytest.fixture
def base() -> Iterator[Path]:
    """Not made yet, in a place like /dev/shm, where everybody may make something."""
    place = Path(tempfile.mkdtemp(prefix="tsq-", dir=DEV_SHM if DEV_SHM.is_dir() else None))
    place.chmod(0o1777)
    yield place / "base"
    shutil.rmtree(place)


@pytest.fixture
def user(new_peer: NewPeer, base: Path) -> User:
    """A process of a user, who is in no group but his own and those given. `base` is there."""

    def make(number: int, *groups: int, imports: str = "pass") -> Peer:
        peer = new_peer()
        peer.ask(imports)
        become(peer, number, *groups)
        peer.ask(f"base = {str(base)!r}")
        return peer

    return make


@pytest.fixture
def ann(user: User) -> Peer:
    return user(ANN, GROUP)


@pytest.fixture
def bob(user: User) -> Peer:
    return user(BOB, GROUP)


def join(peer: Peer, arguments: str = "", access: str = SHARED) -> int:
    return peer.join(f"directory=base, {access}, {arguments}")


def join_async(peer: Peer, arguments: str = "", access: str = SHARED) -> int:
    return peer.join_async(f"directory=base, {access}, {arguments}")


def refused(peer: Peer, access: str = SHARED) -> str:
    with pytest.raises(PeerError, match=r"^(SegmentError|QueueError): ") as caught:
        join(peer, access=access)
    return str(caught.value)


# ---- working ----


@pytest.mark.parametrize("access", [SHARED, "mode=0o666"])
def test_a_thousand_messages_go_from_one_user_to_another(ann: Peer, bob: Peer, access: str) -> None:
    join_async(ann, access=access)
    join_async(bob, "role=Role.WORKER", access=access)
    work = bob.begin(
        "for _ in range(1000):\n"
        "    lease = await waiting.claim()\n"
        "    lease.start()\n"
        "    await waiting.complete(lease, lease.payload[::-1])\n"
    )
    sent = ann.begin(
        "room = asyncio.Semaphore(30)\n"
        "async def send(n):\n"
        "    async with room:\n"
        "        outcome = await waiting.wait(await waiting.put(f'id-{n}', f'load {n}'.encode()))\n"
        "    return outcome.data == f'load {n}'.encode()[::-1]\n"
        "sum(await asyncio.gather(*map(send, range(1000))))"
    )
    bob.answer(work)
    assert ann.answer(sent) == 1000


@pytest.mark.parametrize("killed_first", [True, False])
def test_the_death_of_one_user_is_repaired_by_another(
    ann: Peer, bob: Peer, killed_first: bool
) -> None:
    """Whoever has the custodian's office: the one that dies or the one that goes on."""
    for peer in (ann, bob) if killed_first else (bob, ann):
        join_async(peer, "role=Role.WORKER")
    bob.ask("ticket = await waiting.put('id', bytes(5000)); 0")
    ann.ask("lease = queue.claim(); lease.start()")
    # Everything else that a dead one leaves: a file that no message needs yet, and its doorbell.
    ann.ask("queue._write_file = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)")
    ann.begin("queue.put('never sent', bytes(5000))")
    ann.wait_stopped()
    ann.kill()
    assert bob.ask("lease = await waiting.claim(); lease.start(); [lease.task_id, lease.attempt]") \
        == ["id", 2]  # fmt: skip
    assert bob.ask("lease.payload == bytes(5000)")
    bob.ask("lease.complete(b'done')")
    assert bob.ask("queue.outcome(ticket).data.decode()") == "done"
    assert bob.ask("len(list(queue.participants()))") == 1
    assert bob.ask("queue.stats().free") == 63


def test_the_place_of_a_dead_user_is_taken_by_another(ann: Peer, bob: Peer) -> None:
    join(ann)
    ann.kill()
    assert join(bob, "role=Role.WORKER") == 2
    assert bob.ask("burial = queue.recover(1); burial is not None")
    bob.ask("queue.close()")
    assert join(bob) == 1


@pytest.mark.parametrize("swapped", [False, True])
def test_large_payloads_go_both_ways_in_files_that_the_other_has_made(
    ann: Peer, bob: Peer, swapped: bool
) -> None:
    one, two = (bob, ann) if swapped else (ann, bob)
    for peer in (one, two):
        join(peer, "role=Role.WORKER")
    files = "[path for path in (queue.directory / 'files').rglob('*') if path.is_file()]"
    inodes = []
    for turn in range(4):
        # Each request is written into the only file there is, which is then a spare again.
        sender, taker = (one, two) if turn % 2 == 0 else (two, one)
        sender.ask(f"ticket = queue.put('id', b'x', buffers=[bytes([{turn}]) * 1_000_000]); 0")
        inodes.append(taker.ask(f"[path] = {files}; path.stat().st_ino"))
        taker.ask("lease = queue.claim(); lease.start()")
        assert taker.ask("[data] = lease.buffers; [len(data), data[0], data[-1]]") == [
            1_000_000, turn, turn,
        ]  # fmt: skip
        taker.ask("del data; lease.complete(b'done'); del lease")
        sender.ask("queue.outcome(ticket).data.decode(); queue.drop(ticket)")
    assert len(set(inodes)) == 1
    # A result takes the same way back, into the same file.
    one.ask("ticket = queue.put('id', b'x'); 0")
    two.ask("lease = queue.claim(); lease.start(); lease.complete(b'x', [b'r' * 1_000_000])")
    assert one.ask("[data] = queue.outcome(ticket).buffers; [len(data), data[-1]]") == [10**6, 114]
    assert one.ask(f"[path] = {files}; path.stat().st_ino") == inodes[0]
    one.ask("del data; queue.drop(ticket)")
    two.ask("queue.files.trim(0, 0)")
    assert two.ask(f"len({files})") == 0


def test_everything_belongs_to_the_group_whoever_made_it(base: Path, user: User) -> None:
    """The umask of both would keep all others out."""
    ann, bob = (user(number, GROUP, imports=IMPORTS) for number in (ANN, BOB))
    for peer in (ann, bob):
        join(peer, "role=Role.WORKER")
        peer.ask("queue.put('id', bytes(100_000)); lease = queue.claim(); lease.start()")
        peer.ask("lease.complete(bytes(100_000))")
        peer.ask(
            "class Now: state, meta = 'x', None\n"
            "progress = ProgressFolder(queue.directory / 'progress')\n"
            "progress.set('mine', Now); progress.set('ours', Now)"
        )
    bob.ask("queue.become_supervisor('test')")
    found = [base, *base.rglob("*")]
    assert {path.lstat().st_uid for path in found} == {ANN, BOB}
    for path in found:
        status = path.lstat()
        assert status.st_gid == GROUP, path
        expected = 0o2770 if stat.S_ISDIR(status.st_mode) else 0o660
        assert stat.S_IMODE(status.st_mode) == expected, path


def test_two_users_who_make_it_at_once_share_it(base: Path, ann: Peer, bob: Peer) -> None:
    for number in range(50):
        name = f"q{number}"
        go = base.with_name(f"go-{number}")
        asked = [
            (peer, peer.begin(
                f"while not os.path.exists({str(go)!r}): pass\n"
                f"queue = TaskQueue.open({name!r}, f'{{base}}-{number % 10}', geometry=SMALL, "
                f"{SHARED})\nqueue.participant"
            ))
            for peer in (ann, bob)
        ]  # fmt: skip
        go.touch()
        assert {peer.answer(each) for peer, each in asked} == {1, 2}
        ann.ask("queue.put('id', b'x').slot")
        assert bob.ask("queue.claim().task_id") == "id"
        for peer in (ann, bob):
            peer.ask("queue.close()")


def test_one_who_is_just_making_it_keeps_no_other_user_away(ann: Peer, bob: Peer) -> None:
    """Its file has its mode a moment after its name."""
    ann.ask(f"queue = TaskQueue.open('q', base, geometry=SMALL, {SHARED})")
    ann.ask(
        "queue.close()\n"
        "os.unlink(queue.directory / 'segment')\n"
        "os.close(os.open(queue.directory / 'segment.new-1-ab', os.O_CREAT | os.O_WRONLY, 0o600))"
    )
    bob.ask(f"queue = TaskQueue.open('q', base, geometry=SMALL, {SHARED})")
    assert bob.ask("queue.put('id', b'x').task_id") == "id"


# ---- who may not ----


def test_a_stranger_gets_in_by_no_way(user: User, base: Path, ann: Peer) -> None:
    join(ann)
    stranger = user(STRANGER, OTHERS)
    assert f"user {STRANGER} is not in group {GROUP}" in refused(stranger)
    assert f"belongs to user {ANN}, not to {STRANGER}: refused" in refused(stranger, PRIVATE)
    assert "cannot hold a queue with mode=0o660" in refused(stranger, "mode=0o660")
    for access in ("mode=0o666", "mode=None, create=False"):
        assert "Permission denied" in refused(stranger, access), access
    base.chmod(0o2775)
    assert "needs mode 2777" in refused(stranger, "mode=0o666")
    assert f"shared by group {GROUP}, which user {STRANGER} is not in" in refused(
        stranger, "mode=None, create=False"
    )
    for name in ("segment", "lock", "bell-1"):
        with pytest.raises(PeerError, match="PermissionError"):
            stranger.ask(f"os.close(os.open(f'{{base}}/q/{name}', os.O_RDONLY))")


def test_one_of_the_group_who_does_not_say_so_is_told_what_to_say(ann: Peer, bob: Peer) -> None:
    join(ann)
    said = refused(bob, PRIVATE)
    assert (
        f"belongs to user {ANN}, not to {BOB}: refused; if its queue is shared on purpose" in said
    )
    assert f"open it with mode=0o660, group={GROUP}" in said
    assert "needs mode 2777: open it as it was made" in refused(bob, "mode=0o666")


def test_a_private_queue_stays_so(base: Path, ann: Peer, bob: Peer) -> None:
    base.mkdir()
    os.chown(base, ANN, GROUP)
    base.chmod(0o750)
    join(ann, access=PRIVATE)
    assert "needs group 47110 and mode 2770" in refused(bob)
    assert f"belongs to user {ANN}" in refused(bob, "mode=None, create=False")
    assert "needs group 47110 and mode 2770" in refused(ann)


def test_a_queue_of_another_group_is_refused(user: User, base: Path, ann: Peer) -> None:
    base.mkdir(mode=0o755)
    base.chmod(0o1777)
    join(ann)
    both = user(BOB, GROUP, OTHERS)
    said = refused(both, f"mode=0o660, group={OTHERS}")
    assert f"has group {GROUP} and mode 2770; mode=0o660, group={OTHERS} needs group" in said


def test_a_group_can_be_named(user: User) -> None:
    one, two = user(ANN, 1), user(BOB, 1)
    for peer in (one, two):
        join(peer, access="mode=0o660, group='daemon'")
    one.ask("queue.put('id', b'x')")
    assert two.ask("queue.claim().task_id") == "id"


@pytest.mark.parametrize(
    ("owner", "group", "mode", "sentence"),
    [
        (0, 0, 0o1777, ""),
        (0, GROUP, 0o770, ""),
        (ANN, GROUP, 0o770, ""),
        (BOB, GROUP, 0o2770, ""),
        (BOB, OTHERS, 0o755, "its owner could put another in its place"),
        (STRANGER, OTHERS, 0o1777, "its owner could put another in its place"),
        (0, OTHERS, 0o775, "others could put another in its place"),
        (0, OTHERS, 0o1775, "Permission denied"),
        (0, GROUP, 0o777, "others could put another in its place"),
        (ANN, ANN, 0o700, "nobody else can get into it"),
    ],
)
def test_no_stranger_can_put_another_queue_in_the_place_of_one(
    base: Path, ann: Peer, owner: int, group: int, mode: int, sentence: str
) -> None:
    base.mkdir()
    os.chown(base, owner, group)
    base.chmod(mode)
    if sentence:
        assert sentence in refused(ann)
        assert list(base.iterdir()) == []
    else:
        join(ann)


def test_a_folder_that_gives_its_group_to_strangers_proves_nothing(
    user: User, base: Path, ann: Peer, bob: Peer
) -> None:
    """What a stranger makes in it looks like one of the group's own."""
    base.mkdir()
    os.chown(base, 0, GROUP)
    base.chmod(0o3777)
    stranger = user(STRANGER)
    stranger.ask("os.umask(0); os.mkdir(f'{base}/q', 0o770); os.listdir(base)")
    assert (base / "q").stat().st_gid == GROUP
    assert stat.S_IMODE((base / "q").stat().st_mode) == 0o2770
    assert f"belongs to user {STRANGER}, who is not known to be of group {GROUP}" in refused(ann)
    assert list((base / "q").iterdir()) == []


def test_root_uses_a_shared_queue_only_when_it_says_so(
    base: Path, ann: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what any user has made could be what root trusts."""
    monkeypatch.setattr(os, "getgroups", lambda: [0])
    join(ann)
    with pytest.raises(SegmentError, match=rf"shared by group {GROUP}, which user 0 is not in"):
        TaskQueue.open("q", base, create=False, mode=None)
    with TaskQueue.open("q", base, mode=0o660, group=GROUP) as queue:
        queue.put("id", b"from root")
        assert ann.ask("queue.claim().payload.decode()") == "from root"
    ann.ask("queue.close()")
    ann.ask("TaskQueue.open('open', f'{base}-open', geometry=SMALL, mode=0o666).close()")
    with pytest.raises(SegmentError, match=f"belongs to user {ANN}: run this as another user"):
        TaskQueue.open("open", f"{base}-open", create=False, mode=None)


# ---- commands, supervisors, tasks ----


def command(peer: Peer, *arguments: str) -> str:
    """What it prints; it has to succeed."""
    status, printed = peer.ask(
        f"done = CliRunner().invoke(cli, [*{arguments!r}, '--directory', base])\n"
        "[done.exit_code, done.output + repr(done.exception)]"
    )
    assert status == 0, printed
    return str(printed)


@pytest.mark.parametrize("access", [SHARED, "mode=0o666"])
def test_the_commands_work_on_the_queue_of_another(user: User, ann: Peer, access: str) -> None:
    bob = user(BOB, GROUP, imports=IMPORTS)
    join(ann, access=access)
    ann.ask("queue.put('dead', b'x'); lease = queue.claim(); lease.start()")
    ann.ask(
        "from taskiq_supervise.ipc import DeadReason; lease.dead_letter(DeadReason.DAMAGED, '')"
    )
    ann.ask("queue.put('waiting', bytes(5000))")
    assert "q" in command(bob, "queue", "list")
    assert '"id": "waiting"' in command(bob, "queue", "show", "q", "--json")
    assert "dead" in command(bob, "dead", "list", "q")
    command(bob, "dead", "requeue", "q", "dead")
    assert "purged 2 waiting messages" in command(bob, "queue", "purge", "q", "--yes")
    assert "in use by" in bob.ask(
        "CliRunner().invoke(cli, ['queue', 'destroy', 'q', '--yes', '--directory', base]).output"
    )
    ann.ask("queue.close()")
    if access == SHARED:
        assert "removed queue" in command(bob, "queue", "destroy", "q", "--yes")
        assert bob.ask("os.listdir(base)") == []
        return
    # Where everybody makes queues, each removes his own.
    assert "Operation not permitted; nothing was changed" in bob.ask(
        "CliRunner().invoke(cli, ['queue', 'destroy', 'q', '--yes', '--directory', base]).output"
    )
    join(ann, access=access)


CUSTODY = f"""
transport = Transport("shm", "q", base, mode=0o660, group={GROUP})
custody = Custody()
await custody.open(transport, "of %s", 3)
"""


def test_supervisors_of_two_users_follow_each_other(user: User, base: Path, ann: Peer) -> None:
    first, second = user(BOB, GROUP, imports=IMPORTS), user(STRANGER, GROUP, imports=IMPORTS)
    first.ask(CUSTODY % "bob")
    with pytest.raises(
        PeerError, match=rf"already supervised by instance 'of bob', pid {first.pid}"
    ):
        second.ask(CUSTODY % "third")
    # Its worker runs as somebody else, and so does the client.
    join_async(ann, "role=Role.WORKER, guardian=1")
    ann.ask("queue.put('id', b'x'); lease = queue.claim(); lease.start()")
    assert first.ask("custody.stats()['running']") == 1
    ann.kill()
    cause = f"DeathCause(pid={ann.pid}, signal={int(signal.SIGKILL)})"
    assert first.ask(f"custody.bury({ann.pid}, {cause}).redelivered") == ["id"]
    first.kill()
    second.ask(CUSTODY % "third")
    assert "of third" in (base / "q" / "supervisor").read_text()
    assert second.ask("custody.stats()['ready']") == 1


BROKER = f"""
__name__ = "__main__"
broker = SharedMemoryBroker("q", directory=base, geometry=SMALL, mode=0o660, group={GROUP})
@broker.task("reversed")
async def reversed_(data: str) -> str:
    return data[::-1]
"""


def test_tasks_and_results_go_between_users(user: User) -> None:
    client, worker = (user(number, GROUP, imports=IMPORTS) for number in (ANN, BOB))
    for peer in (client, worker):
        peer.ask(BROKER)
    worker.ask("broker.is_worker_process = True; await broker.startup()")
    client.ask("await broker.startup(); task = await reversed_.kiq('x' * 5000 + 'abc')")
    worker.ask(
        "from taskiq.receiver import Receiver\n"
        "receiver = Receiver(broker, run_startup=False)\n"
        "from taskiq.depends.progress_tracker import TaskProgress, TaskState\n"
        "message = await anext(aiter(broker.listen()))\n"
        "await broker.result_backend.set_progress('x', TaskProgress(state=TaskState.STARTED, "
        "meta=5))\n"
        "await receiver.callback(message)"
    )
    assert client.ask("(await task.wait_result(timeout=10)).return_value[:3]") == "cba"
    assert client.ask("(await broker.result_backend.get_progress('x')).meta") == 5
    for peer in (client, worker):
        peer.ask("await broker.shutdown()")
