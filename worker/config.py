"""What a worker is told: the options of `taskiq worker`, with the same names and meanings.

It travels from the supervisor to the zygote as JSON, and is read by both, so this module imports
nothing of taskiq.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOG_FORMAT = "[%(asctime)s][%(name)s][%(levelname)-7s][%(processName)s] %(message)s"
LOG_STYLES = ("text", "json", "journal")
LOG_LEVELS = ("CRITICAL", "FATAL", "ERROR", "WARNING", "WARN", "INFO", "DEBUG", "NOTSET")
LONGEST = 2.0**33
"""Seconds, 272 years: the longest time that anything may be said to last."""
TRANSPORTS = ("shm", "zmq")
ACK_TYPES = ("when_received", "when_executed", "when_saved", "manual")


class ConfigError(ValueError):
    """An option has a value that it cannot have."""


@dataclass(frozen=True)
class WorkerConfig:
    """How to import the application, and how each of its workers runs tasks."""

    app: str
    """`module:variable` of a broker, or of a function that returns one."""
    modules: tuple[str, ...] = ()
    """Modules to import for the tasks in them."""
    app_dir: str | None = None
    """Goes to the front of `sys.path`."""
    tasks_pattern: tuple[str, ...] = ("**/tasks.py",)
    fs_discover: bool = False
    log_level: str = "INFO"
    log_format: str = LOG_FORMAT
    log_style: str = "text"
    configure_logging: bool = True
    max_async_tasks: int = 100
    """Tasks that run at the same time in one worker; 0 or less: any number."""
    max_async_tasks_jitter: int = 0
    max_prefetch: int = 0
    """Messages taken beyond that; not from shared memory, where a claim costs microseconds."""
    max_threadpool_threads: int | None = None
    use_process_pool: bool = False
    max_process_pool_processes: int | None = None
    no_parse: bool = False
    no_propagate_errors: bool = False
    ack_type: str = "when_saved"
    shutdown_timeout: float = 5.0
    """Seconds that `broker.shutdown()` may take."""
    task_timeout: float | None = None
    """Seconds after which a task's worker is replaced; label `hard_timeout` says otherwise."""
    nice: int = 0
    pin: bool = False
    """Each worker runs on one CPU, in turn."""
    receiver: str = "taskiq.receiver:Receiver"
    receiver_arg: tuple[tuple[str, str], ...] = ()
    workers: int = 2
    instance: str = ""
    pool: str = ""
    """Empty for the only one of an instance."""
    single_listener: bool | None = None
    """One process listens to the broker, for all workers; None: where it has to be so."""
    transport: str = "shm"
    """What lies between such a process and the workers: shared memory, or ZeroMQ."""
    preload: bool = True
    """The zygote imports the application once; else each worker does it for itself."""

    def __post_init__(self) -> None:
        if self.log_level.upper() not in LOG_LEVELS:
            raise ConfigError(
                f"log_level is {self.log_level!r}, not one of {', '.join(LOG_LEVELS)}"
            )
        if self.log_style not in LOG_STYLES:
            raise ConfigError(
                f"log_style is {self.log_style!r}, not one of {', '.join(LOG_STYLES)}"
            )
        if self.ack_type.lower() not in ACK_TYPES:
            raise ConfigError(f"ack_type is {self.ack_type!r}, not one of {', '.join(ACK_TYPES)}")
        if self.transport not in TRANSPORTS:
            raise ConfigError(
                f"transport is {self.transport!r}, not one of {', '.join(TRANSPORTS)}"
            )
        for name in ("max_prefetch", "max_async_tasks_jitter", "shutdown_timeout"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, less than 0")
        if self.task_timeout is not None and not 0 < self.task_timeout < LONGEST:
            raise ConfigError(
                f"task_timeout is {self.task_timeout}, not a number of seconds above 0"
            )
        if not -20 <= self.nice <= 19:
            raise ConfigError(f"nice is {self.nice}, not from -20 to 19")
        if self.pin and self.use_process_pool:
            raise ConfigError("pin and use_process_pool: the pool would share one CPU")
        for name in ("workers", "max_threadpool_threads", "max_process_pool_processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, less than 1")

    def to_dict(self) -> dict[str, Any]:
        """For JSON; tuples become lists there."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "WorkerConfig":
        """The reverse of `to_dict`, after JSON too. An unknown key is a ConfigError."""
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ConfigError(f"unknown options: {', '.join(sorted(unknown))}")
        changed = {key: tuple(values[key]) for key in ("modules", "tasks_pattern") if key in values}
        if "receiver_arg" in values:
            changed["receiver_arg"] = tuple((key, value) for key, value in values["receiver_arg"])
        return cls(**{**values, **changed})
