"""The code in the README and in the documentation runs, and prints what stands below it."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
# These are what this test runs in.
SETUP = ("pip install ", "make ")
# These need root and a running systemd: tests/systemd has one.
SERVICE = ("sudo ", "systemctl ", "journalctl ", "cd /srv/")


@dataclass(frozen=True)
class Block:
    language: str
    title: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    return [
        Block(match["language"], match["title"], match["text"])
        for match in FENCE.finditer(page.read_text())
    ]


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and the output that is shown for it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks(page):
        assert block.language in {"console", "python", "text", "toml"}, block
        assert block.language != "python" or block.title, f"would not be run: {block.text}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.title for block in blocks(page))], ids=name_of
)
def test_the_story_of_a_page_happens_as_told(
    page: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    background: list[subprocess.Popen[bytes]] = []
    try:
        for block in blocks(page):
            if block.title:
                (workdir / block.title).write_text(block.text)
            if block.language == "console":
                for command, output in commands(block):
                    run(command, output, background)
    finally:
        for process in background:
            process.terminate()
        statuses = [process.wait() for process in background]
    assert statuses == [0] * len(background)


def run(command: str, output: str, background: list[subprocess.Popen[bytes]]) -> None:
    if command.startswith((*SETUP, *SERVICE)):
        return
    if command == "taskiq-supervise" or (
        command.startswith("taskiq-supervise ") and ":" in command
    ):
        background.append(subprocess.Popen(command.split()))
        return
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not output or done.stdout == output


def test_the_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{name_of(page)}: {target}"


def test_the_command_line_page_shows_the_commands_own_help() -> None:
    hook = runpy.run_path(str(ROOT / "docs" / "hooks.py"))["on_page_markdown"]
    page = hook((ROOT / "docs" / "cli.md").read_text())
    for word in ("--workers", "--graceful-timeout", "--json", "--wait", "--pool"):
        assert word in page


def test_the_configuration_page_shows_every_key() -> None:
    hook = runpy.run_path(str(ROOT / "docs" / "hooks.py"))["on_page_markdown"]
    page = hook((ROOT / "docs" / "configuration.md").read_text())
    assert "| `graceful-timeout`, `wait-tasks-timeout` | `30s` | For running tasks" in page
    assert "| `hardkill-count` | `3` |" in page
    assert "*Not in a pool.*" in page
    assert "`check-config`" not in page
