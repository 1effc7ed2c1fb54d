"""The container examples name options that exist, and times that fit together."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "container"
GIVING_BACK = 8
"""Seconds that the supervisor allows itself after `--graceful-timeout`."""


def from_dockerfile() -> list[str]:
    found = re.search(r"^CMD (\[.*\])$", (EXAMPLE / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    command: list[str] = json.loads(found[1])
    return command


def from_kubernetes() -> list[str]:
    found = re.search(r"args: \[(.*)\]", (EXAMPLE / "kubernetes.yaml").read_text())
    assert found is not None
    return [argument.strip().strip('"') for argument in found[1].split(",")]


def graceful(arguments: list[str]) -> int:
    return int(arguments[arguments.index("--graceful-timeout") + 1])


@pytest.mark.parametrize("arguments", [from_dockerfile(), from_kubernetes()])
def test_the_supervisor_takes_the_arguments(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "taskiq_supervise", *arguments, "--check-config"]
    done = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "setting", "arguments"),
    [
        ("compose.yaml", r"stop_grace_period: (\d+)s", from_dockerfile()),
        ("kubernetes.yaml", r"terminationGracePeriodSeconds: (\d+)", from_kubernetes()),
    ],
)
def test_the_kill_comes_after_the_supervisor_s_own(
    file: str, setting: str, arguments: list[str]
) -> None:
    found = re.search(setting, (EXAMPLE / file).read_text())
    assert found is not None
    assert int(found[1]) > graceful(arguments) + GIVING_BACK


@pytest.mark.parametrize("probe", ["live", "ready"])
def test_the_probes_are_there(probe: str) -> None:
    options = [sys.executable, "-m", "taskiq_supervise", "status", "--probe", probe, "nobody"]
    done = subprocess.run(options, cwd=EXAMPLE, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    named = "".join(path.read_text() for path in EXAMPLE.iterdir() if path.is_file())
    assert f"--probe {probe}" in re.sub(r'[",]', "", named)
