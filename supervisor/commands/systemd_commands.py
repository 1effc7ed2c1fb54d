"""`taskiq-supervise systemd`: a unit for a command line, and what to type next.

`print` shows it, `install` puts it where systemd looks. Nothing is started, enabled or stopped:
that is one line for the administrator, and it is shown.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from taskiq_supervise.supervisor.commands.failure import EXIT_NOT_RUNNING, leave
from taskiq_supervise.supervisor.core.model import EXIT_FAILED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from taskiq_supervise.supervisor.commands.queue_visit import F
    from taskiq_supervise.supervisor.unit import Service
    from taskiq_supervise.supervisor.unit_files import Folders

R = TypeVar("R")

_PREFIX = "taskiq-supervise-"
_TEMPLATE = "taskiq-supervise@.service"
_CONFIGURATION = "taskiq-supervise.conf"
_SYSTEM = Path("/")

_user_option = click.option(
    "--user",
    "for_user",
    is_flag=True,
    help="For your own service manager (systemctl --user); needs no root.",
)
_template_option = click.option(
    "--template",
    is_flag=True,
    help="taskiq-supervise@.service instead: its instance NAME runs what is in "
    "/etc/taskiq-supervise/NAME.toml (with --user in ~/.config).",
)
_force_option = click.option("--force", is_flag=True, help="Even if it was changed by hand.")
_root_option = click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=_SYSTEM,
    metavar="FOLDER",
    help="Files go below FOLDER, for a package or an image.",
)


@click.group()
def systemd() -> None:
    """Have systemd start the workers and look after them.

    \b
      taskiq-supervise systemd print app:broker --workers 4
      sudo /srv/shop/.venv/bin/taskiq-supervise systemd install app:broker --workers 4
      taskiq-supervise systemd install --user app:broker
      sudo /srv/shop/.venv/bin/taskiq-supervise systemd uninstall app-broker

    The unit runs this very program, in the current folder, with the options that are given.
    """


class _UnitCommand(click.Command):
    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS]", "[module:broker [MODULES]...] [OPTIONS of run]"]


# An option that is not ours is one of the service's.
_PASSING_ON = {"ignore_unknown_options": True}


def _unit_options(command: F) -> F:
    for option in (
        click.argument("arguments", nargs=-1, type=click.UNPROCESSED),
        click.option(
            "--systemd-version",
            type=click.IntRange(min=252),
            metavar="N",
            show_default="this machine's",
            help="Use what systemd has from N on.",
        ),
        click.option(
            "--dynamic-user",
            is_flag=True,
            help="A user that exists only while the service runs.",
        ),
        click.option(
            "--run-as",
            metavar="USER[:GROUP]",
            show_default="the owner of the current folder, or taskiq-supervise where it is root",
            help="Whose processes they are.",
        ),
        _template_option,
        _user_option,
    ):
        command = option(command)
    return command


@systemd.command("print", cls=_UnitCommand, context_settings=_PASSING_ON)
@_unit_options
@click.pass_context
def print_unit(ctx: click.Context, /, **values: Any) -> None:
    """Print the unit for a command line; nothing is written."""
    from taskiq_supervise.supervisor.unit import render

    asked = _asked(ctx, **values)
    click.echo(_done(lambda: render(asked)), nl=False)


@systemd.command(cls=_UnitCommand, context_settings=_PASSING_ON)
@_unit_options
@_force_option
@click.option("--daemon-reload", is_flag=True, help="Run systemctl daemon-reload afterwards.")
@_root_option
@click.pass_context
def install(
    ctx: click.Context,
    /,
    force: bool,
    daemon_reload: bool,
    root: Path,
    template: bool,
    **values: Any,
) -> None:
    """Write the unit for a command line to where systemd looks, and say what to type next.

    Another time, with other options, it replaces what it wrote. What was changed by hand since is
    left alone, unless --force is given; changes are better kept in drop-ins (systemctl edit).
    Nothing is enabled, started or restarted.
    """
    from taskiq_supervise.supervisor import unit, unit_files
    from taskiq_supervise.supervisor.commands.systemd_service import closed_folders

    asked = _asked(ctx, template=template, **values)
    name = _TEMPLATE if template else f"{_PREFIX}{asked.name}.service"
    folders = _folders(asked.for_user, root)
    files = {folders.units / name: _done(lambda: unit.render(asked))}
    if folders.sysusers and folders.tmpfiles and unit.ACCOUNT in {asked.account, asked.group}:
        files[folders.sysusers / _CONFIGURATION] = unit.sysusers()
        files[folders.tmpfiles / _CONFIGURATION] = unit.tmpfiles()
    written = _done(lambda: unit_files.install(files, force=force))
    for path in files:
        click.echo(f"{'wrote' if path in written else 'unchanged:'} {path}")
    if daemon_reload:
        _daemon_reload(asked.for_user)
    for folder in closed_folders(asked):
        who = asked.account or "a dynamic user"
        click.echo(f"warning: {who} may not enter {folder}, where it has to go", err=True)
    click.echo()
    for line in _next_steps(
        asked, name, needs_reload=not daemon_reload, has_account=len(files) > 1
    ):
        click.echo(line)


@systemd.command()
@_user_option
@_template_option
@_force_option
@_root_option
@click.argument("name", required=False)
def uninstall(for_user: bool, template: bool, force: bool, root: Path, name: str | None) -> None:
    """Remove what `install` wrote for the instance NAME.

    Its queue, its configuration and its drop-ins stay. What is enabled has to be disabled first.
    Exit status: 0 removed, 1 refused, 3 there is none.
    """
    from taskiq_supervise.supervisor import unit_files
    from taskiq_supervise.supervisor.runtime import is_instance_name

    if template == (name is not None):
        raise click.UsageError("say which: the NAME of an instance, or --template")
    instance = (name or "").removesuffix(".service").removeprefix(_PREFIX)
    if not template and not is_instance_name(instance):
        raise click.BadParameter(f"{name!r} cannot be the name of an instance", param_hint="NAME")
    unit_name = _TEMPLATE if template else f"{_PREFIX}{instance}.service"
    folders, manager = _folders(for_user, root), _systemctl(for_user)
    enabled = _enabled(folders.units, unit_name)
    if enabled and not force:
        leave(f"it is enabled; first: {manager} disable --now {' '.join(enabled)}", EXIT_FAILED)
    removed = _done(lambda: unit_files.uninstall([folders.units / unit_name], force=force))
    if not removed:
        leave(f"there is no {folders.units / unit_name}", EXIT_NOT_RUNNING)
    if folders.sysusers and folders.tmpfiles and not any(folders.units.glob("taskiq-supervise*")):
        shared = [folder / _CONFIGURATION for folder in (folders.sysusers, folders.tmpfiles)]
        removed += _done(lambda: unit_files.uninstall(shared, force=force))
    for path in removed:
        click.echo(f"removed {path}")
    click.echo(f"\nNext:\n  {manager} daemon-reload")


def _asked(
    ctx: click.Context,
    *,
    for_user: bool,
    template: bool,
    run_as: str | None,
    dynamic_user: bool,
    systemd_version: int | None,
    arguments: tuple[str, ...],
) -> Service:
    """Leaves when it makes no sense."""
    from taskiq_supervise.supervisor.commands import systemd_service as its
    from taskiq_supervise.supervisor.unit import ACCOUNT

    if (run_as is not None) + for_user + dynamic_user > 1:
        raise click.UsageError("--user, --run-as and --dynamic-user exclude each other")
    account, group = _account(run_as)
    if account is None and not dynamic_user:
        account = None if template else its.owner(its.current_folder())
        if account is None:
            account = group = ACCOUNT
    version = systemd_version or its.systemd_version()
    if not template:
        return its.service(
            ctx, arguments, for_user=for_user, systemd=version, account=account, group=group
        )
    if arguments:
        raise click.UsageError("--template: the options are in the file of each instance")
    return its.template(for_user=for_user, systemd=version, account=account, group=group)


def _account(run_as: str | None) -> tuple[str | None, str | None]:
    if run_as is None:
        return None, None
    account, _, group = run_as.partition(":")
    if not account:
        raise click.BadParameter(f"{run_as!r} has no user", param_hint="--run-as")
    return account, group or None


def _folders(for_user: bool, root: Path) -> Folders:
    from taskiq_supervise.supervisor.unit_files import Folders

    if not for_user:
        return Folders.of_the_system(root.absolute())
    if root != _SYSTEM:
        raise click.UsageError("--root is for units of the system")
    return Folders.of_the_user(os.environ, Path.home())


def _enabled(units: Path, name: str) -> list[str]:
    """Units of that file that some target wants."""
    pattern = name.replace("@.", "@*.")
    return sorted({path.name for path in units.glob(f"*.wants/{pattern}") if path.is_symlink()})


def _systemctl(for_user: bool) -> str:
    return "systemctl --user" if for_user else "sudo systemctl"


def _daemon_reload(for_user: bool) -> None:
    command = ["systemctl", *(["--user"] if for_user else []), "daemon-reload"]
    try:
        done = subprocess.run(command, check=False)
    except OSError as error:
        leave(f"systemctl cannot be run: {error.strerror}", EXIT_FAILED)
    if done.returncode != 0:
        leave(f"{shlex.join(command)} failed", EXIT_FAILED)


def _next_steps(
    asked: Service, name: str, *, needs_reload: bool, has_account: bool
) -> Iterator[str]:
    """Lines to be copied."""
    from taskiq_supervise.supervisor.unit import queue_directory

    manager, root = _systemctl(asked.for_user), "" if asked.for_user else "sudo "
    instance = "NAME" if name == _TEMPLATE else asked.name
    started = name.replace("@", f"@{instance}")
    yield "Next:"
    if name == _TEMPLATE:
        folder = "~/.config" if asked.for_user else "/etc"
        yield f"  write {folder}/taskiq-supervise/{instance}.toml, with app and app-dir"
    if has_account:
        yield f"  sudo systemd-sysusers {_CONFIGURATION}"
        yield f"  sudo systemd-tmpfiles --create {_CONFIGURATION}"
    if needs_reload:
        yield f"  {manager} daemon-reload"
    yield f"  {manager} enable --now {started}"
    if asked.for_user:
        yield "  loginctl enable-linger"
    yield "Then:"
    yield f"  {root}{shlex.join(asked.program)} status {instance}"
    yield f"  {root}journalctl {'--user ' if asked.for_user else ''}-u {started}"
    yield f"  {manager} reload {started}"
    clients = asked.account or "services with the same dynamic user"
    runtime = "/run"
    if asked.for_user:
        clients, runtime = "you", os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    queues = queue_directory(asked).replace("%t", runtime).replace("%i", instance)
    yield f"Clients run as {clients}, with"
    yield f"  TASKIQ_SUPERVISE_QUEUE_DIR={queues}"


def _done(action: Callable[[], R]) -> R:
    """What goes wrong is one line."""
    from taskiq_supervise.supervisor.unit_files import FileRefused
    from taskiq_supervise.supervisor.unit_syntax import UnitError

    try:
        return action()
    except (FileRefused, UnitError) as error:
        leave(str(error), EXIT_FAILED)
    except PermissionError as error:
        folder = Path(str(error.filename)).parent
        leave(
            f"{folder} is not yours to write to: take sudo, or --user for a unit of your own",
            EXIT_FAILED,
        )
    except OSError as error:
        leave(str(error), EXIT_FAILED)
