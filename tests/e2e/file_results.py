"""Results as files, so that they outlive whatever is killed; copied beside `app.py`."""

import os
from pathlib import Path
from typing import Any

from taskiq import AsyncResultBackend, TaskiqResult


class FileResults(AsyncResultBackend[Any]):
    """One file per result, there from one moment to the next."""

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        temporary = Path("results", f".{task_id}.{os.getpid()}")
        temporary.parent.mkdir(exist_ok=True)
        temporary.write_text(result.model_dump_json())
        temporary.replace(Path("results", task_id))

    async def is_result_ready(self, task_id: str) -> bool:
        return Path("results", task_id).exists()

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[Any]:
        return TaskiqResult.model_validate_json(Path("results", task_id).read_bytes())
