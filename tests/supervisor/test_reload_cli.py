"""`reload` and `scale` as somebody types them; what they lead to is tested end to end."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from click.testing import Result
from tests.supervisor.answering import serving
from tests.supervisor.commands import call

from taskiq_supervise.supervisor.control import Command, CommandError
from taskiq_supervise.supervisor.runtime import Instance

TAKEN_OVER: dict[str, Any] = {"ok": True, "message": None, "pools": []}
TRACEBACK = "Traceback (most recent call last):\n  ...\nNameError: name 'x' is not defined\n"
STAYED: dict[str, Any] = {
    "ok": False,
    "message": "app.py raised NameError",
    "pools": [
        {"name": "fast", "ok": True, "message": None, "traceback": None},
        {
            "name": "slow",
            "ok": False,
            "message": "app.py raised NameError",
            "traceback": TRACEBACK,
        },
    ],
}


class Asked:
    """Answers to `reload` and `scale`, and remembers the requests."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self.requests: list[Mapping[str, Any]] = []
        self._answer = answer

    @property
    def commands(self) -> Mapping[str, Command]:
        return {
            "status": lambda _: {"name": "one"},
            "reload": self._note,
            "scale": self._note,
        }

    def _note(self, request: Mapping[str, Any]) -> Any:
        self.requests.append(request)
        return self._answer


async def type_in(*arguments: str) -> Result:
    return await asyncio.to_thread(call, *arguments)


async def test_a_reload_is_asked_for_and_not_waited_for() -> None:
    asked = Asked({"ok": None, "message": None, "pools": []})
    async with serving(asked.commands):
        done = await type_in("reload")
        assert (done.exit_code, done.output) == (0, "one: reloading\n")
        await type_in("reload", "one", "--pool", "fast")
    assert asked.requests == [
        {"command": "reload", "wait": False, "pool": None},
        {"command": "reload", "wait": False, "pool": "fast"},
    ]


async def test_a_reload_that_is_waited_for_says_that_the_new_workers_are_there() -> None:
    asked = Asked(TAKEN_OVER)
    async with serving(asked.commands):
        done = await type_in("reload", "--wait")
        assert (done.exit_code, done.output) == (0, "one: reloaded\n")
        done = await type_in("reload", "one", "--wait", "--json")
        assert (done.exit_code, json.loads(done.stdout)) == (0, TAKEN_OVER)
    assert all(request["wait"] for request in asked.requests)


async def test_a_reload_that_was_rolled_back_is_status_1_and_says_what_broke() -> None:
    async with serving(Asked(STAYED).commands):
        done = await type_in("reload", "--wait")
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == (
            f"taskiq-supervise: one, pool slow: not reloaded: app.py raised NameError\n{TRACEBACK}"
        )
        done = await type_in("reload", "--wait", "--json")
        assert (done.exit_code, json.loads(done.stdout)) == (1, STAYED)
        assert "NameError" in done.stderr


async def test_a_failure_that_no_pool_explains_is_told_all_the_same() -> None:
    async with serving(Asked({"ok": False, "message": "it is stopping", "pools": []}).commands):
        done = await type_in("reload", "--wait")
    assert (done.exit_code, done.stderr) == (
        1,
        "taskiq-supervise: one: not reloaded: it is stopping\n",
    )


@pytest.mark.parametrize(
    ("number", "request_"),
    [("4", {"workers": 4}), ("+1", {"by": 1}), ("-2", {"by": -2}), ("-12", {"by": -12})],
)
async def test_the_number_of_workers_is_said_or_changed(
    number: str, request_: Mapping[str, int]
) -> None:
    asked = Asked({"pool": "", "before": 2, "workers": 4})
    async with serving(asked.commands):
        done = await type_in("scale", number)
        assert (done.exit_code, done.output) == (0, "one: 2 -> 4 workers\n")
        done = await type_in("scale", "--pool", "fast", number, "one", "--json")
        assert json.loads(done.stdout) == {"pool": "", "before": 2, "workers": 4}
    assert asked.requests == [
        {"command": "scale", **request_, "pool": None},
        {"command": "scale", **request_, "pool": "fast"},
    ]


async def test_a_pool_with_a_name_is_named_in_the_answer() -> None:
    async with serving(Asked({"pool": "fast", "before": 2, "workers": 1}).commands):
        done = await type_in("scale", "1", "--pool", "fast")
    assert done.output == "one, pool fast: 2 -> 1 workers\n"


def refuse(_request: Mapping[str, Any]) -> Any:
    raise CommandError("say which pool: fast, slow")


async def test_a_refusal_is_status_1_in_the_supervisors_words() -> None:
    async with serving({"status": lambda _: {"name": "one"}, "scale": refuse, "reload": refuse}):
        for arguments in (("scale", "4"), ("reload",), ("reload", "--wait", "one")):
            done = await type_in(*arguments)
            assert (done.exit_code, done.stdout) == (1, "")
            assert done.stderr == "taskiq-supervise: say which pool: fast, slow\n"


async def test_where_several_run_one_has_to_be_named() -> None:
    first, second = Asked(TAKEN_OVER), Asked(TAKEN_OVER)
    named = {**second.commands, "status": lambda _: {"name": "two"}}
    async with serving(first.commands), serving(named, name="two"):
        done = await type_in("reload")
        assert done.exit_code == 2
        assert "say which instance; running: one, two" in done.stderr
        assert (await type_in("reload", "two", "--wait")).exit_code == 0
    assert (len(first.requests), len(second.requests)) == (0, 1)


def test_where_nothing_runs_is_status_3() -> None:
    dead = Instance.claim("dead")
    dead.listen().close()
    for arguments in (("reload",), ("scale", "2"), ("reload", "dead"), ("scale", "-1", "nobody")):
        done = call(*arguments)
        assert (done.exit_code, done.stdout) == (3, "")
        assert "running (looked in " in done.stderr
    dead.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("scale",), "'N'"),
        (("scale", "many"), "'many' is neither a number of workers nor a change"),
        (("scale", "--bogus"), "'--bogus' is neither"),
        (("scale", "1.5"), "'1.5' is neither"),
        (("scale", "2", "../x"), "'../x'"),
        (("reload", "../x"), "'../x'"),
        (("reload", "--pool"), "--pool"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...], said: str) -> None:
    done = call(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr
