"""Unit files on their way into systemd's folders, and out again.

What somebody has changed by hand is neither overwritten nor removed. Each file ends with a digest
of what stands above it: one that still fits is as it was written, by this version or another.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MARK = "# taskiq-supervise wrote this file, and replaces it while it is unchanged: "


class FileRefused(Exception):
    """A file is not what it was when it was written; the message says which and what to do."""


@dataclass(frozen=True)
class Folders:
    """Where systemd looks. systemd.unit(5), sysusers.d(5), tmpfiles.d(5)."""

    units: Path
    sysusers: Path | None = None
    tmpfiles: Path | None = None

    @classmethod
    def of_the_system(cls, root: Path) -> "Folders":
        """root: `/`, or a tree that is being made."""
        etc = root / "etc"
        return cls(etc / "systemd" / "system", etc / "sysusers.d", etc / "tmpfiles.d")

    @classmethod
    def of_the_user(cls, environment: Mapping[str, str], home: Path) -> "Folders":
        configuration = environment.get("XDG_CONFIG_HOME") or home / ".config"
        return cls(Path(configuration) / "systemd" / "user")


def install(files: Mapping[Path, str], *, force: bool = False) -> list[Path]:
    """Write them, all or none if one may not be replaced. Returns those that were not so yet.

    Raises FileRefused, OSError.
    """
    wanted = {path: with_mark(text) for path, text in files.items()}
    changed = {path: text for path, text in wanted.items() if _read(path) != text}
    if not force:
        _check_unchanged(changed)
    for path, text in changed.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, text)
    return list(changed)


def uninstall(paths: list[Path], *, force: bool = False) -> list[Path]:
    """Remove those that are there; returns them. Raises FileRefused, OSError."""
    there = [path for path in paths if _read(path) is not None]
    if not force:
        _check_unchanged(there)
    for path in there:
        path.unlink()
    return there


def with_mark(text: str) -> str:
    return f"{text}\n{_MARK}{_digest(text)}\n"


def is_unchanged(content: str) -> bool:
    """Nobody has edited what `with_mark` made."""
    text, mark, digest = content.rpartition(f"\n{_MARK}")
    return bool(mark) and digest == f"{_digest(text)}\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _check_unchanged(paths: "Mapping[Path, str] | list[Path]") -> None:
    for path in paths:
        content = _read(path)
        if content is not None and not is_unchanged(content):
            raise FileRefused(
                f"{path} is not as it was written here: keep your changes in a drop-in "
                "(systemctl edit), or say --force to lose them"
            )


def _read(path: Path) -> str | None:
    """None: there is none. A link, as of a masked unit, counts as changed."""
    if path.is_symlink():
        return ""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None


def _replace(path: Path, text: str) -> None:
    """Whole or not at all; systemd may be reading."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
