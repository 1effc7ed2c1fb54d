"""mkdocs hook: puts the commands' own `--help` into the page that describes them."""

import re
import subprocess
import sys

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


def on_page_markdown(markdown: str, **_: object) -> str:
    return PLACE.sub(lambda place: help_text(place[1]), markdown)
