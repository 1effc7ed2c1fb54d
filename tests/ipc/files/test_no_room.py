"""Payload files without room are an error, and leave nothing behind."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests.ipc.files.conftest import spares

from taskiq_supervise.ipc.errors import FilesFull, QueueFull
from taskiq_supervise.ipc.files import PayloadFiles

FULL_TMPFS = """
import ctypes, os, sys
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
    sys.exit(77)
if libc.mount(b"tmpfs", sys.argv[1].encode(), b"tmpfs", 0, b"size=4m,mode=700"):
    sys.exit(77)
from taskiq_supervise.ipc.errors import FilesFull
from taskiq_supervise.ipc.files import PayloadFiles
top = Path(sys.argv[1])
files = PayloadFiles(top / "files")
def room():
    found = os.statvfs(top)
    return found.f_bfree * found.f_frsize
files.write("q-0-1", [b"x"])  # the folders are there
files.trim(0)
before = room()
for number in range(3):
    files.write(f"q-1-{number}", [b"a" * 1_000_000])
left = room()
try:
    files.write("q-2-1", [b"b" * 2_000_000])
except FilesFull as error:
    print(error)
else:
    sys.exit("it fitted")
assert room() == left, "something was left behind"
assert sorted(files.names()) == ["q-0-1", "q-1-0", "q-1-1", "q-1-2"]
files.drop("q-1-0")
assert room() == left, "the spare should be kept: a quarter of the file system is allowed"
files.write("q-2-2", [b"c" * 1_300_000])  # the spare is too small; its room is what is needed
assert bytes(files.map("q-2-2", [1_300_000])[0]) == b"c" * 1_300_000
files.sweep(lambda name: name == "q-0-1")
files.trim(0)
assert room() == before
"""


def test_a_full_tmpfs_is_an_error_and_spares_are_given_up_before(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_TMPFS, tmp_path], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("no right to mount a file system")
    assert done.returncode == 0, done.stderr
    assert "no room for a payload of 2.0 MB" in done.stdout
    assert "No space left on device" in done.stdout


def test_a_limit_on_file_sizes_is_an_error(files: PayloadFiles, directory: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(FilesFull, match="File too large") as raised:
            files.write("q-1-1", [bytes(200_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(raised.value, QueueFull)
    assert files.names() == []
    assert spares(directory) == []
