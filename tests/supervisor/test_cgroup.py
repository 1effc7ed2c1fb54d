"""A service's control group is divided if, and only if, it is ours. On files that look like it.

Real groups are in tests/systemd.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskiq_supervise.supervisor.cgroup import Division, divide

OTHER = 1


class Groups:
    """What of /proc and /sys/fs/cgroup is looked at."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.mount = folder / "proc", folder / "mount"
        self.service = self.mount / "system.slice" / "x.service"
        self.proc.mkdir()
        self.service.mkdir(parents=True)
        self.delegated = {self.service}
        self.has(self.service, os.getpid())
        (self.service / "cgroup.controllers").write_text("cpu memory pids\n")

    def has(self, group: Path, *pids: int) -> None:
        """This process is in that group, with these."""
        group.mkdir(exist_ok=True)
        (group / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        path = group.relative_to(self.mount)
        (self.proc / "cgroup").write_text(f"1:memory:/elsewhere\n0::/{path}\n")

    def divide(self) -> Division | None:
        return divide(self.proc, self.mount)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    groups = Groups(tmp_path)

    def getxattr(path: Path, name: str) -> bytes:
        if path in groups.delegated and name == "user.delegate":
            return b"1"
        raise OSError

    monkeypatch.setattr(os, "getxattr", getxattr)
    return groups


def test_the_supervisor_goes_aside_and_workers_are_counted_apart(groups: Groups) -> None:
    division = groups.divide()
    assert division is not None
    aside = groups.service / "supervisor" / "cgroup.procs"
    assert aside.read_text() == str(os.getpid())
    assert (groups.service / "cgroup.subtree_control").read_text() == "+memory +pids"
    division.admit(4711)
    assert (groups.service / "workers" / "cgroup.procs").read_text() == "4711"
    assert division.oom_counter is None
    (division.workers / "memory.events").write_text("oom_kill 0\n")
    assert division.oom_counter == division.workers / "memory.events"


def test_what_is_not_delegated_is_left_alone(groups: Groups) -> None:
    groups.delegated.clear()
    assert groups.divide() is None
    assert not (groups.service / "workers").exists()


def test_a_service_in_a_delegated_slice_is_not_delegated_itself(groups: Groups) -> None:
    groups.delegated = {groups.service.parent}
    assert groups.divide() is None
    assert not (groups.service / "workers").exists()


def test_one_that_systemd_has_put_aside_already_divides_what_is_above(groups: Groups) -> None:
    groups.has(groups.service)
    groups.has(groups.service / "supervisor", os.getpid())
    division = groups.divide()
    assert division is not None
    assert division.folder == groups.service


@pytest.mark.parametrize("where", [".", "supervisor"])
def test_who_is_not_alone_there_divides_nothing(groups: Groups, where: str) -> None:
    """Another supervisor would take our workers for what its own have left behind."""
    groups.has(groups.service / where, OTHER, os.getpid())
    assert groups.divide() is None
    assert not (groups.service / "workers").exists()


def test_what_cannot_be_divided_is_no_reason_to_fail(
    groups: Groups, caplog: pytest.LogCaptureFixture
) -> None:
    (groups.service / "cgroup.controllers").unlink()
    assert groups.divide() is None
    assert "no control group of their own" in caplog.text


def test_without_cgroup_v2_there_is_nothing_to_divide(groups: Groups, tmp_path: Path) -> None:
    (groups.proc / "cgroup").write_text("1:memory:/system.slice/x.service\n")
    assert groups.divide() is None
    assert divide(tmp_path / "nothing", groups.mount) is None


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        # Its parent goes on a little before the kernel has given it its name.
        name = Path(f"/proc/{process.pid}/comm")
        while name.read_text() != "sleep\n":
            os.sched_yield()
        yield process
        process.kill()


def test_what_is_left_is_ended_and_named(groups: Groups, sleeper: subprocess.Popen[bytes]) -> None:
    division = groups.divide()
    assert division is not None
    (division.workers / "cgroup.procs").write_text("")
    assert division.end_workers() == []
    below = division.workers / "own"
    below.mkdir()
    (below / "cgroup.procs").write_text(f"{sleeper.pid}\n")
    # As before Linux 5.14.
    assert not (division.workers / "cgroup.kill").exists()
    assert division.end_workers() == [f"sleep ({sleeper.pid})"]
    assert sleeper.wait(10) == -signal.SIGKILL
    (division.workers / "cgroup.kill").touch()
    division.end_workers()
    assert (division.workers / "cgroup.kill").read_text() == "1"
