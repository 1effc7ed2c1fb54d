"""Options under headings, each of which can come from the environment and a file as well.

The names there are derived from the long ones on the command line, here and nowhere else, so that
none can be forgotten: `--graceful-timeout` is TASKIQ_SUPERVISE_GRACEFUL_TIMEOUT in the environment
and `graceful-timeout` in a configuration file.
"""

from typing import Any

import click


class GroupedOption(click.Option):
    """An option that knows its heading in the help, and its names everywhere else."""

    def __init__(
        self,
        *args: Any,
        group: str,
        instance: bool = False,
        in_file: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.group = group
        self.keys = tuple(dict.fromkeys(_key(name) for name in self.opts if name[:2] == "--"))
        """What it is called in a configuration file."""
        self._instance = instance
        self._in_file = in_file
        self.envvar = [_variable(key) for key in self.keys]
        self.show_envvar = False

    def may_stand(self, *, in_pool: bool) -> bool:
        """In a configuration file: in the table of a pool, or above them for the instance."""
        return self._in_file and not (in_pool and self._instance)


def _key(option: str) -> str:
    return option.removeprefix("--").replace("_", "-")


def _variable(key: str) -> str:
    return "TASKIQ_SUPERVISE_" + key.replace("-", "_").upper()


class RunCommand(click.Command):
    """Shows its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_groups(ctx, formatter)

    def format_groups(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.params:
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, GroupedOption) and record is not None:
                groups.setdefault(parameter.group, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[module:broker [MODULES]...] [OPTIONS]"]
