"""The machines that the tests boot: real, apart from this one, and gone afterwards."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.systemd.box import Box, NoBox, boot

NAMESPACES = ("pid", "mnt", "net", "cgroup", "ipc", "uts")
BOOT = """
import sys
from tests.systemd.box import boot
with boot({}) as box:
    print(box.pid, box.group, box.folder, flush=True)
    sys.stdin.read()
"""


def processes(box_pid: int) -> list[psutil.Process]:
    first = psutil.Process(box_pid)
    return [first, *first.children(recursive=True)]


def runs(process: psutil.Process) -> bool:
    """A zombie does not: it waits for the first process of the machine that the tests run on."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_systemd_runs_it_and_nothing_has_failed(box: Box) -> None:
    assert box.run("systemctl", "is-system-running").stdout == "running\n"
    assert box.run("cat", "/proc/1/comm").stdout == "systemd\n"


def test_it_is_apart_from_this_machine(box: Box) -> None:
    links = [f"/proc/self/ns/{kind}" for kind in NAMESPACES]
    ours = {os.readlink(link) for link in links}  # noqa: PTH115 - "pid:[123]"
    assert not ours & set(box.run("readlink", *links).stdout.split())
    box.write("/etc/from-the-box", "here")
    assert box.run("cat", "/etc/from-the-box").stdout == "here"
    assert not Path("/etc/from-the-box").exists()
    setting = "/proc/sys/kernel/panic"
    assert box.run("sh", "-c", f"cat {setting} > {setting}", check=False).returncode != 0


def test_a_command_that_fails_says_what_it_said(box: Box) -> None:
    with pytest.raises(AssertionError, match=r"(?s)ls /nowhere: exit status 2.*No such file"):
        box.run("ls", "/nowhere")


@pytest.mark.usefixtures("box")
def test_nothing_is_left_of_it() -> None:
    with boot({}) as machine:
        machine.run("systemd-run", "--quiet", "-pType=exec", "sleep", "inf")
        inside = processes(machine.pid)
        assert "sleep" in {process.name() for process in inside}
        assert machine.folder.exists()
    assert not any(map(runs, inside))
    assert not machine.group.exists()
    assert not machine.folder.exists()
    assert str(machine.folder) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.usefixtures("box")
def test_it_ends_with_who_has_booted_it() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", BOOT],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        pid, group, folder = owner.stdout.readline().split()
        inside = processes(int(pid))
        first = os.pidfd_open(int(pid))
        try:
            owner.send_signal(signal.SIGKILL)
            assert select.select([first], [], [], 30)[0]
        finally:
            os.close(first)
    assert not any(map(runs, inside))
    # Empty folders have nobody who could remove them, but for the next one.
    with boot({}):
        assert not Path(group).exists()
        assert not Path(folder).exists()


def test_who_cannot_boot_one_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as as_other:
        as_other.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(NoBox, match="only root"):
            boot({}).__enter__()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(NoBox, match="not installed: systemctl"):
        boot({}).__enter__()


@pytest.mark.usefixtures("box")
def test_what_the_kernel_refuses_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(NoBox, match="nowhere"):
        boot({tmp_path / "nowhere": "/opt/nowhere"}).__enter__()
