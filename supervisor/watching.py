"""Tells when source files change, for `--reload`; watchfiles sees them, git's rules sort them out.

watchfiles blocks, so it has a thread of its own, which does nothing but filter what it sees and
hand it to the event loop. A burst of changes (saving ten files, a `git checkout`) is told at once,
when nothing more has come for a moment.

Changes that another machine makes (NFS, a folder shared into a virtual machine) are not seen by the
kernel; WATCHFILES_FORCE_POLLING=1 in the environment has watchfiles look instead.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from taskiq_supervise.supervisor.ignoring import Ignored

if TYPE_CHECKING:
    from watchfiles import Change

logger = logging.getLogger("taskiq_supervise.reload")

_QUIET = 100
"""Milliseconds without a change after which a burst is over."""
_PATIENCE = 1000
"""Milliseconds after which changes are told although more are coming."""
_TURN = 200
"""Milliseconds after which watchfiles comes back although nothing has changed."""


class WatchError(Exception):
    """The folders cannot be watched; the message says why and what to do."""


class Watcher:
    """Watches from now until `close`; `on_change` gets the paths of what changed, sorted.

    To be made in the event loop that calls `on_change`. Raises WatchError.
    """

    def __init__(
        self, folders: Iterable[Path], gitignore: bool, on_change: Callable[[list[str]], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_change = on_change
        # Without links, as watchfiles names what is in them; the deepest first.
        roots = {folder.resolve() for folder in folders}
        self._roots = sorted(roots, key=lambda root: -len(root.parts))
        for root in self._roots:
            if not root.is_dir():
                raise WatchError(f"{root} cannot be watched: it is not a folder")
        try:
            import watchfiles

            self._ignored = Ignored(gitignore)
        except ImportError as error:
            raise WatchError(
                f"--reload needs {error.name}: pip install 'taskiq-supervise[reload]'"
            ) from error
        self._changes = watchfiles.watch
        self._stop = threading.Event()
        self._began = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._watch, name="reload", daemon=True)
        self._thread.start()
        self._began.wait()
        if self._error is not None:
            raise WatchError(f"files cannot be watched: {self._error}") from self._error

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        """In the thread."""
        try:
            for changes in self._changes(
                *self._roots,
                watch_filter=self._counts,
                debounce=_PATIENCE,
                step=_QUIET,
                stop_event=self._stop,
                rust_timeout=_TURN,
                yield_on_timeout=True,
                raise_interrupt=False,
                ignore_permission_denied=True,
            ):
                self._began.set()
                if changes:
                    paths = sorted({path for _, path in changes})
                    self._loop.call_soon_threadsafe(self._on_change, paths)
        except Exception as error:
            self._error = error
            if self._began.is_set():
                logger.error("Changes of files are not noticed any more: %s", error)
            self._began.set()

    def _counts(self, kind: "Change", name: str) -> bool:
        """In the thread."""
        path = Path(name)
        root = next((root for root in self._roots if root in path.parents), None)
        if root is None:
            return False
        if path.name == ".gitignore":
            self._ignored.forget_rules()
        if path.is_dir() or (kind.name == "deleted" and not path.suffix):
            # What was in a new folder before it was watched is not told one by one.
            return kind.name != "modified" and not self._ignored.folder(path, root)
        return not self._ignored.folder(path.parent, root) and not self._ignored.file(path, root)
