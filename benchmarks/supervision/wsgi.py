"""The application of gunicorn and uWSGI: the same work as tasks.py, asked for by HTTP."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from benchmarks import ledger
from benchmarks.supervision import weight  # noqa: F401 - weight is there to be imported

with suppress(ModuleNotFoundError):
    import uwsgi  # there inside uWSGI only

    uwsgi.post_fork_hook = ledger.announce


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """/who/SECONDS and /note/NUMBER/SECONDS; both answer with the worker's pid."""
    what, *rest = str(environ["PATH_INFO"]).strip("/").split("/")
    time.sleep(float(rest[-1]))
    if what == "note":
        ledger.note(int(rest[0]))
    answer = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]
