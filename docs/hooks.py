"""mkdocs hook: puts the commands' own `--help`, and the table of options, into their pages."""

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskiq_supervise.supervisor.commands.grouped_options import GroupedOption

PLACE = re.compile(r"<!-- help: ([a-z ]+) -->")


def help_text(command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "taskiq_supervise", *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "100"},
    )
    return f"```text\n{done.stdout.strip()}\n```"


def options_table() -> str:
    from taskiq_supervise.supervisor.commands.cli import cli
    from taskiq_supervise.supervisor.commands.grouped_options import GroupedOption

    rows = ["| key | default | |", "|---|---|---|"]
    for option in cli.commands["run"].params:
        if isinstance(option, GroupedOption) and option.may_stand(in_pool=False):
            keys = ", ".join(f"`{key}`" for key in option.keys)
            scope = "" if option.may_stand(in_pool=True) else " *Not in a pool.*"
            rows.append(f"| {keys} | {_default(option)} | {option.help}{scope} |")
    return "\n".join(rows)


def _default(option: "GroupedOption") -> str:
    if isinstance(option.show_default, str):
        return option.show_default
    if option.is_flag:
        return "`false`"
    if not option.show_default:
        return ""
    default: Any = option.default
    return f"`{default[0] if option.multiple else default}`"


def on_page_markdown(markdown: str, **_: object) -> str:
    markdown = markdown.replace("<!-- options -->", options_table())
    return PLACE.sub(lambda place: help_text(place[1]), markdown)
