"""A damaged segment under libFuzzer, which looks for inputs that lead to code not seen before.

The same program with fixed dice is part of `make test`: see test_core.py.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.stress

SECONDS = int(float(os.environ.get("STRESS_SECONDS", "30")))
HARNESS = Path(__file__).parent / "core"
CORE = Path(__file__).parents[2] / "ipc" / "core"


@pytest.fixture(scope="session")
def clang() -> str:
    """clang with its runtime; installed when it is missing, we are root and there is apt."""
    if shutil.which("clang") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (("update",), ("install", "-y", "clang")):
            subprocess.run(["apt-get", "-qq", *arguments], env=environment, check=True)
    found = shutil.which("clang")
    assert found, "please install clang (Debian: apt install clang)"
    return found


def test_no_access_is_out_of_bounds_wherever_the_fuzzer_gets(clang: str, tmp_path: Path) -> None:
    build = subprocess.run(
        [
            clang, "-std=c11", "-D_GNU_SOURCE", "-DGUIDED", "-g", "-O1", "-pthread",
            "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", f"-I{CORE}",
            HARNESS / "fuzz.c", *sorted(CORE.glob("*.c")), "-o", "guided",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert build.returncode == 0, build.stderr
    (tmp_path / "corpus").mkdir()
    limits = (f"-max_total_time={SECONDS}", "-max_len=512", "-len_control=0", "-rss_limit_mb=2048")
    done = subprocess.run(
        [tmp_path / "guided", *limits, "corpus"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS + 120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
