"""From options to a plan: which value counts where, and whether the values fit together.

What is said on the command line or in the environment counts for every pool; then comes the pool's
own table of the configuration file, then what stands above the tables, then the default.
"""

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from taskiq_supervise.supervisor.commands.configuration import FILE_NAME, Configuration
from taskiq_supervise.supervisor.core.model import Settings
from taskiq_supervise.supervisor.core.policy import RestartPolicy
from taskiq_supervise.supervisor.http import parse_address
from taskiq_supervise.supervisor.plan import Plan, PoolPlan, Watch
from taskiq_supervise.supervisor.runtime import instance_name
from taskiq_supervise.worker.config import WorkerConfig
from taskiq_supervise.worker.journald import SOCKET
from taskiq_supervise.worker.log_handler import has_journal, own_style

N = TypeVar("N", int, float)

# Seconds beyond its own limits that a worker gets to give back and close down before SIGKILL: one
# for the `finally` blocks of its tasks, two for a machine that is busy.
_STOP_MARGIN = 3.0


_SHORTEST_HANG = 2.0


class PlanError(Exception):
    """The options contradict each other, or something is missing; the message says what."""


def build(
    values: Mapping[str, Any],
    configuration: Configuration | None = None,
    given: Collection[str] = (),
) -> Plan:
    """What is to be run. Raises PlanError.

    `values` are those of all parameters of `run`, defaults included; those that are `given`, on the
    command line or in the environment, go before what the configuration file says.
    """
    said = {name: values[name] for name in given}
    top = {} if configuration is None else configuration.top
    tables = {} if configuration is None else configuration.pools
    if values["log_style"] is None:
        values = {**values, "log_style": own_style(os.environ)}
    instance = {**values, **top, **said}
    if configuration is not None and tables and "app" in said:
        raise PlanError(
            f"{configuration.path} has pools ({', '.join(tables)}): leave {said['app']} out to "
            f"start them, or say --no-config to start {said['app']} without that file"
        )
    pools = {name: {**values, **top, **table, **said} for name, table in tables.items()}
    if not pools:
        pools = {"": instance}
    for pool, its in pools.items():
        if its["app"] is None:
            raise PlanError(
                f"{_of(pool)}say which application to run, as module:variable (for example "
                f"app:broker), here or as app in {FILE_NAME}"
            )
    _check_apart(pools)
    if instance["log_style"] == "journal" and not has_journal():
        raise PlanError(f"--log-style journal: systemd's journal is not here, at {SOCKET}")
    name = instance["name"] or _default_name(configuration, pools)
    return Plan(
        name=name,
        pools=tuple(_pool(pool, its, name) for pool, its in pools.items()),
        log_level=instance["log_level"],
        log_format=instance["log_format"],
        log_style=instance["log_style"],
        watch=_watch(instance, pools.values()) if instance["reload"] else None,
        http=None if instance["http"] is None else parse_address(instance["http"]),
    )


def _check_apart(pools: Mapping[str, Mapping[str, Any]]) -> None:
    """One queue has one pool; that two names mean the same queue shows when it is opened."""
    first: dict[tuple[str, Path], str] = {}
    for pool, its in pools.items():
        broker = its["app"], Path(its["app_dir"] or ".").resolve()
        if broker in first:
            raise PlanError(
                f"pools {first[broker]} and {pool} both run {its['app']}; a queue has one pool: "
                "give it the workers of both"
            )
        first[broker] = pool


def _default_name(configuration: Configuration | None, pools: Mapping[str, Any]) -> str:
    if configuration is not None and configuration.pools:
        return instance_name(configuration.path.absolute().parent.name)
    return instance_name(pools[""]["app"])


def _pool(pool: str, values: Mapping[str, Any], instance: str) -> PoolPlan:
    workers, min_workers, max_workers = _sizes(pool, values)
    preload = not values["no_preload"]
    names = {field.name for field in dataclasses.fields(WorkerConfig)} & set(values)
    changed = {
        "workers": workers,
        "instance": instance,
        "pool": pool,
        "preload": preload,
        "task_timeout": _unless_off(values["task_timeout"]),
        "configure_logging": not values["no_configure_logging"],
    }
    for name in ("hang_warn", "hang_timeout"):
        if 0 < values[name] < _SHORTEST_HANG:
            option = f"{_of(pool)}--{name.replace('_', '-')}"
            raise PlanError(
                f"{option} is {values[name]:g} s; a worker shows once a second that its event loop "
                f"turns: give {_SHORTEST_HANG:g} s or more, or 0 for off"
            )
    settings = Settings(
        workers=workers,
        min_workers=min_workers,
        max_workers=max_workers,
        preload=preload,
        boot_timeout=_unless_off(values["boot_timeout"]),
        graceful_timeout=values["graceful_timeout"],
        stop_timeout=values["shutdown_timeout"] + _STOP_MARGIN,
        hang_warn=_unless_off(values["hang_warn"]),
        hang_timeout=_unless_off(values["hang_timeout"]),
        max_tasks=_unless_off(values["max_tasks_per_worker"]),
        max_memory=_unless_off(values["max_memory"]),
        max_lifetime=_unless_off(values["max_lifetime"]),
        recycle_jitter=values["recycle_jitter"],
        hardkill_count=values["hardkill_count"],
        restart=RestartPolicy(pool_limit=max(1000, 100 * max(workers, max_workers or 0))),
    )
    return PoolPlan(
        name=pool,
        config=WorkerConfig(**{**{name: values[name] for name in names}, **changed}),
        settings=settings,
        max_deliveries=values["max_deliveries"],
    )


def _sizes(pool: str, values: Mapping[str, Any]) -> tuple[int, int | None, int | None]:
    """Workers at the start, at least and at most; the last two None for a pool that stays."""
    workers, least, most = (values[name] for name in ("workers", "min_workers", "max_workers"))
    if most == 0 or (least is None and most is None):
        return workers or WorkerConfig.workers, None, None
    if workers is None and most is None:
        raise PlanError(f"{_of(pool)}min-workers needs max-workers, or workers, beside it")
    if least is not None and most is not None and least > most:
        raise PlanError(f"{_of(pool)}min-workers is {least}, more than max-workers, {most}")
    if workers is None:
        workers = min(max(WorkerConfig.workers, least or 0), most)
    if least is not None and workers < least:
        raise PlanError(f"{_of(pool)}workers is {workers}, less than min-workers, {least}")
    if most is not None and workers > most:
        raise PlanError(f"{_of(pool)}workers is {workers}, more than max-workers, {most}")
    return workers, least or workers, most or workers


def _watch(instance: Mapping[str, Any], pools: Collection[Mapping[str, Any]]) -> Watch:
    folders = [Path(folder).resolve() for folder in instance["reload_dir"]]
    if not folders:
        folders = [Path.cwd()]
        own = [Path(its["app_dir"]).resolve() for its in pools if its["app_dir"] is not None]
        folders += [folder for folder in dict.fromkeys(own) if Path.cwd() not in folder.parents]
    return Watch(tuple(dict.fromkeys(folders)), gitignore=not instance["do_not_use_gitignore"])


def _unless_off(limit: N) -> N | None:
    return limit if limit > 0 else None


def _of(pool: str) -> str:
    return f"pool {pool}: " if pool else ""
