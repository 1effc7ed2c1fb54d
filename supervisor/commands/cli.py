"""The command line: `taskiq-supervise app:broker` and what there is to ask of a running one.

`run` is the default command, so that the first thing a newcomer types works, and it takes the
options of `taskiq worker` with the same names and meanings. Whatever can be known to be wrong
before a process is started is a usage error (exit status 2) here. Only the commands for people
import rich; the supervisor's own process stays small.
"""

import json
import logging
import sys
from typing import Any

import click

import taskiq_supervise
from taskiq_supervise.supervisor.dead_commands import dead
from taskiq_supervise.supervisor.failure import leave
from taskiq_supervise.supervisor.model import EXIT_FAILED, EXIT_REFUSED
from taskiq_supervise.supervisor.options import RunCommand, application, run_options
from taskiq_supervise.supervisor.queue_commands import queue

EXIT_NOT_RUNNING = 3


class DefaultToRun(click.Group):
    """A group whose first argument is a command, or else the beginning of `run`'s arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version"}
        if not args:
            raise click.UsageError("say which application to run, as module:variable", ctx)
        if args[0] not in self.commands and args[0] not in own:
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "module:broker [MODULES]... [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix=" " * 7)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands, then `run`'s options: most people will look for those."""
        super().format_options(ctx, formatter)
        run = self.commands["run"]
        assert isinstance(run, RunCommand)
        run.format_groups(click.Context(run, ctx, info_name="run"), formatter)


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
      taskiq-supervise status                       who works on what, right now
      taskiq-supervise queue list                   the queues, and what waits in them
      taskiq-supervise dead list default            tasks of a queue that could not be run

    Ctrl-C or SIGTERM lets running tasks finish; a second one gives them back now.

    The options are those of `taskiq worker`, and more; they may come before or after the
    arguments. Each can also be set in the environment, --graceful-timeout for example as
    TASKIQ_SUPERVISE_GRACEFUL_TIMEOUT.
    """


@cli.command(cls=RunCommand, context_settings=CONTEXT)
@application
@run_options
def run(**values: Any) -> None:
    """Start workers for an application and look after them (the default command).

    `module:broker` names a broker, or a function that returns one; MODULES are imported too, for
    the tasks in them. Exit status: 0 stopped as asked, 2 wrong usage, 3 the application cannot be
    loaded, 4 its name or its queue already has a supervisor.
    """
    from taskiq_supervise.supervisor import journal
    from taskiq_supervise.supervisor.options import build
    from taskiq_supervise.supervisor.runtime import AlreadyRunning, Instance, RuntimeDirectoryError
    from taskiq_supervise.supervisor.shell import supervise

    run_, name = build(values)
    journal.configure(run_.config.log_level, run_.config.log_format)
    try:
        instance = Instance.claim(name)
    except AlreadyRunning as error:
        leave(str(error), EXIT_REFUSED)
    except RuntimeDirectoryError as error:
        leave(str(error), EXIT_FAILED)
    try:
        code = supervise(run_, instance)
    except OSError as error:
        logging.getLogger("taskiq_supervise").debug("cannot go on", exc_info=True)
        leave(f"cannot go on: {error}", EXIT_FAILED)
    finally:
        instance.close()
    sys.exit(code)


@cli.command(context_settings=CONTEXT)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
def status(name: str | None, as_json: bool) -> None:
    """Show running instances, their workers, and what each of them runs.

    With NAME only that instance. Exit status: 0 when something runs, 3 when nothing does.
    """
    from taskiq_supervise.supervisor.client import Client, ControlError, NotRunning, statuses
    from taskiq_supervise.supervisor.runtime import RuntimeDirectoryError, runtime_directory

    message = f"no instance is running (looked in {runtime_directory()})"
    try:
        found = statuses() if name is None else [Client(name).status()]
    except NotRunning as error:
        found, message = [], str(error)
    except RuntimeDirectoryError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from None
    except ControlError as error:
        leave(str(error), EXIT_FAILED)
    if as_json:
        click.echo(json.dumps({"instances": found}, indent=2))
    elif found:
        from taskiq_supervise.supervisor.render import show

        show(found)
    else:
        click.echo(message, err=True)
    sys.exit(0 if found else EXIT_NOT_RUNNING)


cli.add_command(dead)
cli.add_command(queue)


def main() -> None:
    """The entry point of the distribution's command."""
    cli(prog_name="taskiq-supervise")
