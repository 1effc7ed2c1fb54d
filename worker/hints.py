"""Which annotations of a task its arguments can be parsed by.

taskiq has pydantic parse each argument by its parameter's annotation. With a class that pydantic
knows nothing of, an array for example, that fails at each call, with a traceback in the log. So
such annotations are taken out before the first call; not earlier, because it takes pydantic a
while to look at them all, and a worker is to start quickly.
"""

from typing import Any

from pydantic import PydanticUserError
from taskiq.compat import create_type_adapter


class Hints:
    """Which tasks' annotations have been looked at."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def keep_parsable(self, hints: dict[str, dict[str, Any]], task_name: str) -> None:
        """hints: the receiver's, by task and parameter."""
        if task_name in self._seen:
            return
        self._seen.add(task_name)
        hints[task_name] = {
            parameter: hint for parameter, hint in hints[task_name].items() if _is_parsable(hint)
        }


def _is_parsable(hint: Any) -> bool:
    try:
        create_type_adapter(hint)
    except PydanticUserError:
        return False
    except TypeError:  # not hashable: taskiq will say so
        return True
    return True
