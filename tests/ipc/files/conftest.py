"""A folder of payload files, and processes that share it."""

import os
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from taskiq_supervise.ipc.files import PayloadFiles

if TYPE_CHECKING:
    from tests.ipc.conftest import Peer

SIZE = 50_000


def content(number: int, size: int = SIZE) -> bytes:
    return bytes([number % 251 + 1]) * size


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """On a tmpfs, as in life."""
    path = Path(os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"]) / "files-of-a-test"
    path.mkdir()
    yield path
    subprocess.run(["rm", "-r", path], check=True)


@pytest.fixture
def directory(folder: Path) -> Path:
    return folder / "files"


@pytest.fixture
def make_files(directory: Path) -> Iterator[Callable[[], PayloadFiles]]:
    with ExitStack() as stack:

        def make() -> PayloadFiles:
            made = PayloadFiles(directory)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def files(make_files: Callable[[], PayloadFiles]) -> PayloadFiles:
    return make_files()


@pytest.fixture
def join(new_peer: "Callable[[], Peer]", directory: Path) -> "Callable[[], Peer]":
    """Processes that have the same folder open as `files`."""

    def make() -> "Peer":
        peer = new_peer()
        peer.ask(
            "from pathlib import Path\n"
            "from taskiq_supervise.ipc.files import PayloadFiles\n"
            f"files = PayloadFiles(Path({str(directory)!r}))"
        )
        return peer

    return make


def spares(directory: Path) -> list[Path]:
    return sorted((directory / "spares").iterdir())


def inode(path: Path) -> int:
    return path.stat().st_ino


def read(files: PayloadFiles, name: str, size: int = SIZE) -> bytes:
    (view,) = files.map(name, [size])
    return bytes(view)


def mapped(folder: Path) -> list[str]:
    """Access of what is mapped from the folder in this process."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return sorted(line.split()[1] for line in lines if folder.name in line)


@contextmanager
def exiting() -> Iterator[None]:
    """The rest of a forked child's life."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
