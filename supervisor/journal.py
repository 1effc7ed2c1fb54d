"""The log of a supervisor: one line per happening, always with the same identity in front.

`core` reports what happened as values; here they get their words and their level. Whoever greps for
`worker=3 gen=2` finds that worker's whole life and nothing else.
"""

import logging
from collections.abc import Mapping

from taskiq_supervise.ipc import Burial
from taskiq_supervise.supervisor.core.messages import Happening, Report
from taskiq_supervise.supervisor.core.model import LISTENER, Reason
from taskiq_supervise.supervisor.core.transport import Listening, Transport
from taskiq_supervise.worker.log_handler import handler

logger = logging.getLogger("taskiq_supervise")


class _Process(logging.Filter):
    """`%(processName)s` in a format that the workers share."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.processName = "supervisor"
        return True


def configure(level: str, log_format: str, style: str) -> None:
    """Log in the format that the workers use too. style: `text`, `json` or `journal`."""
    output = handler(style, log_format)
    output.addFilter(_Process())
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(level.upper())


class Journal:
    """The log of one pool; `name` is empty where there is only one."""

    def __init__(self, name: str = "") -> None:
        self._pool = f"pool={name} " if name else ""
        self._name = name

    def write(self, report: Report) -> None:
        level, text = render(report)
        self._log(level, text, _facts(report), report.traceback)

    def refusal(self, report: Report) -> str:
        """The last word of a start that failed."""
        return self._pool + report.detail

    def burial(self, slot: int, generation: int, pid: int, buried: Burial) -> None:
        """What became of the tasks that a dead worker held."""
        for tasks, level, fate in (
            (buried.redelivered, logging.WARNING, "given back"),
            (buried.timed_out, logging.ERROR, "ran out of time, ended with an error"),
            (buried.dead, logging.ERROR, "started too often, dead letter"),
            (buried.lost, logging.ERROR, "acknowledged before, lost"),
        ):
            if tasks:
                text = f"held {_tasks(tasks)}: {fate}"
                self._about(level, slot, generation, pid, text, tasks=list(tasks))

    def stacks(self, slot: int, generation: int, pid: int, text: str) -> None:
        shown = text.rstrip("\n")
        self._about(logging.WARNING, slot, generation, pid, f"stands at\n{shown}", stacks=shown)

    def nonsense(self, slot: int, generation: int, message: object) -> None:
        self._about(logging.WARNING, slot, generation, 0, f"said {message!r}")

    def link_ended(self, slot: int, generation: int, reason: str | None) -> None:
        if reason is not None:
            self._about(logging.WARNING, slot, generation, 0, f"said {reason}")

    def queue(self, transport: Transport, counts: Mapping[str, int]) -> None:
        found = ("ready", "delayed", "dead", "capacity")
        self._log(
            logging.INFO,
            "queue {!r} in {}: {} waiting, {} delayed, {} dead, room for {}".format(
                transport.name, transport.directory, *(counts[key] for key in found)
            ),
            {"queue": transport.name},
        )

    def listening(self, listening: Listening, workers: int) -> None:
        """What was enforced, and why."""
        where = f"on {', '.join(listening.endpoints)}" if listening.endpoints else "to its broker"
        whom = "the only worker" if workers == 1 else f"all {workers} workers"
        self._log(
            logging.INFO,
            f"listener: one process listens {where} for {whom}, because of "
            f"{listening.broker} ({listening.reason})",
            {"broker": listening.broker, "endpoints": list(listening.endpoints)},
        )
        for note in listening.notes:
            self._log(logging.WARNING, f"listener: {note}", {"broker": listening.broker})

    def note(self, text: str, level: int = logging.INFO) -> None:
        self._log(level, text, {})

    def _about(
        self, level: int, slot: int, generation: int, pid: int, text: str, **facts: object
    ) -> None:
        who = _identity(slot, generation, pid)
        self._log(level, f"{who} {text}", {**_worker(slot, generation, pid), **facts})

    def _log(
        self, level: int, text: str, facts: Mapping[str, object], trace: str | None = None
    ) -> None:
        extra = {**({"pool": self._name} if self._name else {}), **facts}
        if not logger.isEnabledFor(level):
            return
        record = logger.makeRecord(
            logger.name, level, __file__, 0, "%s%s", (self._pool, text), None, extra=extra
        )
        # Where logging itself keeps the text of an exception that somebody else has formatted.
        record.exc_text = None if trace is None else trace.rstrip("\n")
        logger.handle(record)


def render(report: Report) -> tuple[int, str]:
    """Level and words of a report."""
    level, template = _WORDS[report.what]
    if report.what is Happening.WORKER_EXITED and report.reason is not None:
        level, template = _EXITED[report.reason]
    who = _identity(report.slot, report.generation, report.pid)
    plural = "" if report.detail == "1" else "s"
    text = template.format(
        r=report,
        who=who,
        again=_again(report),
        stop=_STOP.get(report.detail),
        s=plural,
        why="" if report.reason is None else _WHY[report.reason],
    )
    return level, text


def _facts(report: Report) -> dict[str, object]:
    """The same for programs: fields of a line in JSON."""
    facts: dict[str, object] = {"event": report.what.name.lower()}
    if report.slot is not None:
        facts |= _worker(report.slot, report.generation, report.pid)
    elif report.generation:
        facts["zygote"] = report.generation
    if report.reload is not None:
        facts["reload"] = report.reload
    if report.reason is not None:
        facts["reason"] = report.reason.value
    if report.status is not None:
        facts["exit"] = str(report.status)
    if report.delay is not None:
        facts["delay"] = round(report.delay, 3)
    return facts


def _worker(slot: int, generation: int, pid: int) -> dict[str, object]:
    who: dict[str, object] = {"listener": True} if slot == LISTENER else {"worker": slot}
    return {**who, "gen": generation, **({"worker_pid": pid} if pid else {})}


def _identity(slot: int | None, generation: int, pid: int) -> str:
    who = "listener" if slot == LISTENER else f"worker={slot}"
    return f"{who} gen={generation}" + (f" pid={pid}" if pid else "")


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
    Happening.WORKER_HUNG: (
        logging.WARNING,
        "{who} hangs: its event loop has been blocked for {r.detail} s",
    ),
    Happening.WORKER_RECOVERED: (
        logging.WARNING,
        "{who} goes on: its event loop was blocked for {r.detail} s",
    ),
    Happening.WORKER_STOPPED: (
        logging.WARNING,
        "{who} was stopped by a signal: what it runs stands still until a SIGCONT",
    ),
    Happening.WORKER_CONTINUED: (logging.WARNING, "{who} was continued"),
    Happening.WORKER_OVERDUE: (
        logging.ERROR,
        "{who} ran into a hard time limit, with {r.detail}: replaced",
    ),
    Happening.WORKER_WORN: (logging.INFO, "{who} {r.detail}: to be recycled"),
    Happening.WORKER_REPLACED: (logging.INFO, "{who} drains: {why}; its successor is ready"),
    Happening.RELOAD_STARTED: (logging.INFO, "reload {r.reload}: importing the new code"),
    Happening.RELOAD_DONE: (logging.INFO, "reload {r.reload} done: {r.detail} worker{s}"),
    Happening.RELOAD_FAILED: (
        logging.ERROR,
        "reload {r.reload} rolled back, the old code goes on: {r.detail}",
    ),
    Happening.RELOAD_ENDED: (logging.INFO, "reload {r.reload}: nothing is left of the new code"),
    Happening.SCALED: (logging.INFO, "scaled {r.detail}"),
    Happening.SCALE_REFUSED: (logging.ERROR, "stays at one worker: {r.detail}"),
    Happening.POOL_READY: (logging.INFO, "ready: {r.detail} worker{s}"),
    Happening.STOP_REQUESTED: (logging.INFO, "{stop}"),
    Happening.POOL_DRAINING: (logging.INFO, "draining: {r.detail} worker{s}; no task is taken"),
    Happening.STOPPED: (logging.INFO, "stopped"),
}

_EXITED = {
    Reason.CRASH: (logging.ERROR, "{who} {r.status}{again}"),
    Reason.BOOT: (logging.ERROR, "{who} could not start: {r.detail}{again}"),
    Reason.OOM: (logging.ERROR, "{who} {r.status}: out of memory{again}"),
    Reason.HANG: (logging.ERROR, "{who} {r.status}: its event loop was blocked{again}"),
    Reason.TIMEOUT: (logging.WARNING, "{who} {r.status}: a task ran out of time{again}"),
    Reason.OPERATOR: (logging.INFO, "{who} {r.status}{again}"),
    Reason.RECYCLE: (logging.INFO, "{who} {r.status}: recycled"),
    Reason.RELOAD: (logging.INFO, "{who} {r.status}: reload"),
    Reason.SCALE: (logging.INFO, "{who} {r.status}: scaled down"),
    Reason.STOP: (logging.INFO, "{who} {r.status}"),
}

_WHY = {
    Reason.CRASH: "it crashed",
    Reason.BOOT: "it did not start",
    Reason.OOM: "out of memory",
    Reason.HANG: "its event loop is blocked",
    Reason.TIMEOUT: "a task ran out of time",
    Reason.OPERATOR: "somebody told it to",
    Reason.RECYCLE: "it is recycled",
    Reason.RELOAD: "reload",
    Reason.SCALE: "the pool shrinks",
    Reason.STOP: "the supervisor stops",
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
