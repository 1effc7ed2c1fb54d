"""`run` as a service: who started it learns why it did not come to be, in its own terms.

That is systemd, or what speaks like it. It is told before anything else is done, because from then
on nothing that we start may speak for us: the address is taken out of the environment.
"""

import contextlib
import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import click

from taskiq_supervise.supervisor.commands.failure import Departure
from taskiq_supervise.supervisor.commands.grouped_options import RunCommand
from taskiq_supervise.supervisor.core.model import EXIT_USAGE
from taskiq_supervise.supervisor.notify import Notifier, watchdog_interval
from taskiq_supervise.worker.journald import is_stderr_the_journal


@dataclass(frozen=True)
class Starter:
    """Who started us, and expects to hear."""

    notifier: Notifier
    watchdog: float | None
    """Seconds between signs of life that it asks for."""

    @classmethod
    def take_from(cls, environment: MutableMapping[str, str]) -> "Starter":
        """Raises Departure."""
        watchdog = watchdog_interval(environment)
        try:
            return cls(Notifier.take_from(environment), watchdog)
        except ValueError as error:
            raise Departure(str(error), EXIT_USAGE) from None

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """Of failures, in one line each; the journal has that line alone, too."""
        try:
            yield
        except Departure as failure:
            self.notifier.send_failure(failure.exit_code, failure.message, failure.errno)
            raise
        except click.ClickException as error:
            message = " ".join(error.format_message().split())
            self.notifier.send_failure(error.exit_code, message)
            if is_stderr_the_journal(os.environ):
                # Nobody there reads how to use it.
                raise Departure(message, error.exit_code) from None
            raise


class ServiceCommand(RunCommand):
    """Has a `Starter` as its context's `obj`."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        starter = Starter.take_from(os.environ)
        with starter.hearing():
            return super().make_context(info_name, args, parent, obj=starter, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with ctx.obj.hearing():
            return super().invoke(ctx)
