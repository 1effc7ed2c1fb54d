"""The command line: `taskiq-supervise app:broker` and what there is to ask of a running one.

`run` is the default command, so that the first thing a newcomer types works, and it takes the
options of `taskiq worker` with the same names and meanings. Whatever can be known to be wrong
before a process is started is a usage error (exit status 2) here. Only the commands for people
import rich; the supervisor's own process stays small.
"""

from __future__ import annotations

import difflib
import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

import taskiq_supervise
from taskiq_supervise.supervisor.commands.control_commands import reload, scale
from taskiq_supervise.supervisor.commands.dead_commands import dead
from taskiq_supervise.supervisor.commands.failure import EXIT_NOT_RUNNING, leave
from taskiq_supervise.supervisor.commands.grouped_options import RunCommand
from taskiq_supervise.supervisor.commands.keygen import keygen
from taskiq_supervise.supervisor.commands.options import application, run_options
from taskiq_supervise.supervisor.commands.queue_commands import queue
from taskiq_supervise.supervisor.commands.service import ServiceCommand, Starter
from taskiq_supervise.supervisor.commands.systemd_commands import systemd
from taskiq_supervise.supervisor.core.model import EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE
from taskiq_supervise.supervisor.probes import PROBES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskiq_supervise.supervisor.plan import Plan


class DefaultToRun(click.Group):
    """A group whose first argument is a command, or else the beginning of `run`'s arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version"}
        first = args[0] if args else "-"
        if first not in self.commands and first not in own:
            if not first.startswith("-") and ":" not in first:
                raise click.UsageError(_unknown(first, self.commands), ctx)
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[module:broker [MODULES]...] [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix=" " * 7)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands, then `run`'s options: most people will look for those."""
        super().format_options(ctx, formatter)
        run = self.commands["run"]
        assert isinstance(run, RunCommand)
        run.format_groups(click.Context(run, ctx, info_name="run"), formatter)


def _unknown(word: str, commands: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(commands), n=1)
    return (
        f"{word!r} is neither a command nor an application written as module:variable, "
        f"for example {f'{word}:broker' if not close else close[0]}"
    )


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=DefaultToRun, context_settings=CONTEXT)
@click.version_option(taskiq_supervise.__version__, prog_name="taskiq-supervise")
def cli() -> None:
    """Run taskiq workers like a real service.

    Starts workers for the taskiq broker `broker` in `module`, replaces those that die, gives their
    tasks back to the queue, and stops without losing any.

    \b
      taskiq-supervise app:broker                   two workers for `broker` in app.py
      taskiq-supervise app:broker app.tasks -w 4    four; import app/tasks.py for its tasks too
      taskiq-supervise                              what taskiq-supervise.toml says
      taskiq-supervise status                       who works on what, right now
      taskiq-supervise reload --wait                replace the workers, for new code
      taskiq-supervise scale +1                     one more worker
      taskiq-supervise queue list                   the queues, and what waits in them
      taskiq-supervise dead list default            tasks of a queue that could not be run
      taskiq-supervise systemd install app:broker   a unit, so that it starts with the machine

    Ctrl-C or SIGTERM lets running tasks finish; a second one gives them back now.

    The options are those of `taskiq worker`, and more; they may come before or after the
    arguments. Each can also be set in the environment, --graceful-timeout for example as
    TASKIQ_SUPERVISE_GRACEFUL_TIMEOUT, and in taskiq-supervise.toml as graceful-timeout.
    """


@cli.command(cls=ServiceCommand, context_settings=CONTEXT)
@application
@run_options
@click.pass_context
def run(ctx: click.Context, /, **values: Any) -> None:
    """Start workers for an application and look after them (the default command).

    `module:broker` names a broker, or a function that returns one; MODULES are imported too, for
    the tasks in them. Both may stand in the configuration file. Exit status: 0 stopped as asked, 2
    wrong usage, 3 the application cannot be loaded, 4 its name, its queue, or an
    address that it listens to already has a supervisor, or the address of --http is taken.
    """
    plan = plan_for(ctx, values)
    if values["check_config"]:
        _describe(plan)
        return
    from taskiq_supervise.supervisor import journal
    from taskiq_supervise.supervisor.http import CannotListen
    from taskiq_supervise.supervisor.runtime import AlreadyRunning, Instance, RuntimeDirectoryError
    from taskiq_supervise.supervisor.shell import supervise
    from taskiq_supervise.supervisor.watching import WatchError

    journal.configure(plan.log_level, plan.log_format, plan.log_style)
    if values["max_fails"] > 0:
        journal.logger.warning("--max-fails has no effect: failing workers are never given up")
    try:
        instance = Instance.claim(plan.name)
    except AlreadyRunning as error:
        leave(str(error), EXIT_REFUSED)
    except RuntimeDirectoryError as error:
        leave(str(error), EXIT_FAILED)
    starter: Starter = ctx.obj
    try:
        code = supervise(plan, instance, starter.notifier, starter.watchdog)
    except CannotListen as error:
        leave(str(error), EXIT_REFUSED if error.is_taken else EXIT_FAILED, error.errno)
    except WatchError as error:
        leave(str(error), EXIT_FAILED)
    except OSError as error:
        journal.logger.debug("cannot go on", exc_info=True)
        leave(f"cannot go on: {error}", EXIT_FAILED, error.errno or 0)
    except Exception as error:
        journal.logger.critical("the supervisor failed", exc_info=True)
        leave(f"failed, by a mistake of its own: {type(error).__name__}: {error}", EXIT_FAILED)
    finally:
        instance.close()
    sys.exit(code)


def plan_for(ctx: click.Context, values: dict[str, Any]) -> Plan:
    """What `run` was asked for, here and in the configuration file. Leaves when it is wrong."""
    from taskiq_supervise.supervisor.commands.configuration import ConfigurationError, load
    from taskiq_supervise.supervisor.commands.planning import PlanError, build

    said = {ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT}
    given = {
        name
        for name, value in values.items()
        if ctx.get_parameter_source(name) in said and value not in (None, ())
    }
    try:
        configuration = None if values["no_config"] else load(ctx, values["config"])
        return build(values, configuration, given)
    except ConfigurationError as error:
        leave(str(error), EXIT_USAGE)
    except PlanError as error:
        raise click.UsageError(str(error), ctx) from None


PROBE_TIMEOUT = 2.0
"""Seconds for an answer: who asks may ask once a second."""


def _describe(plan: Plan) -> None:
    click.echo(f"instance {plan.name}")
    for pool in plan.pools:
        its = pool.settings
        workers = f"{its.workers} worker{'' if its.workers == 1 else 's'}"
        if its.min_workers is not None:
            workers += f", {its.min_workers} to {its.max_workers}"
        click.echo(f"{f'pool {pool.name}: ' if pool.name else ''}{pool.config.app}, {workers}")


@cli.command(context_settings=CONTEXT)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
@click.option(
    "--probe",
    type=click.Choice(PROBES),
    help="For orchestrators: whether it lives, or takes tasks, in one line and an exit status.",
)
def status(name: str | None, as_json: bool, probe: str | None) -> None:
    """Show running instances, their workers, and what each of them runs.

    With NAME only that instance. Exit status: 0 when something runs, 3 when nothing does; with
    --probe 0 for yes, 1 for no.
    """
    from taskiq_supervise.supervisor.client import (
        TIMEOUT,
        Client,
        ControlError,
        NotRunning,
        statuses,
    )
    from taskiq_supervise.supervisor.runtime import RuntimeDirectoryError, places

    if probe is not None and as_json:
        raise click.UsageError("--probe answers in one line, not in JSON")
    patience = TIMEOUT if probe is None else PROBE_TIMEOUT
    message = f"no instance is running (looked in {places()})"
    try:
        found = (
            statuses(timeout=patience)
            if name is None
            else [Client(name, timeout=patience).status()]
        )
    except NotRunning as error:
        found, message = [], str(error)
    except RuntimeDirectoryError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from None
    except ControlError as error:
        leave(str(error), EXIT_FAILED)
    if probe is not None and found:
        _answer_probe(probe, found)
    if as_json:
        click.echo(json.dumps({"instances": found}, indent=2))
    elif found:
        from taskiq_supervise.supervisor.commands.render import show

        show(found)
    else:
        click.echo(message, err=True)
    sys.exit(0 if found else EXIT_NOT_RUNNING)


def _answer_probe(probe: str, found: list[dict[str, Any]]) -> NoReturn:
    """For the first that says no; where several instances run, all have to say yes."""
    verdicts = [(status["name"], PROBES[probe](status)) for status in found]
    name, verdict = next((one for one in verdicts if not one[1].ok), verdicts[0])
    click.echo(f"{name}: {verdict.reason}")
    sys.exit(0 if verdict.ok else EXIT_FAILED)


for _command in (reload, scale, queue, dead, keygen, systemd):
    cli.add_command(_command)


def main() -> None:
    """The entry point of the distribution's command."""
    cli(prog_name="taskiq-supervise")
