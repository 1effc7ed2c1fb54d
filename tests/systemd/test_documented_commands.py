"""Each command that README.md and docs/systemd.md tell an administrator to type, in this order.

But for the removal of the service, which comes last.
"""

import re
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from tests.systemd.box import Box
from tests.systemd.installation import install

ROOT = Path(__file__).parents[2]
README, PAGE = ROOT / "README.md", ROOT / "docs" / "systemd.md"
SHOP = "/srv/shop"
UNIT = "taskiq-supervise-app-broker.service"
# root needs none, and machines without it exist.
SUDO = '#!/bin/sh\n[ "$1" = -u ] || exec "$@"\nwho=$2; shift 2\n'
SUDO += 'exec setpriv --reuid "$who" --regid "$who" --init-groups "$@"\n'
# Those are a user's own, tested in test_accounts.py.
OTHERS = ("taskiq-supervise systemd install --user", "systemctl --user", "loginctl")


def section(page: Path, title: str) -> str:
    found = re.search(rf"^## {title}$.*?(?=^## |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[0]


def commands(text: str) -> list[tuple[str, str]]:
    """Each command, and what it is shown to say; blocks that remove something come last."""
    blocks = re.findall(r"^```(?:console|text)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found = []
    for block in sorted(blocks, key=lambda block: "uninstall" in block):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, said = part.partition("\n")
            found.append((command, said))
    return [one for one in found if not one[0].startswith(OTHERS)]


def program(title: str) -> str:
    """A file of README's quickstart."""
    pattern = rf'^```python title="{title}"\n(.*?)^```$'
    found = re.search(pattern, README.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


@pytest.fixture(scope="module")
def shop(box: Box) -> Box:
    box.write("/usr/local/bin/sudo", SUDO, 0o755)
    install(box, f"{SHOP}/.venv")
    for name in ("app.py", "client.py"):
        box.write(f"{SHOP}/{name}", program(name))
    # What a machine does not have on which nothing was installed.
    for path in ("sysusers.d/taskiq-supervise.conf", "tmpfiles.d/taskiq-supervise.conf"):
        box.at(f"/etc/{path}").unlink()
    box.at("/etc/systemd/system/taskiq-supervise@.service").unlink()
    box.run("userdel", "taskiq-supervise")
    box.run("rmdir", "/run/taskiq-supervise")
    return box


def test_each_command_does_what_it_should(shop: Box) -> None:
    told = commands(section(README, "Run it as a service"))
    assert len(told) >= 10
    removal = [one for one in commands(PAGE.read_text()) if one not in told]
    assert any("uninstall" in command for command, _ in removal)
    folder = "/"
    for command, said in (*told, *removal):
        if command.startswith("cd "):
            folder = command.removeprefix("cd ")
            continue
        done = typed(shop, command, folder)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        assert not said or done.stdout == said, command
        if "enable --now" in command:
            state = shop.run("systemctl", "show", UNIT, "-pStatusText", "-pUser").stdout
            assert "StatusText=4 workers ready" in state
            assert "User=taskiq-supervise" in state
    assert not shop.at(f"/etc/systemd/system/{UNIT}").exists()
    assert shop.run("systemctl", "is-active", UNIT, check=False).stdout == "inactive\n"


def test_what_install_says_to_type_next_is_right(shop: Box) -> None:
    """Copied from its output, line by line."""
    done = typed(shop, "sudo .venv/bin/taskiq-supervise systemd install app:broker", SHOP)
    told = re.findall(r"^  (sudo .*)$", done.stdout, re.MULTILINE)
    assert len(told) >= 5, done.stdout
    for command in told:
        its = typed(shop, command, "/")
        assert its.returncode == 0, f"$ {command}\n{its.stdout}{its.stderr}"
    (where,) = re.findall(r"^  (TASKIQ_SUPERVISE_QUEUE_DIR=.*)$", done.stdout, re.MULTILINE)
    client = typed(shop, f"sudo -u taskiq-supervise env {where} .venv/bin/python client.py", SHOP)
    assert client.stdout == "3\n", client.stderr


def test_what_is_printed_is_clean_where_it_will_run(shop: Box) -> None:
    command = ".venv/bin/taskiq-supervise systemd print app:broker --workers 4"
    text = typed(shop, command, SHOP).stdout
    shop.write("/tmp/clean/its.service", text)
    done = shop.run("systemd-analyze", "verify", "/tmp/clean/its.service")
    assert done.stdout + done.stderr == ""


def typed(box: Box, command: str, folder: str) -> CompletedProcess[str]:
    """Into a shell whose virtual environment is active."""
    path = f"/usr/local/bin:{SHOP}/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return box.run("sh", "-c", command, folder=folder, environment={"PATH": path}, check=False)
