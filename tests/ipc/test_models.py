"""The protocol as small models, searched exhaustively by SPIN: models/*.pml.

Each model says at its top what it abstracts and what it promises. Each of its mutants, a mistake
behind an #ifdef, has to be found: a model that cannot tell them from the real thing proves nothing.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.stress

FOLDER = Path(__file__).parent / "models"
MODELS = tuple(sorted(path.stem for path in FOLDER.glob("*.pml")))
MEGABYTES = 6000
SECONDS = 600
DEPTH = 2_000_000

# What spins for ever instead of losing something is found as a cycle of states.
CYCLES = {"ring": ("", "MUTANT_does_not_help_the_tail", "MUTANT_takes_a_ticket_first")}


def mutants() -> list[tuple[str, str]]:
    return [
        (model, name)
        for model in MODELS
        for name in sorted(set(re.findall(r"MUTANT_\w+", (FOLDER / f"{model}.pml").read_text())))
        if name not in CYCLES.get(model, ())
    ]


@pytest.fixture(scope="session")
def spin() -> str:
    """SPIN; installed when it is missing, we are root and there is apt, as .ci/run does."""
    if shutil.which("spin") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (("update",), ("install", "-y", "--no-install-recommends", "spin")):
            subprocess.run(["apt-get", "-qq", *arguments], env=environment, check=True)
    found = shutil.which("spin")
    assert found, "please install spin (Debian: apt install spin)"
    return found


def search(spin: str, folder: Path, model: str, mutant: str = "", *, cycles: bool = False) -> bool:
    """Search all states: is every promise kept? A search that ends early is an error."""
    defines = [f"-D{mutant}"] if mutant else []
    source = FOLDER / f"{model}.pml"
    subprocess.run([spin, *defines, "-a", source], cwd=folder, check=True, capture_output=True)
    kind = "-DNP" if cycles else "-DSAFETY"
    limits = [f"-DMEMLIM={MEGABYTES}", "-DVECTORSZ=2048"]
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-O2", "-w", kind, *limits, "-o", "pan", "pan.c"], cwd=folder, check=True
    )
    # -E: a process that waits for ever is judged by the model's own assertions.
    arguments = ["-E", f"-m{DEPTH}", *(["-l"] if cycles else [])]
    done = subprocess.run(
        [folder / "pan", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    errors = re.search(r"errors: (\d+)", done.stdout)
    assert errors, done.stdout + done.stderr
    if errors[1] != "0":
        return False
    incomplete = ("max search depth too small", "out of memory", "Search not completed")
    assert not any(words in done.stdout for words in incomplete), done.stdout
    return True


@pytest.mark.parametrize("model", MODELS)
def test_the_protocol_keeps_its_promises(spin: str, tmp_path: Path, model: str) -> None:
    assert search(spin, tmp_path, model)


@pytest.mark.parametrize(("model", "mutant"), mutants())
def test_a_mistake_shows(spin: str, tmp_path: Path, model: str, mutant: str) -> None:
    assert not search(spin, tmp_path, model, mutant), "it escaped"


@pytest.mark.parametrize("mutant", CYCLES["ring"])
def test_nobody_goes_round_for_ever(spin: str, tmp_path: Path, mutant: str) -> None:
    assert search(spin, tmp_path, "ring", mutant, cycles=True) == (not mutant)
