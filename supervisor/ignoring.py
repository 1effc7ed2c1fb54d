"""Which folders and files a reload on changes is not about.

What git ignores is left out, by its own rules: a `.gitignore` in any folder counts for all below
it, the deepest one that says something about a path decides, and nothing comes back from below an
ignored folder. Those above the watched folder count up to the top of the repository.

Matching is done by `pathspec`, which with watchfiles is the extra `reload`.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

logger = logging.getLogger("taskiq_supervise.reload")

SUFFIXES = frozenset({".py", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".env"})
"""Code and what usually configures it. Not .json: that is as often data which tasks write."""
_NEVER = frozenset(
    {
        "__pycache__",
        "__pypackages__",
        "node_modules",
        "site-packages",
        ".git",
        ".hg",
        ".hypothesis",
        ".idea",
        ".mypy_cache",
        ".nox",
        ".pytest_cache",
        ".ruff_cache",
        ".svn",
        ".tox",
        ".venv",
        ".vscode",
    }
)


class Ignored:
    """Answers for the trees below `roots`. With `gitignore` false no .gitignore is read.

    Raises ImportError without pathspec.
    """

    def __init__(self, gitignore: bool) -> None:
        if gitignore:
            import pathspec  # noqa: F401 - to say so now, not at the first file
        self._gitignore = gitignore
        self._specs: dict[Path, GitIgnoreSpec | None] = {}
        self._tops: dict[Path, Path] = {}

    def forget_rules(self) -> None:
        """Some .gitignore has changed: all are read again."""
        self._specs.clear()
        self._tops.clear()

    def folder(self, path: Path, root: Path) -> bool:
        """Whether nothing in this folder counts. The root itself was asked for, and counts."""
        if path == root:
            return False
        if any(_never(folder) for folder in _between(path, root)):
            return True
        return self._matched(path, root, is_folder=True)

    def file(self, path: Path, root: Path) -> bool:
        """Whether this file does not count, its folder being one that does."""
        name = path.name
        if name.startswith(".#"):  # Emacs locks a file by a link of this name
            return True
        if path.suffix not in SUFFIXES and name != ".env" and not name.startswith(".env."):
            return True
        return self._matched(path, root, is_folder=False)

    def _matched(self, path: Path, root: Path, *, is_folder: bool) -> bool:
        if not self._gitignore:
            return False
        top = self._top(root)
        parents = [folder for folder in _between(path, root) if folder != path]
        return any(self._decided(folder, top, "/") for folder in parents) or self._decided(
            path, top, "/" if is_folder else ""
        )

    def _decided(self, path: Path, top: Path, end: str) -> bool:
        """By the deepest .gitignore, not above `top`, that says anything about this very path."""
        for folder in path.parents:
            spec = self._spec(folder)
            if spec is not None:
                found = spec.check_file(path.relative_to(folder).as_posix() + end).include
                if found is not None:
                    return found
            if folder == top:
                break
        return False

    def _top(self, root: Path) -> Path:
        """Where the rules for this root begin: at the top of the repository that it is in.

        At the root itself where git would ignore all of it: who names it means it.
        """
        if root not in self._tops:
            top = _repository(root) or root
            ignored = any(self._decided(folder, top, "/") for folder in _between(root, top))
            self._tops[root] = root if ignored else top
        return self._tops[root]

    def _spec(self, folder: Path) -> "GitIgnoreSpec | None":
        if folder not in self._specs:
            self._specs[folder] = _read(folder / ".gitignore")
        return self._specs[folder]


def _between(path: Path, root: Path) -> Iterator[Path]:
    """The path and the folders above it, below the root."""
    while path != root:
        yield path
        path = path.parent


def _never(folder: Path) -> bool:
    return folder.name in _NEVER or (folder / "pyvenv.cfg").exists()


def _repository(root: Path) -> Path | None:
    for folder in (root, *root.parents):
        if (folder / ".git").exists():  # a file in worktrees and submodules
            return folder
    return None


def _read(file: Path) -> "GitIgnoreSpec | None":
    from pathspec import GitIgnoreSpec

    try:
        lines = file.read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        logger.warning("%s cannot be read and is not respected: %s", file, error)
        return None
    valid = []
    for line in lines:
        try:
            GitIgnoreSpec.from_lines([line])
        except ValueError as error:
            logger.warning("%s: %s", file, error)
        else:
            valid.append(line)
    return GitIgnoreSpec.from_lines(valid)
