"""The configuration file: what it says, what goes before it, and what is wrong with it."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.supervisor.commands import call, plan

from taskiq_supervise.supervisor.commands.cli import cli
from taskiq_supervise.supervisor.commands.grouped_options import GroupedOption
from taskiq_supervise.supervisor.plan import PoolPlan, Watch

pytestmark = pytest.mark.usefixtures("workdir")

TWO_POOLS = """
name = "shop"
workers = 3
max-memory = "500M"

[pools.fast]
app = "shop.fast:broker"

[pools.slow]
app = "shop.slow:broker"
modules = ["shop.reports"]
workers = 1
max-memory = 0
"""


def write(text: str, path: str = "taskiq-supervise.toml") -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def pools(*arguments: str) -> Mapping[str, PoolPlan]:
    return {pool.name: pool for pool in plan(*arguments).pools}


def refused(*arguments: str) -> str:
    """The one line that it says."""
    done = call(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# --- what it says --------------------------------------------------------------------------------


def test_the_command_alone_starts_what_the_file_says() -> None:
    write(
        'app = "app:broker"\nmodules = ["app.tasks"]\nworkers = 4\nmax-lifetime = "12h"\npin = true'
    )
    (only,) = pools().values()
    assert (only.name, only.config.app, only.config.modules) == ("", "app:broker", ("app.tasks",))
    assert (only.settings.workers, only.settings.max_lifetime) == (4, 12 * 3600)
    assert only.config.pin
    assert plan().name == "app-broker"


def test_pyproject_has_a_table_of_its_own() -> None:
    write('[project]\nname = "x"\n[tool.taskiq-supervise]\napp = "app:broker"\n', "pyproject.toml")
    assert pools()[""].config.app == "app:broker"


def test_a_pyproject_without_the_table_is_not_ours() -> None:
    for text in ('[project]\nname = "x"\n', "[tool.ruff]\n", 'tool = "none"\n'):
        write(text, "pyproject.toml")
        assert pools("app:broker")[""].settings.workers == 2


def test_our_own_file_goes_before_pyproject() -> None:
    write('[tool.taskiq-supervise]\napp = "other:broker"\n', "pyproject.toml")
    write('app = "app:broker"\n')
    assert pools()[""].config.app == "app:broker"


def test_a_given_file_is_read_instead_and_its_folders_are_relative_to_it() -> None:
    write('app = "wrong:broker"\n')
    write(
        'app = "app:broker"\napp-dir = "src"\nreload = true\nreload-dir = ["src"]\n',
        "etc/other.toml",
    )
    Path("etc/src").mkdir()
    asked = plan("--config", "etc/other.toml")
    assert (asked.pools[0].config.app, asked.pools[0].config.app_dir) == ("app:broker", "etc/src")
    assert asked.watch == Watch((Path("etc/src").resolve(),), gitignore=True)


def test_a_given_pyproject_is_read_as_one() -> None:
    write('[tool.taskiq-supervise]\napp = "app:broker"\n', "etc/pyproject.toml")
    assert pools("--config", "etc/pyproject.toml")[""].config.app == "app:broker"


def test_a_pool_has_what_stands_above_unless_it_says_otherwise() -> None:
    write(TWO_POOLS)
    asked = plan()
    fast, slow = asked.pools
    assert asked.name == fast.config.instance == slow.config.instance == "shop"
    assert (fast.name, fast.config.app, fast.config.modules) == ("fast", "shop.fast:broker", ())
    assert (slow.config.app, slow.config.modules) == ("shop.slow:broker", ("shop.reports",))
    assert (fast.settings.workers, slow.settings.workers) == (3, 1)
    assert (fast.settings.max_memory, slow.settings.max_memory) == (500 << 20, None)


def test_pools_without_a_name_for_the_instance_are_named_after_their_folder() -> None:
    file = write('[pools.a]\napp = "a:broker"\n[pools.b]\napp = "b:broker"\n', "my shop/x.toml")
    assert plan("--config", str(file)).name == "my-shop"


def test_the_same_application_in_two_folders_is_two_applications() -> None:
    for name in ("one", "two"):
        Path(name).mkdir()
    write("".join(f'[pools.{n}]\napp = "app:broker"\napp-dir = "{n}"\n' for n in ("one", "two")))
    assert set(pools()) == {"one", "two"}


def test_every_option_can_stand_in_the_file_under_each_of_its_names() -> None:
    """Whatever its type is: by the value that it has anyway."""
    not_there = {"config", "no_config", "check_config", "max_fails"}
    options = [param for param in cli.commands["run"].params if isinstance(param, GroupedOption)]
    assert {option.name for option in options if not option.may_stand(in_pool=False)} == not_there
    examples = {
        "workers": "2", "min_workers": "2", "max_workers": "2", "name": '"x"', "app_dir": '"."',
        "max_threadpool_threads": "1", "max_process_pool_processes": "1", "log_level": '"INFO"',
        "log_style": '"text"', "http": '"127.0.0.1:9808"',
    }  # fmt: skip
    for option, key in itertools.chain.from_iterable(
        ((option, key) for key in option.keys) for option in options if option.name not in not_there
    ):
        value = examples.get(option.name or "", "false" if option.is_flag else None)
        if value is None:
            value = "[]" if option.multiple else repr(option.default)
        write(f"{key} = {value}\n" + ("workers = 2" if key == "min-workers" else ""))
        assert plan("app:broker").pools, key


# --- what goes before it -------------------------------------------------------------------------


def test_flags_go_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write('app = "app:broker"\nworkers = 3\nmax-deliveries = 7\nname = "file"\nno-preload = true\n')
    monkeypatch.setenv("TASKIQ_SUPERVISE_WORKERS", "4")
    monkeypatch.setenv("TASKIQ_SUPERVISE_NAME", "environment")
    monkeypatch.setenv("TASKIQ_SUPERVISE_NO_PRELOAD", "0")
    asked = plan("--name", "flag")
    (only,) = asked.pools
    assert (asked.name, only.settings.workers, only.max_deliveries) == ("flag", 4, 7)
    assert only.config.preload
    assert pools("-w5")[""].settings.workers == 5


def test_a_pool_says_for_itself_whether_one_process_listens_for_all_of_it() -> None:
    write(
        "[pools.one]\napp = 'one:broker'\nsingle-listener = false\n"
        "[pools.two]\napp = 'two:broker'\nsingle-listener = true\ntransport = 'zmq'\n"
        "[pools.three]\napp = 'three:broker'\n"
    )
    configs = [asked.config for asked in pools().values()]
    assert [(one.pool, one.single_listener, one.transport) for one in configs] == [
        ("one", False, "shm"),
        ("two", True, "zmq"),
        ("three", None, "shm"),
    ]


def test_flags_count_for_every_pool() -> None:
    write(TWO_POOLS)
    asked = pools("-w", "6", "--task-timeout", "9")
    assert {pool.settings.workers for pool in asked.values()} == {6}
    assert {pool.config.task_timeout for pool in asked.values()} == {9}
    assert pools("--max-memory", "1G")["slow"].settings.max_memory == 1 << 30


def test_an_application_goes_before_the_files_and_its_options_stay() -> None:
    write('app = "app:broker"\nmodules = ["app.tasks"]\nworkers = 3\n')
    (only,) = pools("other:broker").values()
    assert (only.config.app, only.config.modules) == ("other:broker", ("app.tasks",))
    assert only.settings.workers == 3
    assert pools("other:broker", "mine")[""].config.modules == ("mine",)


def test_an_application_beside_pools_is_refused_unless_the_file_is_left_out() -> None:
    write(TWO_POOLS)
    done = call("app:broker")
    assert done.exit_code == 2
    assert "has pools (fast, slow): leave app:broker out" in done.stderr
    assert set(pools("app:broker", "--no-config")) == {""}


def test_the_environment_can_name_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write('app = "app:broker"\n', "other.toml")
    monkeypatch.setenv("TASKIQ_SUPERVISE_CONFIG", "other.toml")
    assert pools()[""].config.app == "app:broker"


# --- what is wrong with it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wrokers = 2", "wrokers: unknown key; did you mean workers?"),
        ("max_memory = 1", "max_memory: unknown key; did you mean max-memory?"),
        ("MAX-MEMORY = 1", "MAX-MEMORY: unknown key; did you mean max-memory?"),
        ("bananas = 1", "bananas: unknown key\n"),
        ("config = 'x'", "config: unknown key"),
        ("[pool.fast]", "pool: unknown key; did you mean pools?"),
        ("[pools.fast]\nmax-memry = 1", "pools.fast.max-memry: unknown key; did you mean max-mem"),
        ("[pools.fast]\nname = 'x'", "pools.fast.name: is for all pools"),
        ("[pools.fast]\nhardkill-count = 2", "pools.fast.hardkill-count: is for all pools"),
        ("[pools.fast.slow]\nworkers = 1", "pools.fast.slow: unknown key"),
        ("[pools.'a b']\napp = 'a:b'", "pools.a b: the name of a pool has letters"),
        ("pools = 3", "pools: is not a table"),
        ("pools.fast = 3", "pools.fast: is not a table"),
        ("workers = '2'", "workers: '2' is not a whole number"),
        ("workers = true", "workers: true is not a whole number"),
        ("workers = 2.5", "workers: 2.5 is not a whole number"),
        ("workers = {}", "workers: a table is not a whole number"),
        ("workers = [2]", "workers: an array is not a whole number"),
        ("workers = 0", "workers: 0 is not in the range 1<=x<=500\n"),
        ("no-preload = 1", "no-preload: 1 is not true or false"),
        ("name = 3", "name: 3 is not a string"),
        ("name = 'a/b'", "name: 'a/b' cannot be the name"),
        ("max-memory = 'much'", "max-memory: 'much' is neither bytes nor"),
        ("max-memory = 1.5", "max-memory: 1.5 is not a size"),
        ("max-lifetime = true", "max-lifetime: true is not a duration"),
        ("max-lifetime = nan", "max-lifetime: nan is not a finite number"),
        ("recycle-jitter = '1'", "recycle-jitter: '1' is not a number"),
        ("hang-warn = 1979-05-27", "hang-warn: 1979-05-27 (a date or time) is not a duration"),
        ("modules = 'app.tasks'", "modules: 'app.tasks' is not an array; write [a string, "),
        ("modules = [1]", "modules: 1 is not a string"),
        ("receiver-arg = ['x']", "receiver-arg: 'x' is not written as key=value"),
        ("ack-type = 'never'", "ack-type: 'never' is not one of"),
        ("app = 'app'", "app: 'app' is no application"),
        ("app-dir = 'nowhere'", "app-dir: Directory 'nowhere' does not exist"),
        ("graceful-timeout = 1\nwait-tasks-timeout = 1", "means the same as graceful-timeout"),
        ("workers = ", "is not TOML: "),
        ("[pools.a]\n[pools.a]", "is not TOML: "),
        ("a = " + "[" * 5000, "is not TOML: "),
    ],
    ids=lambda case: case[:30],
)
def test_a_mistake_is_one_line_with_the_file_and_the_key(text: str, said: str) -> None:
    write(text)
    line = refused("app:broker")
    assert line.startswith("taskiq-supervise: taskiq-supervise.toml: ")
    assert said in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[pools.a]\nworkers = 1", "pool a: say which application to run"),
        ("[pools.a]\napp = 'a:b'\n[pools.b]\napp = 'a:b'", "pools a and b both run a:b"),
        ("app = 'a:b'\n[pools.a]\n[pools.b]", "pools a and b both run a:b"),
        (
            "[pools.a]\napp = 'a:b'\nmin-workers = 4\nmax-workers = 2",
            "pool a: min-workers is 4, more than max-workers, 2",
        ),
        ("workers = 4", "say which application to run"),
    ],
    ids=lambda case: case[:30],
)
def test_what_does_not_fit_together_is_wrong_usage(text: str, said: str) -> None:
    write(text)
    done = call("--log-level", "INFO")
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_mistake_in_pyproject_names_the_whole_key() -> None:
    write("[tool.taskiq-supervise.pools.fast]\nworker = 2\n", "pyproject.toml")
    assert "pyproject.toml: tool.taskiq-supervise.pools.fast.worker: unknown key" in refused("-w2")
    write("[tool]\ntaskiq-supervise = 3\n", "pyproject.toml")
    assert "pyproject.toml: tool.taskiq-supervise: is not a table" in refused("-w2")


def test_a_given_file_without_the_table_or_that_is_no_text_is_said() -> None:
    write("[project]\n", "etc/pyproject.toml")
    assert "no [tool.taskiq-supervise]" in refused("--config", "etc/pyproject.toml")
    Path("latin.toml").write_bytes(b'name = "\xfc"\n')
    assert "latin.toml: is not UTF-8" in refused("--config", "latin.toml")
    Path("taskiq-supervise.toml").mkdir()
    assert "cannot be read: Is a directory" in refused("app:broker")


KEYS = sorted(
    key
    for parameter in cli.commands["run"].params
    if isinstance(parameter, GroupedOption)
    for key in parameter.keys
)
# JSON's scalars are TOML's too.
VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(["", "1", "10s", "500M", "json", "/", "a:b", "%(x)s", "\u2028", "k=v"]),
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8),
    ),
    lambda values: st.lists(values, max_size=3),
    max_leaves=4,
)
TABLES = st.dictionaries(st.sampled_from([*KEYS, "app", "modules"]), VALUES, max_size=4)


@given(top=TABLES, pools=st.dictionaries(st.sampled_from("abc"), TABLES, max_size=2))
def test_whatever_a_file_says_is_a_plan_or_wrong_usage(
    top: Mapping[str, Any], pools: Mapping[str, Mapping[str, Any]]
) -> None:
    tables = [top, *pools.values()]
    heads = ["", *(f"[pools.{name}]\n" for name in pools)]
    write(
        "".join(
            head
            + "".join(
                f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in table.items()
            )
            for head, table in zip(heads, tables, strict=True)
        )
    )
    done = call("--check-config")
    assert done.exit_code in {0, 2}, done.exception
    assert isinstance(done.exception, SystemExit | None)
    assert "is not TOML" not in done.stderr


# --- looking before starting ---------------------------------------------------------------------


def test_a_check_says_what_would_be_started_and_starts_nothing() -> None:
    write(TWO_POOLS + "max-workers = 4\n")
    done = call("--check-config")
    assert (done.exit_code, done.stdout.splitlines()) == (
        0,
        [
            "instance shop",
            "pool fast: shop.fast:broker, 3 workers",
            "pool slow: shop.slow:broker, 1 worker, 1 to 4",
        ],
    )
    write("workers = 0")
    assert "workers: 0 is not in the range" in refused("app:broker", "--check-config")
