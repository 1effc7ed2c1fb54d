"""Progress of running tasks: one small file per task beside the queue.

It is said often, read seldom and worth nothing after the task, so it has no place in the segment,
whose memory is for messages and results. Replaced by rename, so that a reader sees the old or the
new and never half of it; on a file system in memory that costs some tens of microseconds.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic_core import to_json
from taskiq.depends.progress_tracker import TaskProgress

from taskiq_supervise.ipc.access import Access, make_folder, new_file


class ProgressFolder:
    """The progress files of one queue, as one process sees them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def set(self, task_id: str, progress: TaskProgress[Any]) -> None:
        queue = self._folder.parent
        if not self._folder.is_dir():
            make_folder(self._folder, Access.inside(queue).folder_mode)
        path = self._path(task_id)
        temporary = path.with_suffix(f".{os.getpid()}")
        state = getattr(progress.state, "value", progress.state)
        values = {"task_id": task_id, "state": state, "meta": progress.meta}
        temporary.unlink(missing_ok=True)  # of one that died as it wrote, and had our pid
        with open(new_file(temporary, queue), "wb") as file:
            file.write(to_json(values))
        temporary.replace(path)

    def get(self, task_id: str) -> TaskProgress[Any] | None:
        try:
            values = json.loads(self._path(task_id).read_bytes())
        except FileNotFoundError:
            return None
        return TaskProgress(state=values["state"], meta=values["meta"])

    def remove(self, task_id: str) -> None:
        """Whoever wrote it: an earlier start of the task may have run in another process."""
        # Nobody says any, mostly; to ask so costs half as much as is_dir() does.
        if not os.access(self._folder, os.F_OK):
            return
        with contextlib.suppress(FileNotFoundError):
            self._path(task_id).unlink()

    def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Removes what workers left that died with their task."""
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if path.suffix:  # about to be renamed by its writer
                continue
            try:
                if is_over(json.loads(path.read_bytes())["task_id"]):
                    path.unlink()
            except FileNotFoundError:  # another process was faster
                continue

    def _path(self, task_id: str) -> Path:
        return self._folder / hashlib.sha256(task_id.encode()).hexdigest()[:32]
