"""An instance of the template in a box: what an administrator does to it, and what systemd says."""

import json
import os
import re
import select
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.systemd.box import Box
from tests.systemd.installation import COMMAND, PYTHON

ACCOUNT = "taskiq-supervise"
HERE = Path(__file__).parent
# Nothing here takes two seconds on an idle machine; the machine may be busy.
PATIENCE = 60.0


class Lines:
    """What a process says, line by line. It ends when this is closed."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self._process = process
        self._pipe = process.stdout.fileno()
        self._rest = b""

    def next(self, *, timeout: float = PATIENCE) -> str:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._pipe], [], [], left)[0]:
                raise AssertionError(f"nothing more was said in {timeout:.0f} s")
            said = os.read(self._pipe, 65536)
            if not said:
                raise AssertionError(f"it ended: {self._rest.decode()}")
            self._rest += said
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def forget(self) -> None:
        """What was said until now."""
        while select.select([self._pipe], [], [], 0)[0] and (said := os.read(self._pipe, 65536)):
            self._rest += said
        self._rest = self._rest.rpartition(b"\n")[2]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class Journal:
    """Entries of a unit, from when this was opened; each is waited for."""

    def __init__(self, box: Box, unit: str) -> None:
        box.run("journalctl", "--sync")
        last = box.run("journalctl", "-q", "-n1", "-ojson").stdout
        after = ["--after-cursor", json.loads(last)["__CURSOR"]]
        self.entries: list[dict[str, Any]] = []
        self._lines = Lines(
            box.start(
                *("journalctl", "-q", "-f", "-ojson", "--all", "-u", unit, *after),
                stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
            )
        )

    def wait_for(self, pattern: str) -> dict[str, Any]:
        """The next entry whose message matches."""
        while True:
            try:
                entry = json.loads(self._lines.next())
            except AssertionError:
                said = "\n".join(str(one.get("MESSAGE")) for one in self.entries)
                raise AssertionError(f"no entry matches {pattern!r}:\n{said}") from None
            self.entries.append(entry)
            if re.search(pattern, str(entry.get("MESSAGE"))):
                return dict(entry)

    def close(self) -> None:
        self._lines.close()


class Flood:
    """A client that sends without a pause."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._lines = Lines(process)

    def goes_on(self) -> None:
        """Waits for 100 results from now on: more than it has under way at once."""
        self._lines.forget()
        for _ in range(3):
            assert self._lines.next() == "+"

    def end(self) -> dict[str, Any]:
        """What became of what was sent."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        while (line := self._lines.next()) == "+":
            pass
        self._process.wait(PATIENCE)
        outcome: dict[str, Any] = json.loads(line)
        return outcome

    def close(self) -> None:
        self._lines.close()


class Pipe:
    """A FIFO of the service's, held open, so that nobody waits for the other end."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        path.chmod(0o666)
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._text = ""

    def read_line(self) -> str:
        deadline = time.monotonic() + PATIENCE
        while "\n" not in self._text:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self._descriptor], [], [], left)[0]:
                raise AssertionError(f"nothing came in {PATIENCE:.0f} s")
            self._text += os.read(self._descriptor, 4096).decode()
        line, _, self._text = self._text.partition("\n")
        return line

    def write(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def close(self) -> None:
        os.close(self._descriptor)


class Service:
    """The instance `name` of `taskiq-supervise@.service`, or another unit of an instance."""

    def __init__(self, box: Box, name: str, unit: str | None = None) -> None:
        self.box = box
        self.name = name
        self.unit = unit or f"taskiq-supervise@{name}.service"
        self.folder = f"/srv/{name}"
        self.queues = f"/run/taskiq-supervise/{name}/queues"
        self.account = ACCOUNT

    # --- what it consists of ---------------------------------------------------------------------

    def configure(self, **values: object) -> None:
        """Its application, and the file that says how to run it."""
        self.code()
        values = {"app": "app:broker", "app-dir": self.folder, "workers": 2, **values}
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in values.items()]
        self.box.write(f"/etc/taskiq-supervise/{self.name}.toml", "".join(lines))

    def code(self, more: str = "") -> None:
        """more: what stands below the rest of it."""
        self.box.write(f"{self.folder}/app.py", (HERE / "shop.py").read_text() + more)

    def drop_in(self, **settings: str) -> None:
        lines = "".join(f"{name}={value}\n" for name, value in settings.items())
        self.drop_in_text(f"[Service]\n{lines}")

    def drop_in_text(self, text: str) -> None:
        self.box.write(f"/etc/systemd/system/{self.unit}.d/test.conf", text)
        self.box.run("systemctl", "daemon-reload")

    # --- what is done to it ----------------------------------------------------------------------

    def begin(self, verb: str) -> "subprocess.Popen[str]":
        """The same, not waited for."""
        return self.box.start("systemctl", verb, self.unit)

    def systemctl(self, verb: str, *options: str, check: bool = True) -> str:
        """What it said."""
        done = self.box.run("systemctl", *options, verb, self.unit, check=check)
        return done.stdout + done.stderr

    def start(self) -> "Service":
        self.systemctl("start")
        return self

    def kill(self, pid: int, signal: str) -> None:
        self.box.run("kill", f"-{signal}", pid)

    def end(self) -> None:
        """At once, and without another start."""
        self.systemctl("stop", "--no-block", check=False)
        self.box.run("systemctl", "kill", "--signal=KILL", self.unit, check=False)
        self.systemctl("stop", check=False)

    # --- what is known of it ---------------------------------------------------------------------

    def show(self, *names: str) -> dict[str, str]:
        said = self.box.run("systemctl", "show", self.unit, *(f"-p{name}" for name in names)).stdout
        return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)

    @property
    def state(self) -> str:
        return self.show("ActiveState")["ActiveState"]

    @property
    def status_text(self) -> str:
        return self.show("StatusText")["StatusText"]

    @property
    def main_pid(self) -> int:
        return int(self.show("MainPID")["MainPID"])

    def status(self) -> dict[str, Any]:
        """What `taskiq-supervise status` says of it, from a shell of root's."""
        said = self.box.run(COMMAND, "status", "--json", self.name).stdout
        (instance,) = json.loads(said)["instances"]
        return dict(instance)

    def worker_pids(self) -> set[int]:
        return {worker["pid"] for worker in self.status()["workers"]}

    def groups(self) -> dict[str, set[int]]:
        """Its control groups, and who is in each; seen from outside of it."""
        top = self.box.at("/sys/fs/cgroup") / self.show("ControlGroup")["ControlGroup"].lstrip("/")
        found = {}
        for folder in top.glob("**/"):
            said = self.box.run("cat", f"/{folder.relative_to(self.box.root)}/cgroup.procs").stdout
            found[str(folder.relative_to(top))] = {int(line) for line in said.split()}
        return found

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """Of the journal, by `journalctl -u`."""
        self.box.run("journalctl", "--sync")
        done = self.box.run("journalctl", "-q", "-ojson", "--all", "-u", self.unit, *matches)
        return [json.loads(line) for line in done.stdout.splitlines()]

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        journal = Journal(self.box, self.unit)
        try:
            yield journal
        finally:
            journal.close()

    # --- its tasks -------------------------------------------------------------------------------

    def client(self, *arguments: str, user: str | None = None, check: bool = True) -> Any:
        """`client.py`, by default as the user that the service has."""
        return self.box.run(*self._client(*arguments), **self._as(user), check=check)

    def call(self, task: str, *values: object) -> dict[str, Any]:
        """The task's `id` and `value`."""
        outcome: dict[str, Any] = json.loads(self.client("call", task, json.dumps(values)).stdout)
        return outcome

    def send(self, task: str, *values: object) -> str:
        """Its id."""
        return str(self.client("send", task, json.dumps(values)).stdout.strip())

    @contextmanager
    def flood(self) -> Iterator[Flood]:
        process = self.box.start(
            *self._client("flood"),
            **self._as(None),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        flood = Flood(process)
        try:
            yield flood
        finally:
            flood.close()

    def _client(self, *arguments: str) -> tuple[object, ...]:
        # Its bytecode would be that of code which a test has replaced within the same second.
        return (PYTHON, "-B", "/opt/box/sources/tests/systemd/client.py", self.folder, *arguments)

    def _as(self, user: str | None) -> Mapping[str, Any]:
        environment = {"TASKIQ_SUPERVISE_QUEUE_DIR": self.queues}
        return {"user": user or self.account, "environment": environment}

    def state_folder(self) -> Path:
        """From outside."""
        return self.box.at(f"/var/lib/taskiq-supervise/{self.name}")

    @contextmanager
    def pipe(self, name: str) -> Iterator[Pipe]:
        pipe = Pipe(self.box.at(f"{self.folder}/{name}"))
        try:
            yield pipe
        finally:
            pipe.close()

    def ledger(self, word: str) -> Counter[str]:
        """How often each was noted."""
        path = self.state_folder() / "ledger"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(line.split()[1] for line in lines if line.startswith(f"{word} "))
