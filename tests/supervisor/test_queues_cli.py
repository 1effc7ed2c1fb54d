"""`taskiq-supervise queue`: which queues there are, what is in them, and how they are emptied."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.ipc.conftest import Peer
from tests.supervisor.commands import as_json, call, message
from tests.supervisor.terminal import Terminal

from taskiq_supervise.ipc import DeadReason, Geometry, OutcomeKind, TaskQueue

Open = Callable[..., TaskQueue]


@pytest.fixture
def base() -> Path:
    return Path(os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"])


@pytest.fixture
def queue(open_queue: Open) -> TaskQueue:
    """With two waiting messages, a delayed one, a result and a dead letter; and one that runs."""
    queue = open_queue()
    for task_id in ("result", "dead", "running"):
        queue.put(task_id, message(f"app:{task_id}"))
    lease = queue.claim()
    assert lease is not None
    lease.start()
    lease.complete(b"result")
    lease = queue.claim()
    assert lease is not None
    lease.start()
    lease.dead_letter(DeadReason.UNKNOWN_TASK, "")
    lease = queue.claim()
    assert lease is not None
    lease.start()
    queue.put("waiting-1", message("app:one"), priority=9)
    queue.put("waiting-2", b"no message")
    queue.put("later", message("app:later"), due=time.time() + 3600)
    return queue


def outcomes(queue: TaskQueue) -> dict[str, str]:
    return {view.ticket.task_id: view.state.name for view in queue.messages()}


def kind(queue: TaskQueue, task_id: str) -> OutcomeKind | None:
    outcome = queue.outcome(task_id)
    return None if outcome is None else outcome.kind


# ---- list ----


def test_without_queues_the_list_is_empty(base: Path) -> None:
    done = call("queue", "list")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", f"no queues in {base}\n")
    assert as_json("queue", "list") == {"queues": []}
    assert as_json("queue", "list", "--directory", str(base / "not" / "there")) == {"queues": []}
    assert list(base.iterdir()) == []


def test_the_list_has_all_queues_and_what_is_in_them(
    queue: TaskQueue, open_queue: Open, base: Path
) -> None:
    open_queue("another", geometry=Geometry(slots=128)).close()
    (base / "no queue").mkdir()
    (base / "empty").mkdir()
    (base / "file").touch()
    first, second = as_json("queue", "list")["queues"]
    assert (first["name"], first["directory"], first["error"]) == ("another", str(base), None)
    assert (first["counts"]["ready"], first["counts"]["capacity"]) == (0, 128)
    assert first["participants"] == []
    assert second["counts"] | {"free": 0} == {
        "ready": 2,
        "leased": 0,
        "running": 1,
        "delayed": 1,
        "dead": 1,
        "done": 1,
        "free": 0,
        "capacity": 64,
    }
    assert second["participants"] == [{"role": "client", "pid": os.getpid(), "worker": None}]
    assert second["result_ttl"] == queue.result_ttl
    segment = (queue.directory / "segment").stat().st_size
    assert segment <= second["size"] < segment + 100_000
    head, *lines = call("queue", "list").stdout.splitlines()
    assert head.split() == [
        *("QUEUE", "READY", "DELAYED", "RUNNING", "DEAD", "RESULTS", "ROOM", "WORKERS", "CLIENTS"),
        "SIZE",
    ]
    assert lines[0].split()[:9] == ["another", "0", "0", "0", "0", "0", "128", "0", "0"]
    assert lines[1].split()[:9] == ["q", "2", "1", "1", "1", "1", "64", "0", "1"]


def test_only_the_living_are_counted(open_queue: Open, new_peer: Callable[[], Peer]) -> None:
    open_queue().close()
    worker, client = new_peer(), new_peer()
    worker.join("role=Role.WORKER, tag=5")
    client.join()
    client.kill()
    assert as_json("queue", "show", "q")["participants"] == [
        {"role": "worker", "pid": worker.pid, "worker": 4}
    ]


def test_a_queue_that_cannot_be_opened_does_not_hide_the_others(
    queue: TaskQueue, base: Path
) -> None:
    (base / "broken").mkdir(mode=0o700)
    (base / "broken" / "segment").write_bytes(b"garbage" * 1_000)
    broken, good = as_json("queue", "list")["queues"]
    assert (broken["name"], broken["counts"]) == ("broken", None)
    assert "not a queue segment" in broken["error"]
    assert good["counts"]["ready"] == 2
    done = call("queue", "list")
    assert done.exit_code == 0
    *_, line, problem = done.stdout.splitlines()
    assert line.startswith("q ")
    assert problem.startswith("broken cannot be opened: ")
    assert "not a queue segment" in problem
    assert call("queue", "show", "broken").exit_code == 1


# ---- show ----


def test_a_queue_is_shown_with_the_messages_that_have_not_ended(queue: TaskQueue) -> None:
    shown = as_json("queue", "show", "q")
    assert shown["counts"]["capacity"] == 64
    assert [
        (one["id"], one["task"], one["state"], one["attempts"], one["priority"])
        for one in shown["messages"]
    ] == [
        ("running", "app:running", "running", 1, 5),
        ("waiting-1", "app:one", "ready", 0, 9),
        ("waiting-2", None, "ready", 0, 5),
        ("later", "app:later", "delayed", 0, 5),
    ]
    running, *_, later = shown["messages"]
    assert running["worker_pid"] == os.getpid()
    assert later["due"] - time.time() > 3_000
    lines = call("queue", "show", "q").stdout.splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines[: lines.index("")])
    assert facts["queue"] == "q"
    assert facts["messages"] == "2 ready, 1 delayed, 0 leased, 1 running, 1 dead; 1 result"
    assert facts["room"].endswith("of 64 free")
    assert facts["results"] == "kept for 1h00m"
    assert facts["client"] == f"pid {os.getpid()}"
    table = lines[lines.index("") + 1 :]
    assert table[0].split() == [
        *("SENT", "ID", "TASK", "STATE", "ATTEMPTS", "WORKER", "PRIO", "SIZE")
    ]
    assert "running" in table[1]
    assert re.search(r"  in (59m\d\ds|1h00m)  ", table[4])
    assert len(table) == 5


def test_of_many_messages_the_oldest_are_shown(open_queue: Open) -> None:
    queue = open_queue()
    for number in range(25):
        queue.put(f"task-{number:02}", message("app:one"))
    shown = call("queue", "show", "q").stdout
    assert "task-19" in shown
    assert "task-20" not in shown
    assert shown.endswith("and 5 more: --all shows them, --json too\n")
    assert "task-24" in call("queue", "show", "q", "--all").stdout
    assert len(as_json("queue", "show", "q")["messages"]) == 25


def test_looking_changes_nothing(queue: TaskQueue) -> None:
    before = outcomes(queue)
    others = [one.index for one in queue.participants()]
    for command in ("queue list", "queue show q", "dead list q"):
        assert call(*command.split()).exit_code == 0
    assert outcomes(queue) == before
    assert [one.index for one in queue.participants()] == others


# ---- purge ----


@pytest.mark.parametrize(
    ("flags", "gone", "purged"),
    [
        ([], ["waiting-1", "waiting-2", "later"], [3, 0, 0]),
        (["--waiting"], ["waiting-1", "waiting-2", "later"], [3, 0, 0]),
        (["--dead"], ["dead"], [0, 1, 0]),
        (["--results"], ["result"], [0, 0, 1]),
        (["--dead", "--results"], ["dead", "result"], [0, 1, 1]),
        (
            ["--waiting", "--dead", "--results"],
            ["waiting-1", "waiting-2", "later", "dead", "result"],
            [3, 1, 1],
        ),
    ],
    ids=str,
)
def test_what_is_meant_is_purged_and_no_more(
    queue: TaskQueue, flags: list[str], gone: list[str], purged: list[int]
) -> None:
    before = outcomes(queue)
    done = as_json("queue", "purge", "q", "--yes", *flags)
    assert done == {"purged": dict(zip(("waiting", "dead", "results"), purged, strict=True))}
    after = outcomes(queue)
    assert after["running"] == "RUNNING"
    for task_id, state in before.items():
        if task_id not in gone:
            assert after[task_id] == state
        elif state in ("READY", "DELAYED"):
            assert kind(queue, task_id) is OutcomeKind.DISCARDED
        else:
            assert task_id not in after


def test_who_waits_for_a_purged_message_is_told(
    open_queue: Open, new_peer: Callable[[], Peer]
) -> None:
    open_queue().close()
    peer = new_peer()
    peer.join_async()
    peer.ask("ticket = await waiting.put('task', b''); 0")
    outcome = peer.begin("(await waiting.wait(ticket)).kind.name")
    done = call("queue", "purge", "q", "--yes")
    assert (done.exit_code, done.stdout) == (0, "purged 1 waiting message\n")
    assert peer.answer(outcome) == "DISCARDED"


# ---- asking ----


@pytest.mark.parametrize("command", ["purge", "destroy"])
def test_where_nobody_can_be_asked_yes_has_to_be_said(queue: TaskQueue, command: str) -> None:
    before = outcomes(queue)
    done = call("queue", command, "q")
    assert done.exit_code == 2
    assert "--yes" in done.stderr
    assert outcomes(queue) == before


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_person_is_asked_before_a_purge(queue: TaskQueue, answer: str) -> None:
    terminal = Terminal("queue", "purge", "q", "--waiting", "--dead")
    terminal.read_until("[y/N]: ")
    assert "Forget 3 waiting messages, 1 dead letter of queue 'q'?" in terminal.text
    assert outcomes(queue)["waiting-1"] == "READY"
    terminal.type(f"{answer}\n")
    assert terminal.end() == (0 if answer == "y" else 1)
    if answer == "y":
        assert "purged 3 waiting messages, 1 dead letter" in terminal.text
    assert outcomes(queue)["waiting-1"] == ("DONE" if answer == "y" else "READY")


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_person_is_asked_before_a_queue_is_removed(
    queue: TaskQueue, base: Path, answer: str
) -> None:
    queue.close()
    terminal = Terminal("queue", "destroy", "q")
    terminal.read_until("[y/N]: ")
    question = "Remove queue 'q' with 4 messages, 1 dead letter and 1 result?"
    assert question in terminal.text
    terminal.type(f"{answer}\n")
    assert terminal.end() == (0 if answer == "y" else 1)
    assert (base / "q").exists() == (answer == "n")


# ---- destroy ----


def test_a_removed_queue_is_gone(queue: TaskQueue, base: Path) -> None:
    queue.close()
    done = call("queue", "destroy", "q", "--yes")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "removed queue 'q'\n", "")
    assert list(base.iterdir()) == []
    done = call("queue", "destroy", "q", "--yes")
    assert done.exit_code == 1
    assert done.stderr == f"taskiq-supervise: there is no queue 'q' in {base}\n"


def test_a_queue_that_is_used_stays_and_its_users_are_named(
    queue: TaskQueue, new_peer: Callable[[], Peer]
) -> None:
    peer = new_peer()
    peer.join("role=Role.SUPERVISOR")
    before = outcomes(queue)
    done = call("queue", "destroy", "q", "--yes")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"in use by client pid {os.getpid()}, supervisor pid {peer.pid}; stop" in done.stderr
    assert done.stderr.count("\n") == 1
    assert outcomes(queue) == before


def test_a_damaged_queue_can_be_removed(base: Path) -> None:
    (base / "q").mkdir(mode=0o700)
    (base / "q" / "segment").write_bytes(b"garbage" * 1_000)
    terminal = Terminal("queue", "destroy", "q", columns=400)
    terminal.read_until("[y/N]: ")
    assert "contents that cannot be read" in terminal.text
    terminal.type("y\n")
    assert terminal.end() == 0
    assert as_json("queue", "list") == {"queues": []}


def test_a_folder_in_another_directory_is_removed_only_if_it_is_a_queue(
    open_queue: Open, tmp_path: Path
) -> None:
    open_queue("mine", directory=tmp_path).close()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    done = call("queue", "destroy", "photos", "--yes", "--directory", str(tmp_path))
    assert done.exit_code == 1
    assert "'cat.jpg' is in it" in done.stderr
    assert as_json("queue", "destroy", "mine", "-y", "--directory", str(tmp_path)) == {
        "destroyed": "mine"
    }
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


# ---- usage ----


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show",), "QUEUE"),
        (("show", "a/b"), "'a/b'"),
        (("destroy", "..", "--yes"), "'..'"),
        (("destroy", ".removed-q-1", "--yes"), "'.removed-q-1'"),
        (("purge", "q", "x", "--yes"), "x"),
        (("empty", "q"), "empty"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...], said: str) -> None:
    done = call("queue", *arguments)
    assert done.exit_code == 2
    assert said in done.output


def test_an_application_may_be_called_queue_or_dead() -> None:
    """`queue:broker` is an application; only `queue` itself is a command."""
    for name in ("queue", "dead"):
        done = call(f"{name}:broker", "--workers", "0")
        assert (done.exit_code, "--workers" in done.output) == (2, True)


def test_help_does_not_import_what_only_the_commands_need() -> None:
    code = (
        "import sys\n"
        "from taskiq_supervise.supervisor.commands.cli import cli\n"
        "cli.main(['queue', 'purge', '--help'], standalone_mode=False)\n"
        "ours = ('queue_facts', 'queue_render', 'message_text')\n"
        "unwanted = {'rich', 'taskiq', 'pickletools', 'taskiq_supervise.ipc.removal'}\n"
        "unwanted |= {f'taskiq_supervise.supervisor.{name}' for name in ours}\n"
        "print(sorted(unwanted & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--results" in done.stdout
    assert done.stderr == "[]\n"
