"""What a unit is to say: this environment, this folder, and the command line that was given."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from taskiq_supervise.supervisor import unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from taskiq_supervise.supervisor.plan import Plan

_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
"""What ProtectHome= hides. systemd.exec(5)."""
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SCRIPT = "taskiq-supervise"
_SHORTEST_START = 300.0
_SHORTEST_STOP = 90.0
_LEEWAY = 60.0
"""Seconds beyond what our own limits add up to: systemd steps in when those have failed."""


def template(*, for_user: bool, systemd: int, account: str | None, group: str | None) -> Service:
    """The unit whose instances are files, for this environment."""
    start = program()
    return unit.template(
        start,
        for_user=for_user,
        systemd=systemd,
        account=account,
        group=group,
        environment=_paths(start),
        reads_homes=_reads_homes(for_user, ()),
    )


def service(
    ctx: click.Context,
    arguments: tuple[str, ...],
    *,
    for_user: bool,
    systemd: int,
    account: str | None,
    group: str | None,
) -> Service:
    """A unit for the command line `arguments`, which is checked as `run` would check it."""
    plan, is_named = _plan(ctx, arguments)
    start, here = program(), current_folder()
    return unit.Service(
        name=plan.name,
        program=start,
        arguments=arguments if is_named else (*arguments, "--name", plan.name),
        description=f"taskiq workers: {', '.join(pool.config.app for pool in plan.pools)}",
        for_user=for_user,
        directory=str(here),
        account=account,
        group=group,
        environment={**_paths(start), **_options_of_the_environment()},
        reads_homes=_reads_homes(for_user, (here,)),
        start_timeout=_start_timeout(plan),
        stop_timeout=max(_SHORTEST_STOP, _drain(plan) + _LEEWAY),
        systemd=systemd,
    )


Service = unit.Service


def systemd_version() -> int:
    """Of this machine, or the oldest that the units are for."""
    if shutil.which("systemctl") is None:
        return unit.OLDEST_SYSTEMD
    done = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=False)
    found = re.match(r"systemd (\d+)", done.stdout)
    return unit.OLDEST_SYSTEMD if found is None else int(found[1])


def program() -> tuple[str, ...]:
    """How this very program is started; links that lead to it are left as they are."""
    beside = Path(sys.executable).parent / _SCRIPT
    for candidate in (beside, Path(sys.argv[0]).absolute()):
        if candidate.name == _SCRIPT and candidate.is_file() and os.access(candidate, os.X_OK):
            return (str(candidate),)
    return (sys.executable, "-m", "taskiq_supervise")


def current_folder() -> Path:
    """By the name it was gone to: a link to the current release stays one."""
    given, real = Path(os.environ.get("PWD", "")), Path.cwd()
    is_it = given.is_absolute() and given.is_dir() and given.samefile(real)
    return given if is_it else real


def owner(folder: Path) -> str | None:
    """None: root, or somebody without a name."""
    uid = folder.stat().st_uid
    try:
        return None if uid == 0 else pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def closed_folders(asked: Service) -> list[Path]:
    """Folders on the way to the program and the application that its user may not enter."""
    if asked.for_user or asked.account == "root":
        return []
    uid, gids = _identity(asked.account)
    places = [*_environment(), *([Path(asked.directory)] if asked.directory else [])]
    ways = dict.fromkeys(folder for place in places for folder in reversed(place.parents))
    ways.update(dict.fromkeys(place for place in places if place.is_dir()))
    return [folder for folder in ways if not _may_enter(folder.stat(), uid, gids)]


def _identity(account: str | None) -> tuple[int | None, set[int]]:
    """Unknown for a user that does not exist yet."""
    try:
        its = pwd.getpwnam(account or "")
    except KeyError:
        return None, set()
    return its.pw_uid, set(os.getgrouplist(its.pw_name, its.pw_gid)) | {
        group.gr_gid for group in grp.getgrall() if its.pw_name in group.gr_mem
    }


def _may_enter(found: os.stat_result, uid: int | None, gids: set[int]) -> bool:
    if found.st_uid == uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid in gids:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)


def _environment() -> Iterator[Path]:
    """The program, its interpreter (uv and pyenv keep them in home folders), and this package."""
    yield Path(program()[0])
    yield Path(sys.executable).resolve()
    yield Path(unit.__file__).resolve()


def _reads_homes(for_user: bool, places: tuple[Path, ...]) -> bool:
    if for_user:
        return False
    every = [form for place in (*places, *_environment()) for form in (place, place.resolve())]
    return any(home in (form, *form.parents) for home in _HOMES for form in every)


def _paths(start: tuple[str, ...]) -> dict[str, str]:
    """Tasks find the programs of a virtual environment, as when it is activated."""
    if sys.prefix == sys.base_prefix:
        return {}
    return {"PATH": f"{Path(start[0]).parent}:{_SYSTEM_PATH}", "VIRTUAL_ENV": sys.prefix}


def _options_of_the_environment() -> dict[str, str]:
    """Options that this call was given by its environment."""
    from taskiq_supervise.supervisor.commands.cli import cli

    options = [its for its in cli.commands["run"].params if isinstance(its.envvar, list)]
    names = [name for option in options for name in option.envvar or ()]
    return {name: os.environ[name] for name in names if name in os.environ}


def _plan(ctx: click.Context, arguments: tuple[str, ...]) -> tuple[Plan, bool]:
    """What would be run, and whether the command line itself says the instance's name."""
    from taskiq_supervise.supervisor.commands.cli import cli, plan_for

    words = list(arguments[1:] if arguments[:1] == ("run",) else arguments)
    with cli.commands["run"].make_context(ctx.info_name, words, parent=ctx.parent) as its:
        if its.params["check_config"]:
            raise click.UsageError("--check-config starts nothing that could be a service", ctx)
        is_named = its.get_parameter_source("name") is ParameterSource.COMMANDLINE
        return plan_for(its, its.params), is_named


def _start_timeout(plan: Plan) -> float | None:
    """Long enough for a start and for a reload; None: as long as it takes."""
    boot = 0.0
    for pool in plan.pools:
        if pool.settings.boot_timeout is None:
            return None
        boot = max(boot, pool.settings.boot_timeout)
    return max(_SHORTEST_START, 2 * boot + _drain(plan) + _LEEWAY)


def _drain(plan: Plan) -> float:
    return max(pool.settings.graceful_timeout + pool.settings.stop_timeout for pool in plan.pools)
