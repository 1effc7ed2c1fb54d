"""`taskiq-supervise systemd`: what is written, where, and what is left alone."""

import os
import pwd
import re
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.systemd.reading import needs_analyze, needs_manager, read, verify

from taskiq_supervise.supervisor.commands import systemd_service
from taskiq_supervise.supervisor.commands.cli import cli
from taskiq_supervise.supervisor.unit_files import is_unchanged

UNIT = "etc/systemd/system/taskiq-supervise-app-broker.service"
SYSUSERS, TMPFILES = "etc/sysusers.d/taskiq-supervise.conf", "etc/tmpfiles.d/taskiq-supervise.conf"


def call(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, ["systemd", *arguments], env=environment)


def printed(*arguments: str, **environment: str) -> str:
    done = call("print", *arguments, **environment)
    assert done.exit_code == 0, done.output
    return done.stdout


def setting(text: str, name: str) -> str:
    found = re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)
    assert len(found) == 1, text
    return str(found[0])


@pytest.fixture(autouse=True)
def folder(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one, of root or of whoever runs the tests."""
    monkeypatch.delenv("PWD", raising=False)
    return workdir


# --- print ----------------------------------------------------------------------------------------


@needs_manager
def test_the_unit_runs_this_environment_here_with_these_options(folder: Path) -> None:
    text = printed("app:broker", "app.tasks", "-w", "4", "--receiver-arg", 'a=b "c" %d', "-fsd")
    its = read(text.replace("Type=notify\n", ""))
    script = Path(sys.executable).parent / "taskiq-supervise"
    assert its.command[0] == str(script)
    assert its.command[1:] == [
        *("app:broker", "app.tasks", "-w", "4", "--receiver-arg", 'a=b "c" %d', "-fsd"),
        *("--name", "app-broker"),
    ]
    assert its.directory == str(folder)
    assert setting(text, "ExecReload") == f":{script} reload --wait app-broker"


def test_a_name_that_is_given_is_not_given_twice() -> None:
    text = printed("--name", "shop", "app:broker")
    assert setting(text, "ExecStart").endswith(" --name shop app:broker")
    assert setting(text, "ExecReload").endswith(" reload --wait shop")
    assert "RuntimeDirectory=taskiq-supervise/shop taskiq-supervise/shop/queues" in text


def test_what_the_file_in_this_folder_says_is_started(folder: Path) -> None:
    (folder / "taskiq-supervise.toml").write_text('app = "shop:broker"\nname = "shop"\n')
    text = printed()
    assert setting(text, "ExecStart").endswith("/taskiq-supervise --name shop")
    assert setting(text, "WorkingDirectory") == str(folder)
    assert setting(text, "Description") == "taskiq workers: shop:broker"


def test_options_from_the_environment_are_kept() -> None:
    text = printed("app:broker", TASKIQ_SUPERVISE_WORKERS="3", TASKIQ_SUPERVISE_NAME="shop")
    assert "\nEnvironment=TASKIQ_SUPERVISE_WORKERS=3\n" in text
    assert setting(text, "ExecReload").endswith(" reload --wait shop")


def test_limits_that_are_longer_make_those_of_systemd_longer() -> None:
    usual = printed("app:broker")
    assert (setting(usual, "TimeoutStartSec"), setting(usual, "TimeoutStopSec")) == ("300s", "98s")
    patient = printed("app:broker", "--graceful-timeout", "10m", "--boot-timeout", "0")
    assert setting(patient, "TimeoutStartSec") == "infinity"
    assert setting(patient, "TimeoutStopSec") == "668s"


def test_it_starts_by_the_path_that_was_taken_to_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "v1").mkdir()
    (folder / "current").symlink_to("v1")
    monkeypatch.chdir(folder / "v1")
    monkeypatch.setenv("PWD", str(folder / "current"))
    assert setting(printed("app:broker"), "WorkingDirectory") == str(folder / "current")
    monkeypatch.setenv("PWD", "/nowhere")
    assert setting(printed("app:broker"), "WorkingDirectory") == str(folder / "v1")


@pytest.mark.parametrize(
    ("arguments", "user", "group"),
    [
        (("--run-as", "shop"), "User=shop", None),
        (("--run-as", "shop:web"), "User=shop", "Group=web"),
        (("--dynamic-user",), "DynamicUser=yes", None),
    ],
    ids=["user", "group", "dynamic"],
)
def test_whose_processes_they_are_can_be_said(
    arguments: tuple[str, ...], user: str, group: str | None
) -> None:
    lines = printed(*arguments, "app:broker").splitlines()
    assert [line for line in lines if re.match(r"(Dynamic)?User=", line)] == [user]
    assert [line for line in lines if line.startswith("Group=")] == ([group] if group else [])


def test_they_are_those_of_the_folders_owner(folder: Path) -> None:
    if os.geteuid() == 0:
        assert setting(printed("app:broker"), "User") == "taskiq-supervise"
        os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
    assert setting(printed("app:broker"), "User") == pwd.getpwuid(folder.stat().st_uid).pw_name


def test_what_is_in_a_home_folder_can_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd_service, "_HOMES", ())
    assert setting(printed("app:broker"), "ProtectHome") == "yes"
    monkeypatch.setattr(systemd_service, "_HOMES", (folder.parent,))
    assert setting(printed("app:broker"), "ProtectHome") == "read-only"


def test_a_program_without_a_script_is_started_as_a_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/x y/bin/python")
    monkeypatch.setattr(sys, "argv", ["/opt/x y/lib/taskiq_supervise/__main__.py"])
    text = printed("app:broker")
    assert setting(text, "ExecReload") == (
        ':"/opt/x y/bin/python" -m taskiq_supervise reload --wait app-broker'
    )


@needs_analyze
@pytest.mark.parametrize("user", [False, True], ids=["system", "user"])
def test_systemd_has_nothing_to_say_about_what_is_printed(tmp_path: Path, user: bool) -> None:
    arguments = ["--user"] if user else []
    text = printed(*arguments, "app:broker", "-w4")
    found = verify(tmp_path, {"its.service": text}, "its.service", user=user)
    assert (found.code, found.said) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "module:variable"),
        (("app",), "'app' is no application"),
        (("app:broker", "--workers", "0"), "--workers"),
        (("app:broker", "--no-such-option"), "--no-such-option"),
        (("app:broker", "--check-config"), "--check-config"),
        (("app:broker", "--config", "/nowhere"), "/nowhere"),
        (("--user", "--run-as", "a", "app:broker"), "exclude each other"),
        (("--dynamic-user", "--run-as", "a", "app:broker"), "exclude each other"),
        (("--run-as", ":web", "app:broker"), "has no user"),
        (("--template", "app:broker"), "in the file of each instance"),
        (("--systemd-version", "251", "app:broker"), "251"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_started_makes_no_unit(arguments: tuple[str, ...], said: str) -> None:
    done = call("print", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""


# --- install, uninstall ---------------------------------------------------------------------------


@pytest.fixture
def root(folder: Path) -> Path:
    return folder / "root"


def install(root: Path, *arguments: str) -> Result:
    return call("install", "--root", str(root), "--run-as", "taskiq-supervise", *arguments)


def uninstall(root: Path, *arguments: str) -> Result:
    return call("uninstall", "--root", str(root), *arguments)


def test_the_installed_unit_is_the_printed_one_and_what_is_next_is_said(root: Path) -> None:
    done = install(root, "app:broker", "-w4")
    assert done.exit_code == 0, done.output
    text = (root / UNIT).read_text()
    assert text.startswith(printed("--run-as", "taskiq-supervise", "app:broker", "-w4"))
    assert is_unchanged(text)
    assert (root / UNIT).stat().st_mode & 0o777 == 0o644
    unit = "taskiq-supervise-app-broker.service"
    for line in (
        f"wrote {root / UNIT}",
        "  sudo systemd-sysusers taskiq-supervise.conf",
        "  sudo systemctl daemon-reload",
        f"  sudo systemctl enable --now {unit}",
        f"  sudo journalctl -u {unit}",
        "  TASKIQ_SUPERVISE_QUEUE_DIR=/run/taskiq-supervise/app-broker/queues",
    ):
        assert line in done.stdout.splitlines()


def test_what_makes_the_user_comes_with_it(root: Path) -> None:
    install(root, "app:broker")
    assert (root / SYSUSERS).read_text().count("\nu taskiq-supervise ") == 1
    assert "\nd /run/taskiq-supervise 0755" in (root / TMPFILES).read_text()
    assert install(root, "--name", "other", "app:broker").exit_code == 0
    assert uninstall(root, "app-broker").exit_code == 0
    assert (root / SYSUSERS).exists()
    assert uninstall(root, "other").exit_code == 0
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_a_known_user_needs_no_other(root: Path) -> None:
    done = call("install", "--root", str(root), "--run-as", "nobody", "app:broker")
    assert done.exit_code == 0
    assert [path for path in root.rglob("*") if path.is_file()] == [root / UNIT]


def test_again_with_other_options_it_is_replaced(root: Path) -> None:
    install(root, "app:broker")
    done = install(root, "app:broker", "-w4")
    assert f"wrote {root / UNIT}" in done.stdout
    assert " -w4 " in (root / UNIT).read_text()
    assert f"unchanged: {root / UNIT}" in install(root, "app:broker", "-w4").stdout


@pytest.mark.parametrize("change", [" # mine", "\n[Service]\nNice=5\n"])
def test_a_file_that_was_changed_is_left_alone(root: Path, change: str) -> None:
    install(root, "app:broker")
    mine = (root / UNIT).read_text() + change
    (root / UNIT).write_text(mine)
    for done in (install(root, "app:broker", "-w4"), uninstall(root, "app-broker")):
        assert done.exit_code == 1
        assert str(root / UNIT) in done.stderr
        assert "--force" in done.stderr
    assert (root / UNIT).read_text() == mine
    assert install(root, "--force", "app:broker", "-w4").exit_code == 0
    assert " -w4 " in (root / UNIT).read_text()


def test_nothing_is_written_when_one_file_may_not_be(root: Path) -> None:
    (root / TMPFILES).parent.mkdir(parents=True)
    (root / TMPFILES).write_text("d /mine\n")
    assert install(root, "app:broker").exit_code == 1
    assert [path for path in root.rglob("*") if path.is_file()] == [root / TMPFILES]


def test_a_masked_unit_stays_masked(root: Path) -> None:
    (root / UNIT).parent.mkdir(parents=True)
    (root / UNIT).symlink_to("/dev/null")
    assert install(root, "app:broker").exit_code == 1
    assert (root / UNIT).is_symlink()


def test_an_enabled_unit_has_to_be_disabled_first(root: Path) -> None:
    install(root, "app:broker")
    wants = (root / UNIT).parent / "multi-user.target.wants"
    wants.mkdir()
    (wants / Path(UNIT).name).symlink_to(root / UNIT)
    done = uninstall(root, "app-broker")
    assert done.exit_code == 1
    assert f"systemctl disable --now {Path(UNIT).name}" in done.stderr
    assert (root / UNIT).exists()


@pytest.mark.parametrize("name", ["app-broker", Path(UNIT).name])
def test_a_unit_is_removed_by_either_name(root: Path, name: str) -> None:
    install(root, "app:broker")
    done = uninstall(root, name)
    assert done.exit_code == 0
    assert f"removed {root / UNIT}" in done.stdout
    assert "  sudo systemctl daemon-reload" in done.stdout
    assert not (root / UNIT).exists()
    assert uninstall(root, name).exit_code == 3


def test_the_template_starts_instances_of_this_environment(root: Path) -> None:
    done = install(root, "--template")
    assert done.exit_code == 0, done.output
    text = (root / "etc/systemd/system/taskiq-supervise@.service").read_text()
    script = shlex.quote(str(Path(sys.executable).parent / "taskiq-supervise"))
    assert setting(text, "ExecStart") == (
        f":{script} --config /etc/taskiq-supervise/%i.toml --name %i"
    )
    assert "  sudo systemctl enable --now taskiq-supervise@NAME.service" in done.stdout
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "taskiq-supervise@shop.service").symlink_to("../taskiq-supervise@.service")
    assert "taskiq-supervise@shop.service" in uninstall(root, "--template").stderr
    assert uninstall(root, "--template", "--force").exit_code == 0


def test_a_user_has_units_of_his_own(folder: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(folder / "config"), "XDG_RUNTIME_DIR": "/run/user/7"}
    done = call("install", "--user", "app:broker", **environment)
    assert done.exit_code == 0, done.output
    unit = folder / "config/systemd/user/taskiq-supervise-app-broker.service"
    assert is_unchanged(unit.read_text())
    assert f"  systemctl --user enable --now {unit.name}" in done.stdout
    queues = "/run/user/7/taskiq-supervise/app-broker/queues"
    assert f"  TASKIQ_SUPERVISE_QUEUE_DIR={queues}" in done.stdout
    assert "sudo" not in done.stdout
    assert call("uninstall", "--user", "app-broker", **environment).exit_code == 0
    assert not unit.exists()


def test_a_folder_that_the_user_may_not_enter_is_named(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd_service, "_environment", lambda: iter(()))
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.chdir(closed)
    done = call("install", "--root", str(root), "--run-as", "nobody", "app:broker")
    assert f"warning: nobody may not enter {closed}, where it has to go" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "who"),
    [
        (("--run-as", "shop"), "shop"),
        (("--dynamic-user",), "services with the same dynamic user"),
    ],
    ids=["fixed", "dynamic"],
)
def test_the_queue_that_is_named_for_clients_is_the_services(
    root: Path, arguments: tuple[str, ...], who: str
) -> None:
    done = call("install", "--root", str(root), *arguments, "app:broker")
    (said,) = re.findall(r"^  (TASKIQ_SUPERVISE_QUEUE_DIR=.*)$", done.stdout, re.MULTILINE)
    assert f"\nEnvironment={said}\n" in (root / UNIT).read_text().replace("%t", "/run")
    assert f"Clients run as {who}, with" in done.stdout


def test_who_may_not_write_is_told_what_to_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write everywhere
    done = install(root, "app:broker")
    assert done.exit_code == 1
    assert "take sudo, or --user" in done.stderr
