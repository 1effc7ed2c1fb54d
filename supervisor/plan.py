"""What a supervisor was asked to run: one instance, and its pools of workers.

The command line and the configuration file both end in a `Plan`; nothing behind it knows which of
them said what.
"""

from dataclasses import dataclass
from pathlib import Path

from taskiq_supervise.supervisor.core.model import Settings
from taskiq_supervise.worker.config import WorkerConfig


@dataclass(frozen=True)
class PoolPlan:
    """Workers of one kind, for one broker."""

    name: str
    """Unique in the plan; empty for the only pool of a plan without named ones."""
    config: WorkerConfig
    settings: Settings
    max_deliveries: int


@dataclass(frozen=True)
class Watch:
    """Reload when a file changes."""

    folders: tuple[Path, ...]
    gitignore: bool
    """Leave out what .gitignore files name."""


@dataclass(frozen=True)
class Plan:
    name: str
    """Of the instance."""
    pools: tuple[PoolPlan, ...]
    """At least one."""
    log_level: str
    log_format: str
    log_style: str
    """`text`, `json` or `journal`."""
    watch: Watch | None = None
    http: tuple[str, int] | None = None
    """Where health is served; an empty host means all interfaces."""
