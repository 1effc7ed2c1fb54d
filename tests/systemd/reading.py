"""Unit files as systemd itself reads them, on machines where it need not run."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from taskiq_supervise.supervisor.unit import DEFAULT_PROGRAM

MANAGER = Path("/lib/systemd/systemd")
NOBODY = 65534

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
needs_manager = pytest.mark.skipif(
    not MANAGER.exists(), reason=f"systemd is not installed ({MANAGER})"
)


@dataclass(frozen=True)
class Analysis:
    code: int
    said: str


def verify(folder: Path, files: dict[str, str], name: str, *, user: bool = False) -> Analysis:
    """What `systemd-analyze verify` says of one of the units; programs need not be installed."""
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_startable(text))
    manager = ["--user"] if user else []
    done = subprocess.run(
        ["systemd-analyze", *manager, "--man=no", "verify", str(folder / name)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
    )
    return Analysis(done.returncode, done.stdout + done.stderr)


def _startable(text: str) -> str:
    """`verify` looks whether commands are there."""
    there = Path(sys.executable)
    return text.replace(DEFAULT_PROGRAM, str(there)).replace(
        "%h/.local/bin/taskiq-supervise", str(there)
    )


@dataclass(frozen=True)
class Read:
    """A unit as the manager has understood it."""

    command: list[str]
    directory: str
    environment: list[str]


@contextmanager
def open_folder() -> Iterator[Path]:
    """One that other users may look into, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="units-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def read(text: str) -> Read:
    """Loaded by a manager that starts nothing. It refuses to be root for that."""
    with open_folder() as folder:
        runtime = folder / "run"
        runtime.mkdir()
        (folder / "probe.service").write_text(text)
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(runtime, NOBODY, NOBODY)
        done = subprocess.run(
            [str(MANAGER), "--test", "--user", "--unit=probe.service"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            user=NOBODY if is_root else None,
            group=NOBODY if is_root else None,
            extra_groups=[] if is_root else None,
            env={
                "XDG_RUNTIME_DIR": str(runtime),
                "SYSTEMD_UNIT_PATH": f"{folder}:/usr/lib/systemd/user",
                "LC_ALL": "C.UTF-8",
            },
            cwd="/",
        )
    dump = done.stdout.decode()
    assert done.returncode == 0, dump
    _, found, dump = dump.partition("-> Unit probe.service:\n")
    assert found, dump
    unit = re.split(r"^\t-> Unit ", dump, maxsplit=1, flags=re.MULTILINE)[0]
    return Read(
        command=_words(_line(unit, "Command Line")),
        directory=_line(unit, "WorkingDirectory"),
        environment=re.findall(r"^\t\tEnvironment: (.*)$", unit, re.MULTILINE),
    )


def _line(dump: str, name: str) -> str:
    found = re.search(rf"^\t+{name}: (.*)$", dump, re.MULTILINE)
    assert found is not None, dump
    return found[1]


_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|([^ ]+)')
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|[0-7]{3}|.)")
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def _words(line: str) -> list[str]:
    """As the manager shows a command line."""
    return [_ESCAPE.sub(_character, match[1] or match[2] or "") for match in _WORD.finditer(line)]


def _character(escape: "re.Match[str]") -> str:
    what = escape[1]
    if what[0] == "x" and len(what) == 3:
        return chr(int(what[1:], 16))
    if len(what) == 3:
        return chr(int(what, 8))
    return _LETTERS.get(what, what)
