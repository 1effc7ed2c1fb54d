"""The log of a supervisor: one line per happening, always with the same identity in front.

`core` reports what happened as values; here they get their words and their level. Whoever greps for
`worker=3 gen=2` finds that worker's whole life and nothing else.
"""

import logging
import sys

from taskiq_supervise.ipc import Burial
from taskiq_supervise.supervisor.messages import Happening, Report
from taskiq_supervise.supervisor.model import Reason

logger = logging.getLogger("taskiq_supervise")


class _Process(logging.Filter):
    """`%(processName)s` in a format that the workers share."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.processName = "supervisor"
        return True


def configure(level: str, log_format: str) -> None:
    """Log to stderr in the format that the workers use too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(log_format))
    handler.addFilter(_Process())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def write(report: Report) -> None:
    """Put a report into the log."""
    level, text = render(report)
    trace = "" if report.traceback is None else "\n" + report.traceback.rstrip("\n")
    logger.log(level, "%s%s", text, trace)


def render(report: Report) -> tuple[int, str]:
    """Level and words of a report."""
    level, template = _WORDS[report.what]
    if report.what is Happening.WORKER_EXITED and report.reason is not None:
        level, template = _EXITED[report.reason]
    who = _identity(report.slot, report.generation, report.pid)
    plural = "" if report.detail == "1" else "s"
    text = template.format(
        r=report, who=who, again=_again(report), stop=_STOP.get(report.detail), s=plural
    )
    return level, text


def burial(slot: int, generation: int, pid: int, buried: Burial) -> None:
    """What became of the tasks that a dead worker held."""
    who = _identity(slot, generation, pid)
    if buried.redelivered:
        logger.warning("%s held %s: given back", who, _tasks(buried.redelivered))
    if buried.dead:
        logger.error("%s held %s: started too often, dead letter", who, _tasks(buried.dead))
    if buried.lost:
        logger.error("%s held %s: acknowledged before, lost", who, _tasks(buried.lost))


def _identity(slot: int | None, generation: int, pid: int) -> str:
    return f"worker={slot} gen={generation}" + (f" pid={pid}" if pid else "")


_STOP = {
    "drain": "stopping: running tasks may finish; a second signal gives them back now",
    "stop": "stopping now: running tasks are given back",
    "kill": "stopping at once: the workers are killed, running tasks are given back",
}

_WORDS = {
    Happening.ZYGOTE_STARTED: (logging.DEBUG, "zygote={r.generation} started"),
    Happening.ZYGOTE_READY: (logging.DEBUG, "zygote={r.generation} loaded the application"),
    Happening.ZYGOTE_EXITED: (logging.ERROR, "zygote={r.generation} {r.status}{again}"),
    Happening.ZYGOTE_STUCK: (logging.ERROR, "zygote={r.generation} {r.detail}: killed"),
    Happening.ZYGOTE_KILLED: (logging.WARNING, "zygote={r.generation} {r.detail}: killed"),
    Happening.PRELOAD_UNSAFE: (
        logging.WARNING,
        (
            "importing the application started threads ({r.detail}): each worker imports it for "
            "itself; --no-preload asks for that from the start"
        ),
    ),
    Happening.ZYGOTE_FAILED: (
        logging.ERROR,
        "zygote={r.generation} failed: {r.detail}; running workers go on{again}",
    ),
    Happening.REFUSED: (logging.CRITICAL, "{r.detail}"),
    Happening.FORK_FAILED: (logging.ERROR, "{who} could not be forked: {r.detail}{again}"),
    Happening.FORK_LOST: (logging.WARNING, "{who} lost: the zygote died before it answered"),
    Happening.STRAY_KILLED: (logging.WARNING, "{who} came to be after it was given up: killed"),
    Happening.WORKER_FORKED: (logging.DEBUG, "{who} forked"),
    Happening.WORKER_READY: (logging.INFO, "{who} ready"),
    Happening.WORKER_DRAINING: (logging.INFO, "{who} drains, on a signal that was not ours"),
    Happening.WORKER_STOPPING: (logging.WARNING, "{who} {r.detail}: gives them back"),
    Happening.WORKER_KILLED: (logging.WARNING, "{who} {r.detail}: killed"),
    Happening.WORKER_EXITED: (logging.INFO, "{who} {r.status}{again}"),
    Happening.POOL_READY: (logging.INFO, "ready: {r.detail} worker{s}"),
    Happening.STOP_REQUESTED: (logging.INFO, "{stop}"),
    Happening.POOL_DRAINING: (logging.INFO, "draining: {r.detail} worker{s}; no task is taken"),
    Happening.STOPPED: (logging.INFO, "stopped"),
}

_EXITED = {
    Reason.CRASH: (logging.ERROR, "{who} {r.status}{again}"),
    Reason.BOOT: (logging.ERROR, "{who} could not start: {r.detail}{again}"),
    Reason.OPERATOR: (logging.INFO, "{who} {r.status}{again}"),
    Reason.STOP: (logging.INFO, "{who} {r.status}"),
}


def _again(report: Report) -> str:
    if report.delay is None:
        return ""
    if report.delay <= 0:
        return "; again at once"
    short = report.delay < 1
    wait = f"{report.delay * 1000:.0f} ms" if short else f"{report.delay:.1f} s"
    often = "restarted too often lately: " if report.quarantined else ""
    return f"; {often}again in {wait}"


def _tasks(task_ids: tuple[str, ...]) -> str:
    shown = ", ".join(task_ids[:5])
    more = f" and {len(task_ids) - 5} more" if len(task_ids) > 5 else ""
    return f"{'task' if len(task_ids) == 1 else 'tasks'} {shown}{more}"
