"""`taskiq-supervise dead`: what could not be run is seen, run again or dropped."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.ipc.conftest import Peer
from tests.supervisor.commands import as_json, call, message
from tests.supervisor.terminal import Terminal

from taskiq_supervise.ipc import DeadReason, MessageState, QueueFull, TaskQueue, Ticket

Bury = Callable[..., None]


@pytest.fixture
def queue(open_queue: Callable[..., TaskQueue]) -> TaskQueue:
    return open_queue()


@pytest.fixture
def bury(queue: TaskQueue) -> Bury:
    """Makes a dead letter."""

    def make(
        task_id: str,
        payload: bytes | None = None,
        reason: DeadReason = DeadReason.UNKNOWN_TASK,
        detail: str = "",
    ) -> None:
        queue.put(task_id, message() if payload is None else payload)
        lease = queue.claim()
        assert lease is not None
        assert lease.task_id == task_id
        lease.start()
        lease.dead_letter(reason, detail)

    return make


@pytest.fixture
def three(bury: Bury) -> None:
    bury("aa11", message("app.mail:send", "x"), detail="app.mail:send")
    bury("aa22", message("app.mail:fetch"))
    bury("bb33", b"\xff garbage", DeadReason.UNPARSABLE, "ValueError: not JSON")


def states(queue: TaskQueue) -> dict[str, str]:
    return {view.ticket.task_id: view.state.name for view in queue.messages()}


@pytest.mark.usefixtures("three")
def test_the_list_tells_what_died_of_what_oldest_first() -> None:
    before = time.time()
    letters = as_json("dead", "list", "q")["dead"]
    assert [letter["id"] for letter in letters] == ["aa11", "aa22", "bb33"]
    assert [letter["task"] for letter in letters] == ["app.mail:send", "app.mail:fetch", None]
    assert [letter["reason"] for letter in letters] == ["unknown-task"] * 2 + ["unparsable"]
    first = letters[0]
    assert before - 60 < first["created"] <= first["ended"] < before + 60
    assert first | {"created": 0, "ended": 0} == {
        "id": "aa11",
        "task": "app.mail:send",
        "state": "dead",
        "reason": "unknown-task",
        "detail": "app.mail:send",
        "attempts": 1,
        "max_deliveries": None,
        "worker": None,
        "worker_pid": os.getpid(),
        "priority": 5,
        "size": len(message("app.mail:send", "x")),
        "created": 0,
        "due": None,
        "expires": None,
        "ended": 0,
    }


@pytest.mark.usefixtures("three")
def test_the_table_has_a_line_for_each() -> None:
    done = call("dead", "list", "q")
    assert (done.exit_code, done.stderr) == (0, "")
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["WHEN", "ID", "TASK", "REASON", "ATTEMPTS", "WORKER", "SIZE"]
    worker = ["1", "pid", str(os.getpid())]
    sizes = [len(message("app.mail:send", "x")), len(message("app.mail:fetch"))]
    assert [line.split()[2:] for line in lines] == [
        ["aa11", "app.mail:send", "unknown-task", *worker, f"{sizes[0]}B"],
        ["aa22", "app.mail:fetch", "unknown-task", *worker, f"{sizes[1]}B"],
        ["bb33", "-", "unparsable", *worker, "9B"],
    ]
    for line in lines:
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line)


def test_a_queue_without_dead_letters_is_fine(queue: TaskQueue) -> None:
    queue.put("alive", message())
    done = call("dead", "list", "q")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "no dead letters in queue 'q'\n"
    assert as_json("dead", "list", "q") == {"dead": []}


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["--task", "app.mail:send"], ["aa11"]),
        (["--task", "app.mail:*"], ["aa11", "aa22"]),
        (["--task", "*"], ["aa11", "aa22"]),
        (["--task", "app.mail"], []),
        (["--reason", "unparsable"], ["bb33"]),
        (["--reason", "unparsable", "--reason", "unknown-task"], ["aa11", "aa22", "bb33"]),
        (["--reason", "unknown-task", "--task", "*:fetch"], ["aa22"]),
        (["--reason", "max-deliveries"], []),
    ],
    ids=" ".join,
)
def test_filters_narrow_the_list(filters: list[str], expected: list[str]) -> None:
    found = [letter["id"] for letter in as_json("dead", "list", "q", *filters)["dead"]]
    assert found == expected
    if not found:
        assert "no dead letters that fit" in call("dead", "list", "q", *filters).stderr


@pytest.mark.parametrize("action", ["requeue", "drop"])
@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (["aa11"], ["aa11"]),
        (["b"], ["bb33"]),
        (["bb33", "aa1", "aa11"], ["bb33", "aa11"]),
        (["--all"], ["aa11", "aa22", "bb33"]),
        (["--all", "--task", "app.mail:*"], ["aa11", "aa22"]),
        (["--all", "--reason", "unparsable"], ["bb33"]),
        (["--all", "--task", "nothing"], []),
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("three")
def test_those_that_are_meant_and_no_others(
    queue: TaskQueue, action: str, which: list[str], expected: list[str]
) -> None:
    done = as_json("dead", action, "q", *which)
    assert done == {"requeued" if action == "requeue" else "dropped": expected, "gone": []}
    left = dict.fromkeys(["aa11", "aa22", "bb33"], "DEAD")
    for task_id in expected:
        if action == "requeue":
            left[task_id] = "READY"
        else:
            del left[task_id]
    assert states(queue) == left


@pytest.mark.usefixtures("three")
def test_what_was_requeued_is_run_again_with_all_its_starts(queue: TaskQueue) -> None:
    done = call("dead", "requeue", "q", "aa11")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "requeued 1 dead letter\n", "")
    lease = queue.claim()
    assert lease is not None
    assert (lease.task_id, lease.payload) == ("aa11", message("app.mail:send", "x"))
    assert lease.start() == 1
    lease.complete(b"")


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("requeue", "q", "cc"), "no dead letter 'cc' in queue 'q'"),
        (("requeue", "q", ""), "no dead letter '' in queue 'q'"),
        (("drop", "q", "aa"), "'aa' is the beginning of 2 ids: aa11, aa22"),
        (("show", "q", "aa11", "x"), "no dead letter 'x' in queue 'q'"),
        (("list", "elsewhere"), "no queue 'elsewhere' in "),
        (("list", "q", "--directory", "/dev/null"), "/dev/null"),
        (("drop", "elsewhere", "--all"), "no queue 'elsewhere' in "),
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_one_line_and_status_1(
    queue: TaskQueue, arguments: tuple[str, ...], said: str
) -> None:
    before = states(queue)
    done = call("dead", *arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("taskiq-supervise: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert states(queue) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("requeue", "q"), "IDs, or --all"),
        (("drop", "q"), "IDs, or --all"),
        (("drop", "q", "aa11", "--all"), "IDs, or --all"),
        (("drop", "q", "--task", "x"), "IDs, or --all"),
        (("requeue", "q", "aa11", "--task", "x"), "--task and --reason narrow --all"),
        (("list", "q", "--reason", "age"), "'age'"),
        (("list",), "QUEUE"),
        (("show", "q"), "ID"),
        (("list", "../q"), "'../q'"),
        (("list", "q", "--directory", __file__), "is a file"),
        (("bury", "q"), "bury"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...], said: str) -> None:
    done = call("dead", *arguments)
    assert done.exit_code == 2
    assert said in done.output


def test_looking_makes_nothing(tmp_path: Path) -> None:
    base = Path(os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"])
    for arguments in (
        ["dead", "list", "q"],
        ["dead", "drop", "q", "--all"],
        ["queue", "show", "q"],
    ):
        assert call(*arguments).exit_code == 1
        assert call(*arguments, "--directory", str(tmp_path / "not" / "there")).exit_code == 1
    assert list(base.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_all_that_is_known_of_one_is_shown(queue: TaskQueue, new_peer: Callable[[], Peer]) -> None:
    payload = message("app:crash", "x" * 500, [1, 2], deep={"a": None})
    queue.put("victim", payload, max_deliveries=1, priority=7)
    peer = new_peer()
    index = peer.join("role=Role.WORKER, tag=3")
    peer.ask("queue.claim().start()")
    peer.kill()
    queue.recover(index)
    [letter] = as_json("dead", "show", "q", "victim")["dead"]
    assert (letter["reason"], letter["attempts"]) == ("max-deliveries", 1)
    assert (letter["worker"], letter["worker_pid"]) == (2, peer.pid)
    assert (letter["max_deliveries"], letter["priority"]) == (1, 7)
    assert letter["labels"] == {"queue": "mail"}
    assert (letter["args"], letter["kwargs"]) == (["x" * 500, [1, 2]], {"deep": {"a": None}})
    assert (letter["format"], letter["payload_base64"]) == ("json", None)
    done = call("dead", "show", "q", "vic")
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert facts["id"] == "victim"
    assert facts["task"] == "app:crash"
    assert facts["reason"] == "max-deliveries: its worker died"
    assert facts["attempts"] == "1 of 1"
    assert facts["worker"] == f"2 (pid {peer.pid})"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", facts["sent"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(.* ago\)", facts["died"])
    assert facts["labels"] == "queue='mail'"
    assert facts["arguments"].endswith("xxx', [1, 2], deep={'a': None}")
    assert len(facts["arguments"]) < 130
    assert "payload" not in facts


@pytest.mark.usefixtures("three")
def test_of_what_cannot_be_read_the_bytes_are_shown() -> None:
    shown = call("dead", "show", "q", "bb33").stdout
    assert "unparsable: ValueError: not JSON" in shown
    assert r"unknown: b'\xff garbage'" in shown
    [letter] = as_json("dead", "show", "q", "bb33")["dead"]
    assert (letter["format"], letter["args"]) == ("unknown", None)
    assert letter["payload_base64"] == "/yBnYXJiYWdl"


@pytest.mark.usefixtures("three")
def test_several_are_shown_in_the_order_they_are_named() -> None:
    shown = call("dead", "show", "q", "bb33", "aa1").stdout
    assert re.findall(r"^id +(\w+)$", shown, re.MULTILINE) == ["bb33", "aa11"]
    assert "\n\n" in shown


def test_a_large_message_is_read_like_a_small_one(queue: TaskQueue, bury: Bury) -> None:
    bury("large", message("app:big", "x" * 400_000))
    assert as_json("dead", "list", "q")["dead"][0]["task"] == "app:big"
    assert as_json("dead", "show", "q", "large")["dead"][0]["args"] == ["x" * 400_000]
    assert as_json("dead", "requeue", "q", "large")["requeued"] == ["large"]
    assert states(queue) == {"large": "READY"}


def test_one_whose_bytes_are_lost_is_not_hidden(queue: TaskQueue, bury: Bury) -> None:
    bury("large", message("app:big", "x" * 400_000))
    [file] = (path for path in (queue.directory / "files").iterdir() if path.is_file())
    file.unlink()
    [letter] = as_json("dead", "list", "q")["dead"]
    assert (letter["id"], letter["task"]) == ("large", None)
    assert call("dead", "show", "q", "large").exit_code == 0
    assert call("dead", "requeue", "q", "large").exit_code == 1
    assert as_json("dead", "drop", "q", "large")["dropped"] == ["large"]
    assert states(queue) == {}


def test_an_id_of_several_dead_letters_means_all_of_them(queue: TaskQueue, bury: Bury) -> None:
    bury("same")
    bury("same")
    assert as_json("dead", "drop", "q", "same") == {"dropped": ["same", "same"], "gone": []}
    assert states(queue) == {}


@pytest.mark.usefixtures("three")
def test_a_full_queue_says_how_far_it_came(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TaskQueue.requeue

    def requeue(queue: TaskQueue, ticket: Ticket) -> Ticket:
        if ticket.task_id == "bb33":
            raise QueueFull("no free slot")
        return original(queue, ticket)

    monkeypatch.setattr(TaskQueue, "requeue", requeue)
    done = call("dead", "requeue", "q", "--all")
    assert (done.exit_code, done.stdout) == (1, "")
    said = "taskiq-supervise: requeued 2 of 3 dead letters: no free slot\n"
    assert done.stderr == said
    assert states(queue) == {"aa11": "READY", "aa22": "READY", "bb33": "DEAD"}


@pytest.mark.usefixtures("three")
def test_one_that_goes_meanwhile_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    original = TaskQueue.drop

    def drop(queue: TaskQueue, ticket: Ticket) -> None:
        original(queue, ticket)  # somebody else, between the look and the deed
        original(queue, ticket)

    monkeypatch.setattr(TaskQueue, "drop", drop)
    done = call("dead", "drop", "q", "aa11")
    assert (done.exit_code, done.stdout) == (1, "dropped 0 dead letters\n")
    assert done.stderr == "taskiq-supervise: no longer there, or not readable: aa11\n"
    rest = as_json("dead", "drop", "q", "--all")
    assert rest == {"dropped": [], "gone": ["aa22", "bb33"]}


def test_control_characters_do_not_reach_the_terminal(bury: Bury) -> None:
    bury("id\x1b[31m", message("task\r\n[red]x"), detail="why\x07[/]")
    for arguments in (["list", "q"], ["show", "q", "id"]):
        shown = call("dead", *arguments).stdout
        assert r"id\x1b[31m" in shown
        assert r"task\r\n[red]x" in shown
        assert not set("\x1b\x07\r") & set(shown)
    assert as_json("dead", "list", "q")["dead"][0]["id"] == "id\x1b[31m"


def on_terminal(*arguments: str, columns: int) -> list[str]:
    terminal = Terminal(*arguments, columns=columns)
    assert terminal.end() == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.text).splitlines()


def test_on_a_terminal_ids_and_names_are_cut_so_that_they_still_serve(bury: Bury) -> None:
    long, name = "0123456789abcdef" * 2, "package.module." * 5 + "module:last_word"
    bury(long, message("app:one"))
    bury("f" * 32, message(name))
    lines = on_terminal("dead", "list", "q", columns=90)
    assert [len(line.rstrip()) <= 90 for line in lines] == [True] * 3
    assert [line.split()[1] for line in lines[1:]] == ["01234567", "f" * 8]
    assert re.search(r" \u2026\S*module:last_word  unknown-task ", lines[2])
    whole = call("dead", "list", "q").stdout
    assert long in whole
    assert name in whole
    assert as_json("dead", "drop", "q", "01234567")["dropped"] == [long]


def test_on_a_narrow_terminal_nothing_is_lost(bury: Bury) -> None:
    bury("0123456789abcdef" * 2, message("package.module:function_name"))
    _, line = on_terminal("dead", "list", "q", columns=40)
    assert line.split()[1:4] == ["01234567", "package.module:function_name", "unknown-task"]


def test_another_directory_can_be_named(
    open_queue: Callable[..., TaskQueue], tmp_path: Path
) -> None:
    queue = open_queue("other", directory=tmp_path)
    queue.put("x", message())
    lease = queue.claim()
    assert lease is not None
    lease.start()
    lease.dead_letter(DeadReason.UNKNOWN_TASK, "")
    assert call("dead", "list", "other").exit_code == 1
    found = as_json("dead", "list", "other", "--directory", str(tmp_path))["dead"]
    assert [letter["id"] for letter in found] == ["x"]
    assert {view.state for view in queue.messages()} == {MessageState.DEAD}
