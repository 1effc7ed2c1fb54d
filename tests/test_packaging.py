"""What is shipped: an sdist that builds without the repository, and a wheel without C sources."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", "__pycache__", "build", "dist", "*.egg-info", "*.so"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both, the wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("packaging")
    checkout = folder / "checkout"
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=NOT_COPIED)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    done = subprocess.run([*command, str(checkout)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


def names_in_sdist(built: Path) -> set[str]:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def names_in_wheel(built: Path) -> set[str]:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_the_wheel_has_every_module_of_every_room_and_the_extension(built: Path) -> None:
    names = names_in_wheel(built)
    package = ROOT / "src" / "taskiq_supervise"
    modules = {
        f"taskiq_supervise/{room}/{path.name}"
        for room in ("ipc", "broker", "worker", "supervisor")
        for path in (package / room).glob("*.py")
    }
    assert modules <= names
    assert {"taskiq_supervise/__main__.py", "taskiq_supervise/py.typed"} <= names
    extension = f"taskiq_supervise/ipc/_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert extension in names


def test_the_wheel_has_no_sources_of_the_extension_and_no_tests(built: Path) -> None:
    names = names_in_wheel(built)
    assert [name for name in names if name.endswith((".c", ".h"))] == []
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"taskiq_supervise", f"{next(built.glob('*.tar.gz')).name[:-7]}.dist-info"}


def test_the_sdist_has_what_building_and_testing_take(built: Path) -> None:
    names = names_in_sdist(built)
    needed = {"setup.py", "pyproject.toml", "Makefile", "LICENSE", "README.md", "CHANGELOG.md"}
    assert needed <= names
    sources = {str(path.relative_to(ROOT)) for path in ROOT.glob("ipc/**/*.[ch]")}
    assert sources
    assert {f"src/taskiq_supervise/{name}" for name in sources} <= names
    tests = {str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/*.py")}
    assert tests <= names
    units = {str(path.relative_to(ROOT)) for path in ROOT.glob("systemd/**/*") if path.is_file()}
    assert units
    assert units <= names
