"""The measurements of the queue run: every contestant, a few messages each, and nothing is left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTESTANTS = {
    "oneway": {"ours, one by one", "zmq.asyncio PUSH/PULL", "multiprocessing.Queue"},
    "pingpong": {"eventfd and shared memory", "ours, there and back", "ours, task and result"},
    "large": {"copy into a shared mapping, sum", "pyzmq, copy=False", "multiprocessing.Queue"},
    "death": {"a supervisor reaps it and repairs", "no supervisor, the surviving worker repairs"},
    "repair": {"16 held"},
}


@pytest.mark.parametrize("name", CONTESTANTS)
def test_every_contestant_of_a_figure_is_measured(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.ipc", name, "--rounds", "2", "--share", "0.01"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "figures.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["figures"]
    assert figures
    for figure in figures:
        assert CONTESTANTS[name] <= set(figure["contestants"])
        for contestant, measured in figure["contestants"].items():
            assert f"| {contestant} |" in done.stdout
            assert len(measured["rounds"]) == 2
            assert all(sample > 0 for one in measured["rounds"] for sample in one)


def test_an_unknown_figure_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.ipc", "speed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no figure speed" in done.stderr
