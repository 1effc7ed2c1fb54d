"""The promises of the C core: whatever dies or stands still, at whatever instruction.

What each program does is said at its top, in core/. `make stress` runs them for longer, at every
optimisation level, and under ThreadSanitizer.
"""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.ipc.mutants import MUTANTS, Mutant

if TYPE_CHECKING:
    from tests.ipc.conftest import CoreBuild

STRESS_SECONDS = float(os.environ.get("STRESS_SECONDS", "30"))
STRESS_KILLS = int(os.environ.get("STRESS_KILLS", "10000"))
MODES = ("kill", "freeze", "fence")
# `make test` stops at some of the instructions, evenly spread: at fewer where there are many, most
# of which look for something to do. `make stress` stops at each.
SOME, FEW = "5", "41"
LONG = (
    "audit", "recover", "recover-explained", "complete-evicting", "dead-letter-trimming",
    "put-evicting", "put-evicting-blocks", "put-sparing-awaited",
    "put-from", "put-from-displacing", "reserve-commit-from", "recover-sender",
)  # fmt: skip
SHORT = (
    "put", "put-block", "put-large", "put-new-lane", "put-full-lane",
    "put-delayed", "put-delayed-earlier", "put-expiring", "put-delayed-expiring",
    "put-without-block", "put-without-slot", "reserve-commit", "reserve-give-up",
    "put-from-known", "resend-uncommitted", "resend-committed", "resend-ended",
    "line-up", "step-out",
    "claim", "claim-large", "claim-lanes", "claim-credit", "claim-again", "sleep-claim",
    "start", "ack", "complete", "complete-large", "complete-acked", "complete-calling",
    "start-ack-complete",
    "finish-no-result", "finish-forget", "finish-forget-acked", "finish-calling",
    "finish-expired", "finish-discarded", "discard", "discard-delayed",
    "release-leased", "release-delayed", "release",
    "dead-letter", "dead-letter-leased",
    "read", "look", "forget", "forget-dead", "run-due",
    "time-out", "time-out-ended", "time-out-used-again",
    "start-overdue", "ack-overdue", "complete-overdue",
)  # fmt: skip
ALONE = (
    "recover", "recover-explained", "recover-sender",
    "complete-calling", "finish-calling", "step-out",
    "time-out", "time-out-ended", "time-out-used-again",
    "resend-uncommitted", "resend-committed", "resend-ended",
)  # fmt: skip


def run(program: Path, *arguments: str, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


def holds(program: Path, *arguments: str, timeout: float = 600) -> None:
    done = run(program, *arguments, timeout=timeout)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"


def all_hold(program: Path, runs: "list[tuple[str, ...]]") -> None:
    """Two at a time: a tracer and its victim take turns on one CPU."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda arguments: holds(program, *arguments), runs):
            continue


@pytest.mark.parametrize("mode", MODES)
def test_stopped_at_some_instructions_nothing_is_lost_doubled_or_leaked(
    core_build: "CoreBuild", mode: str
) -> None:
    program = core_build.program("stepkill", "-O2")
    runs: list[tuple[str, ...]] = [("--every", FEW, mode, scenario) for scenario in LONG]
    all_hold(program, runs + [("--every", SOME, mode, scenario) for scenario in SHORT])


@pytest.mark.stress
@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2", "-O3"])
def test_stopped_at_any_instruction_at_every_optimisation_level(
    core_build: "CoreBuild", level: str
) -> None:
    program = core_build.program("stepkill", level)
    all_hold(program, [(mode, scenario) for mode in MODES for scenario in LONG + SHORT])


@pytest.mark.stress
@pytest.mark.parametrize("scenario", [name for name in LONG + SHORT if name not in ALONE])
def test_two_stopped_at_a_time(core_build: "CoreBuild", scenario: str) -> None:
    program = core_build.program("stepkill", "-O2")
    holds(program, "--every", "29", "--pair-every", "61", "pair", scenario)


@pytest.mark.parametrize(
    "mutant",
    # Each is a compilation: a third of them here, the others under stress.
    [
        pytest.param(mutant, marks=[pytest.mark.stress] if number % 3 else [])
        for number, mutant in enumerate(MUTANTS)
    ],
    ids=str,
)
def test_a_mistake_in_the_protocol_shows(core_build: "CoreBuild", mutant: Mutant) -> None:
    broken = core_build.program("stepkill", "-O2", mutated={mutant.file: (mutant.old, mutant.new)})
    done = run(broken, mutant.mode, mutant.scenario)
    assert done.returncode == 1, f"it escaped: {done.stdout}{done.stderr}"
    assert done.stdout.startswith("FAILED"), done.stdout


def figures(core_build: "CoreBuild", *arguments: str, timeout: float) -> dict[str, float]:
    done = run(core_build.program("stress", "-O2"), *arguments, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    assert found["lost"] == found["doubled"] == found["leaked"] == 0
    return found


def test_random_kills_under_load_lose_nothing(core_build: "CoreBuild") -> None:
    found = figures(core_build, "--seconds", "3", timeout=90)
    assert found["kills"] > 0
    assert found["repaired"] > 0, "no kill hit a message: nothing was tested"
    assert found["timed_out"] > 0, "no kill hit one that was marked for taking too long"


@pytest.mark.stress
def test_ten_thousand_random_kills_lose_nothing(
    core_build: "CoreBuild", capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(core_build, "--kills", str(STRESS_KILLS), "--stops", timeout=60 + STRESS_KILLS)
    assert found["kills"] >= STRESS_KILLS
    with capsys.disabled():
        print(f"\n{json.dumps(found)}")


@pytest.mark.stress
def test_random_kills_under_load_lose_nothing_in_the_long_run(core_build: "CoreBuild") -> None:
    seconds = str(STRESS_SECONDS)
    _ = figures(core_build, "--seconds", seconds, "--stops", timeout=2 * STRESS_SECONDS + 90)


ADDRESSES = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.mark.parametrize("messages", ["4000", pytest.param("200000", marks=pytest.mark.stress)])
def test_no_access_is_out_of_bounds(core_build: "CoreBuild", messages: str) -> None:
    holds(core_build.program("threads", *ADDRESSES), messages)


def test_no_access_is_out_of_bounds_whatever_the_segment_says(core_build: "CoreBuild") -> None:
    holds(core_build.program("fuzz", *ADDRESSES), "0", "2000")


@pytest.mark.stress
def test_no_access_is_out_of_bounds_in_the_long_run(core_build: "CoreBuild") -> None:
    seeds = int(STRESS_SECONDS * 1000)
    holds(core_build.program("fuzz", *ADDRESSES), "2000", str(seeds), timeout=10 * STRESS_SECONDS)


@pytest.mark.stress
def test_no_two_threads_race(core_build: "CoreBuild") -> None:
    holds(core_build.program("threads", "-O1", "-fsanitize=thread"), "300000")
