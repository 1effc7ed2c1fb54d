"""Several pools in one supervisor, from a configuration file, with real processes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.supervisor.commands import call

if TYPE_CHECKING:
    from tests.e2e.conftest import Supervisor

Start = Callable[..., "Supervisor"]

APPLICATION = "from taskiq_supervise import SharedMemoryBroker\nbroker = SharedMemoryBroker({!r})\n"
FILE = """
name = "shop"
workers = 1

[pools.fast]
app = "fast:broker"

[pools.slow]
app = "slow:broker"
graceful-timeout = 1
"""


@pytest.fixture(autouse=True)
def shop(workdir: Path) -> Path:
    (workdir / "taskiq-supervise.toml").write_text(FILE)
    for name in ("fast", "slow"):
        (workdir / f"{name}.py").write_text(APPLICATION.format(name))
    return workdir


def start_both(supervise: Start) -> "Supervisor":
    supervisor = supervise()
    for pool in ("fast", "slow"):
        supervisor.log.wait_for(rf"pool={pool} ready: \d")
    return supervisor


def pids(supervisor: "Supervisor") -> dict[str, list[int]]:
    """Of the workers in each pool."""
    found: dict[str, list[int]] = {pool["name"]: [] for pool in supervisor.status()["pools"]}
    for worker in supervisor.status()["workers"]:
        found[worker["pool"]].append(worker["pid"])
    return found


def test_each_pool_has_its_own_application_queue_and_workers(supervise: Start) -> None:
    supervisor = start_both(supervise)
    status = supervisor.status()
    assert status["name"] == "shop"
    assert [(pool["name"], pool["app"], pool["queue_name"]) for pool in status["pools"]] == [
        ("fast", "fast:broker", "fast"),
        ("slow", "slow:broker", "slow"),
    ]
    assert {name: len(found) for name, found in pids(supervisor).items()} == {"fast": 1, "slow": 1}
    assert supervisor.stop() == 0


def test_one_pool_is_scaled_and_the_other_stays(supervise: Start) -> None:
    supervisor = start_both(supervise)
    before = pids(supervisor)
    unsaid = call("scale", "2")
    assert (unsaid.exit_code, unsaid.stderr) == (
        1,
        "taskiq-supervise: say which pool: fast, slow\n",
    )
    done = call("scale", "+1", "--pool", "slow")
    assert done.output == "shop, pool slow: 1 -> 2 workers\n"
    supervisor.log.wait_for("pool=slow worker=1 .* ready")
    after = pids(supervisor)
    assert after["fast"] == before["fast"]
    assert len(after["slow"]) == 2
    assert supervisor.stop() == 0


def test_new_code_that_fails_in_one_pool_is_rolled_back_there(supervise: Start, shop: Path) -> None:
    supervisor = start_both(supervise)
    before = pids(supervisor)
    (shop / "slow.py").write_text("broken = code\n")
    done = call("reload", "--wait")
    assert done.exit_code == 1
    assert done.stderr.startswith("taskiq-supervise: shop, pool slow: not reloaded: ")
    assert "NameError: name 'code' is not defined" in done.stderr
    after = pids(supervisor)
    assert after["slow"] == before["slow"]
    assert not {*after["fast"]} & {*before["fast"]}
    assert supervisor.stop() == 0


def test_one_pool_is_reloaded_and_the_other_stays(supervise: Start) -> None:
    supervisor = start_both(supervise)
    before = pids(supervisor)
    done = call("reload", "shop", "--wait", "--pool", "fast")
    assert (done.exit_code, done.output) == (0, "shop: reloaded\n")
    after = pids(supervisor)
    assert after["slow"] == before["slow"]
    assert not {*after["fast"]} & {*before["fast"]}
    unknown = call("reload", "--pool", "quick")
    assert (unknown.exit_code, "no pool 'quick'" in unknown.stderr) == (1, True)
    assert supervisor.stop() == 0


def test_two_pools_whose_brokers_turn_out_to_share_a_queue_are_refused(
    supervise: Start, shop: Path
) -> None:
    (shop / "slow.py").write_text(APPLICATION.format("fast"))
    supervisor = supervise()
    assert supervisor.wait() == 4
    assert "queue 'fast'" in supervisor.log.wait_for_end()


def test_a_pool_that_cannot_start_takes_the_others_with_it(supervise: Start, shop: Path) -> None:
    (shop / "slow.py").write_text("broken = code\n")
    supervisor = supervise()
    assert supervisor.wait() == 3
    assert "NameError: name 'code' is not defined" in supervisor.log.wait_for_end()
