"""Changes to real files, made as editors, git and people make them."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from taskiq_supervise.supervisor import watching
from taskiq_supervise.supervisor.watching import Watcher, WatchError

Watch = Callable[..., "Changes"]


class Changes:
    """What a watcher tells, relative to a folder."""

    def __init__(self, folder: Path, roots: list[Path], gitignore: bool) -> None:
        self.folder = folder
        self.told: asyncio.Queue[list[str]] = asyncio.Queue()
        self.watcher = Watcher(roots, gitignore, self.told.put_nowait)
        self._number = 0

    async def next(self) -> list[str]:
        paths = await asyncio.wait_for(self.told.get(), 30)
        return [Path(path).relative_to(self.folder).as_posix() for path in paths]

    async def until(self, *wanted: str) -> list[str]:
        """All that is told until these have been; files in a burst may be told in two parts."""
        found: set[str] = set()
        while not found >= set(wanted):
            found |= set(await self.next())
        return sorted(found)

    async def so_far(self) -> list[str]:
        """All that the changes before this moment give rise to: a last one is told with them."""
        self._number += 1
        last = f"last{self._number}.py"
        (self.folder / last).write_text("")
        return [path for path in await self.until(last) if path != last]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """People save slower than tests do."""
    monkeypatch.setattr(watching, "_QUIET", 20)
    monkeypatch.setattr(watching, "_PATIENCE", 200)
    monkeypatch.setattr(watching, "_TURN", 20)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for file in ("app.py", "pkg/tasks.py", "pkg/deep/er/code.py", "pkg/data.json"):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    return tmp_path


@pytest.fixture
async def watch(project: Path) -> AsyncIterator[Watch]:
    with ExitStack() as stack:

        def watch(*roots: Path, gitignore: bool = True) -> Changes:
            changes = Changes(project, list(roots) or [project], gitignore)
            stack.callback(changes.watcher.close)
            return changes

        yield watch


@pytest.mark.parametrize(
    "file", ["app.py", "pkg/tasks.py", "pkg/deep/er/code.py", "settings.toml", ".env", ".env.local"]
)
async def test_a_file_that_is_written_is_told(project: Path, watch: Watch, file: str) -> None:
    changes = watch()
    (project / file).write_text("new")
    assert await changes.so_far() == [file]


@pytest.mark.parametrize(
    "file",
    ["pkg/data.json", "app.pyc", "app.py~", ".app.py.swp", "4913", ".#app.py", "notes", "env"],
)
async def test_other_files_and_what_editors_leave_are_not(
    project: Path, watch: Watch, file: str
) -> None:
    changes = watch()
    (project / file).write_text("new")
    assert await changes.so_far() == []


async def test_editors_that_write_beside_the_file_and_rename_are_understood(
    project: Path, watch: Watch
) -> None:
    changes = watch()
    (project / "app.py.tmp1234").write_text("new")
    (project / "app.py.tmp1234").rename(project / "app.py")
    assert await changes.so_far() == ["app.py"]


async def test_removed_and_renamed_files_are_told(project: Path, watch: Watch) -> None:
    changes = watch()
    (project / "app.py").rename(project / "main.py")
    (project / "pkg/tasks.py").unlink()
    assert await changes.so_far() == ["app.py", "main.py", "pkg/tasks.py"]


async def test_links_are_told_when_they_appear(project: Path, watch: Watch) -> None:
    changes = watch()
    (project / "soft.py").symlink_to("app.py")
    (project / "hard.py").hardlink_to(project / "app.py")
    (project / ".#app.py").symlink_to("someone@somewhere.4711:1")  # Emacs: app.py is being edited
    assert await changes.so_far() == ["hard.py", "soft.py"]


async def test_reading_is_no_change(project: Path, watch: Watch) -> None:
    changes = watch()
    (project / "app.py").read_text()
    list(project.iterdir())
    assert await changes.so_far() == []


async def test_many_changes_at_once_are_told_together(project: Path, watch: Watch) -> None:
    changes = watch()
    names = [f"pkg/module{number}.py" for number in range(200)]
    for name in names:
        (project / name).write_text("new")
    tellings = 0
    found: set[str] = set()
    while not found >= set(names):
        found |= set(await changes.next())
        tellings += 1
    assert tellings < 20


async def test_changes_without_end_are_told_before_their_end(project: Path, watch: Watch) -> None:
    changes = watch()
    while changes.told.empty():
        (project / "app.py").write_text("new")
        await asyncio.sleep(0.001)
    assert await changes.next() == ["app.py"]


async def test_new_folders_count_with_what_is_in_them_already_and_are_watched(
    project: Path, watch: Watch
) -> None:
    changes = watch()
    (project / "new/folder").mkdir(parents=True)
    (project / "new/folder/a.py").write_text("before anybody could watch it")
    assert "new" in await changes.so_far()
    (project / "new/folder/b.py").write_text("after")
    assert await changes.so_far() == ["new/folder/b.py"]


async def test_a_package_that_is_replaced_by_another_is_watched_on(
    project: Path, watch: Watch
) -> None:
    """As git does, and every deployment that swaps folders."""
    shutil.copytree(project / "pkg", project / "next")
    changes = watch()
    (project / "pkg").rename(project / "before")
    (project / "next").rename(project / "pkg")
    found = await changes.so_far()
    assert {"pkg", "before", "next"} <= set(found)
    for file in ("pkg/deep/er/code.py", "before/deep/er/code.py"):
        (project / file).write_text("newer")
        assert await changes.so_far() == [file]


async def test_a_removed_tree_is_told_and_watched_when_it_is_back(
    project: Path, watch: Watch
) -> None:
    changes = watch()
    shutil.rmtree(project / "pkg")
    assert {"pkg/deep/er/code.py", "pkg/tasks.py"} <= set(await changes.so_far())
    (project / "pkg").mkdir()
    assert await changes.so_far() == ["pkg"]
    (project / "pkg/tasks.py").write_text("back")
    assert await changes.so_far() == ["pkg/tasks.py"]


async def test_only_the_folders_that_were_named_are_watched(project: Path, watch: Watch) -> None:
    changes = watch(project / "pkg/deep", project / "pkg/../lib/.." / "pkg/deep/er")
    (project / "app.py").write_text("new")
    (project / "pkg/deep/er/code.py").write_text("new")
    assert await changes.next() == ["pkg/deep/er/code.py"]


# --- what does not count -------------------------------------------------------------------------


@pytest.mark.parametrize("gitignore", [True, False])
@pytest.mark.parametrize(
    "folder", ["__pycache__", ".git", "pkg/node_modules", ".venv", "env", "pkg/.mypy_cache/x"]
)
async def test_folders_that_are_never_sources_do_not_count(
    project: Path, watch: Watch, folder: str, gitignore: bool
) -> None:
    (project / folder).mkdir(parents=True)
    (project / "env").mkdir(exist_ok=True)
    (project / "env/pyvenv.cfg").write_text("a virtual environment, whatever its name is")
    changes = watch(gitignore=gitignore)
    (project / folder / "a.py").write_text("new")
    (project / folder / "sub").mkdir()
    (project / folder / "sub/b.py").write_text("new")
    assert await changes.so_far() == []


async def test_a_new_virtual_environment_does_not_count(project: Path, watch: Watch) -> None:
    (project / "made").mkdir()
    (project / "made/pyvenv.cfg").write_text("")
    (project / "made/lib").mkdir()
    (project / "made/lib/a.py").write_text("")
    changes = watch(project / "pkg")
    (project / "made").rename(project / "pkg/made")
    (project / "pkg/made/lib/a.py").write_text("new")
    (project / "pkg/tasks.py").write_text("new")
    assert await changes.until("pkg/tasks.py") == ["pkg/tasks.py"]


@pytest.fixture
def ignoring(project: Path) -> Path:
    (project / ".git").mkdir()
    (project / ".gitignore").write_text("/build/\n*_pb2.py\n!keep_pb2.py\n# a comment\n")
    (project / "pkg/.gitignore").write_text("generated.py\n/deep/er/\n!special_pb2.py\n")
    (project / "build/lib").mkdir(parents=True)
    (project / "pkg/build").mkdir()
    return project


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("build/a.py", False),
        ("build/lib/a.py", False),
        ("pkg/build/a.py", True),  # the slash in front ties it to the top
        ("api_pb2.py", False),
        ("pkg/api_pb2.py", False),
        ("pkg/keep_pb2.py", True),
        ("pkg/special_pb2.py", True),  # the deeper one decides
        ("special_pb2.py", False),
        ("pkg/generated.py", False),
        ("pkg/build/generated.py", False),
        ("generated.py", True),
        ("pkg/deep/er/code.py", False),
        ("pkg/deep/code.py", True),
    ],
)
async def test_gitignore_files_of_every_level_are_respected(
    ignoring: Path, watch: Watch, file: str, counts: bool
) -> None:
    changes = watch()
    (ignoring / file).write_text("new")
    assert await changes.so_far() == ([file] if counts else [])
    _agrees_with_git(ignoring, file, counts)


def _agrees_with_git(folder: Path, file: str, counts: bool) -> None:
    git = shutil.which("git")
    if git is None:
        return
    shutil.rmtree(folder / ".git")
    subprocess.run([git, "init", "--quiet", folder], check=True)
    found = subprocess.run([git, "-C", folder, "check-ignore", "-q", file], check=False)
    assert found.returncode == (1 if counts else 0)


async def test_gitignore_files_above_the_watched_folder_count_up_to_the_repository(
    ignoring: Path, watch: Watch
) -> None:
    changes = watch(ignoring / "pkg")
    (ignoring / "pkg/api_pb2.py").write_text("new")
    (ignoring / "pkg/tasks.py").write_text("new")
    assert await changes.next() == ["pkg/tasks.py"]


async def test_a_folder_that_is_ignored_and_named_all_the_same_counts(
    ignoring: Path, watch: Watch
) -> None:
    changes = watch(ignoring / "build")
    (ignoring / "build/lib/a.py").write_text("new")
    assert await changes.next() == ["build/lib/a.py"]


async def test_gitignore_files_outside_of_any_repository_above_mean_nothing(
    ignoring: Path, watch: Watch
) -> None:
    (ignoring / ".git").rmdir()
    changes = watch(ignoring / "pkg")
    (ignoring / "pkg/api_pb2.py").write_text("new")
    assert await changes.next() == ["pkg/api_pb2.py"]


async def test_all_of_it_counts_where_that_is_asked_for(ignoring: Path, watch: Watch) -> None:
    changes = watch(gitignore=False)
    (ignoring / "build/lib/a.py").write_text("new")
    (ignoring / "pkg/generated.py").write_text("new")
    assert await changes.so_far() == ["build/lib/a.py", "pkg/generated.py"]


async def test_a_gitignore_that_changes_counts_from_then_on(ignoring: Path, watch: Watch) -> None:
    changes = watch()
    (ignoring / ".gitignore").write_text("app.py\n")
    assert await changes.so_far() == []
    (ignoring / "app.py").write_text("new")
    (ignoring / "build/lib/a.py").write_text("new")
    assert await changes.so_far() == ["build/lib/a.py"]


async def test_a_line_that_is_no_pattern_spoils_no_other(
    ignoring: Path, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    (ignoring / ".gitignore").write_bytes(b"!\n\xff\xfe\napp.py\n")
    changes = watch()
    (ignoring / "app.py").write_text("new")
    assert await changes.so_far() == []
    assert ".gitignore" in caplog.text


# --- what cannot be watched ----------------------------------------------------------------------


async def test_what_is_no_folder_is_refused(project: Path, watch: Watch) -> None:
    for path in (project / "nowhere", project / "app.py"):
        with pytest.raises(WatchError, match=f"{path.name} cannot be watched: it is not a folder"):
            watch(path)


async def test_without_the_extra_it_says_what_to_install(
    project: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pathspec", None)  # as if it were not installed
    with pytest.raises(WatchError, match=r"pip install 'taskiq-supervise\[reload\]'"):
        watch()
    changes = watch(gitignore=False)  # needs nothing
    (project / "app.py").write_text("new")
    assert await changes.so_far() == ["app.py"]
