"""A machine with a real systemd as its first process, booted in half a second and thrown away.

It is the machine that the tests run on, in namespaces of its own: what is written goes to memory;
`/run`, `/tmp`, `/dev/shm`, `/etc/systemd/system`, the network and the control groups are empty and
its own. Killing its first process ends everything in it, and nothing stays but what `end` removes.

`python -m tests.systemd.box [COMMAND …]` boots one, runs a command in it (a shell), and ends it.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

BOOT_SECONDS = 30.0
COMMAND_SECONDS = 60.0
_SYSTEMD = (Path("/usr/lib/systemd/systemd"), Path("/lib/systemd/systemd"))
_PROGRAMS = ("systemctl", "journalctl", "unshare", "nsenter", "setpriv", "mount", "pivot_root")
_PREFIX = "taskiq-supervise-box-"
_NAMESPACES = ("--pid", "--mount", "--cgroup", "--ipc", "--uts", "--net")
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "HOME": "/root",
    "SYSTEMD_PAGER": "",
    "SYSTEMD_COLORS": "0",
}


class NoBox(Exception):
    """This machine cannot boot one; the message says why."""


class Box:
    """Up from the start of its existence. `end` has to be called."""

    def __init__(self, shown: Mapping[Path, str]) -> None:
        """shown: folders, and where they are seen in it, read-only. Raises NoBox."""
        systemd = _systemd()
        self.group = _control_group()
        """The root of its control groups, seen from outside."""
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        """What it needs outside of itself."""
        self._environment = dict(_ENVIRONMENT)
        self._machine: subprocess.Popen[bytes] | None = None
        try:
            self.pid = self._boot(systemd, shown)
        except BaseException:
            self.end()
            raise
        self.root = Path(f"/proc/{self.pid}/root")
        """Its files, seen from outside. Absolute symbolic links lead astray."""

    # --- life ------------------------------------------------------------------------------------

    def _boot(self, systemd: Path, shown: Mapping[Path, str]) -> int:
        for name in ("root", "memory"):
            (self.folder / name).mkdir()
        lines = [f"{source}\t{target}\n" for source, target in shown.items()]
        (self.folder / "shown").write_text("".join(lines))
        console = self.folder / "console"
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as up,
            console.open("wb") as output,
        ):
            up.bind(str(self.folder / "notify"))
            boot = Path(__file__).with_name("boot.sh")
            self._machine = subprocess.Popen(
                # Into the group first: the new cgroup namespace has it as its root.
                # It ends with us, even if we are killed.
                [
                    *("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', self.group),
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("unshare", "--fork", "--kill-child", *_NAMESPACES, "--"),
                    *("sh", boot, self.folder, systemd),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            is_up = self._is_up(up, self._machine)
        if is_up:
            return psutil.Process(self._machine.pid).children()[0].pid
        said = console.read_text(errors="replace").strip()
        if self._machine.poll() is None:
            raise AssertionError(f"no running system after {BOOT_SECONDS:.0f} s: {said}")
        raise NoBox(f"the namespaces or mounts cannot be made: {said or 'nothing was said'}")

    @staticmethod
    def _is_up(up: socket.socket, machine: "subprocess.Popen[bytes]") -> bool:
        """systemd says READY=1 when all of its first jobs are done."""
        deadline = time.monotonic() + BOOT_SECONDS
        gone = os.pidfd_open(machine.pid)
        try:
            while (left := deadline - time.monotonic()) > 0:
                readable, _, _ = select.select([up.fileno(), gone], [], [], left)
                if up.fileno() in readable:
                    if b"READY=1" in up.recv(65536).split(b"\n"):
                        return True
                elif gone in readable:
                    return False
        finally:
            os.close(gone)
        return False

    def end(self) -> None:
        """Raises OSError when a process outlived it."""
        if self._machine is not None:
            if self._machine.poll() is None:
                for process in psutil.Process(self._machine.pid).children():
                    process.kill()  # the first of a pid namespace: all others go with it
            try:
                self._machine.wait(10)
            finally:
                self._machine.kill()
                self._machine.wait()
                self._machine = None
        _remove_empty(self.group)
        shutil.rmtree(self.folder)

    # --- what is done in it ----------------------------------------------------------------------

    def start(
        self,
        *command: object,
        user: str | None = None,
        folder: str = "/",
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> "subprocess.Popen[str]":
        """A process in it, as if from a shell there. It ends with the one that is returned."""
        who = ["--reuid", user, "--regid", user, "--init-groups"] if user else []
        variables = {**self._environment, **(environment or {})}
        return subprocess.Popen(
            [
                # A process does not come into the box's control groups by itself.
                *(
                    "sh",
                    "-c",
                    'echo $$ > "$0/cgroup.procs" && exec "$@"',
                    self.group / "init.scope",
                ),
                *("nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-C", "--"),
                *("env", "-i", "-C", folder, *(f"{key}={text}" for key, text in variables.items())),
                *("setpriv", "--pdeathsig", "KILL", *who),
                *map(str, command),
            ],
            text=True,
            **options,
        )

    def run(
        self,
        *command: object,
        check: bool = True,
        said: str | None = None,
        **options: Any,
    ) -> "subprocess.CompletedProcess[str]":
        """A command in it, with what it said. said: what it reads. Raises AssertionError."""
        process = self.start(
            *command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )
        try:
            output, errors = process.communicate(said, COMMAND_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        done = subprocess.CompletedProcess(
            list(map(str, command)), process.returncode, output, errors
        )
        if check and done.returncode != 0:
            line = " ".join(done.args)
            raise AssertionError(f"{line}: exit status {done.returncode}\n{output}{errors}")
        return done

    def setenv(self, name: str, value: str) -> None:
        """For services, and for what is started here."""
        self.run("systemctl", "set-environment", f"{name}={value}")
        self._environment[name] = value

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file, and the folders above it."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def at(self, path: str) -> Path:
        """The same file, from outside."""
        return self.root / path.lstrip("/")


def _systemd() -> Path:
    if sys.platform != "linux" or os.geteuid() != 0:
        raise NoBox("only root may boot a machine")
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        raise NoBox(f"not installed: {', '.join(missing)}")
    found = next((path for path in _SYSTEMD if path.exists()), None)
    if found is None:
        raise NoBox(f"systemd is not installed ({_SYSTEMD[0]})")
    return found


def _control_group() -> Path:
    """A new one."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found = [line.split()[4] for line in mounts if line.partition(" - ")[2].startswith("cgroup2 ")]
    if not found:
        raise NoBox("no cgroup2 is mounted")
    for place in (found[0], tempfile.gettempdir()):
        _sweep(Path(place))
    try:
        group = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=found[0]))
    except OSError as error:
        raise NoBox(f"no control group can be made: {error}") from None
    group.chmod(0o755)  # it is the root of all groups in there
    return group


def _sweep(place: Path) -> None:
    """What is left of a box whose owner was killed: nothing runs in it any more."""
    for left in place.glob(f"{_PREFIX}*-*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            with suppress(FileNotFoundError):  # somebody else does the same
                if (left / "cgroup.procs").exists():
                    _remove_empty(left)
                else:
                    shutil.rmtree(left)


def _remove_empty(group: Path) -> None:
    """A control group with those below it. Raises OSError where a process is left."""
    for folder in sorted(group.glob("**/"), reverse=True):
        folder.rmdir()


@contextmanager
def boot(shown: Mapping[Path, str]) -> Iterator[Box]:
    """shown: as for Box."""
    box = Box(shown)
    try:
        yield box
    finally:
        box.end()


def main() -> int:
    from tests.systemd.installation import SHOWN, install

    with boot(SHOWN) as box:
        install(box)
        shell = box.start(*(sys.argv[1:] or ["bash"]))
        # Ctrl-C is meant for what runs there.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return shell.wait()


if __name__ == "__main__":
    sys.exit(main())
