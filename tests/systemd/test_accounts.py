"""Whose processes they are, and who may send them tasks, as docs/systemd.md says."""

import json
import re
from collections.abc import Iterator
from subprocess import CompletedProcess

import pytest
from tests.systemd.box import Box
from tests.systemd.installation import COMMAND, PYTHON, UNITS
from tests.systemd.service import ACCOUNT, HERE, Service

CLIENT = "/opt/box/sources/tests/systemd/client.py"
WEB, STRANGER = "web", "stranger"


@pytest.fixture(scope="module", autouse=True)
def people(box: Box) -> None:
    """A user in the services' group, and one who is not."""
    box.run("useradd", "--groups", ACCOUNT, WEB)
    box.run("useradd", STRANGER)


@pytest.fixture
def shared(service: Service) -> Service:
    """Its queue is for the group."""
    service.box.write(f"{service.folder}/access", ACCOUNT)
    return service


@pytest.fixture
def dynamic(shared: Service) -> Service:
    """By the drop-in that is shipped."""
    shared.drop_in_text((UNITS / "drop-ins" / "dynamic-user.conf").read_text())
    shared.queues = "/run/taskiq-supervise-queues"
    shared.account = WEB
    return shared


def owner(service: Service) -> int:
    said = service.box.run("stat", "-c%u", f"/proc/{service.main_pid}").stdout
    return int(said)


def assert_refused(service: Service, user: str) -> None:
    done = service.client("call", "add", "[2]", user=user, check=False)
    assert done.returncode != 0
    reason = done.stderr.splitlines()[-1]
    assert re.search("Permission denied|is not in group|belongs to user", reason), reason


# --- a fixed user ---------------------------------------------------------------------------------


def test_a_queue_is_for_the_user_of_the_service_alone(service: Service) -> None:
    service.start()
    assert service.call("add", 1)["value"] == 1
    for user in (WEB, STRANGER):
        assert_refused(service, user)
    assert service.ledger("ran") == {"1": 1}


def test_a_queue_that_is_shared_is_for_the_group(shared: Service) -> None:
    shared.start()
    for user in (ACCOUNT, WEB):
        shared.account = user
        assert shared.call("add", 1)["value"] == 1
    assert_refused(shared, STRANGER)
    assert shared.ledger("ran") == {"1": 2}


# --- DynamicUser ----------------------------------------------------------------------------------


def test_a_dynamic_user_will_do(dynamic: Service) -> None:
    dynamic.start()
    assert 61184 <= owner(dynamic) <= 65519
    assert dynamic.box.run("id", "-u", f"taskiq-{dynamic.name}").stdout.strip() == str(
        owner(dynamic)
    )
    assert dynamic.call("add", 1)["value"] == 1
    assert_refused(dynamic, STRANGER)
    assert dynamic.groups()["workers"] > dynamic.worker_pids()

    before = dynamic.worker_pids()
    dynamic.systemctl("reload")
    assert not before & dynamic.worker_pids()
    # Its user does not exist meanwhile.
    dynamic.systemctl("stop")
    dynamic.send("add", 3)
    dynamic.start()
    assert dynamic.call("add", 4)["value"] == 4
    assert dynamic.ledger("ran") == {"1": 1, "3": 1, "4": 1}


def test_restarts_of_a_dynamic_user_lose_and_double_nothing(dynamic: Service) -> None:
    dynamic.start()
    with dynamic.flood() as flood:
        for _ in range(2):
            flood.goes_on()
            dynamic.systemctl("restart")
        flood.goes_on()
        outcome = flood.end()
    assert outcome["wrong"] == {}
    assert outcome["right"] == outcome["sent"]
    ran = dynamic.ledger("ran")
    assert set(ran) == {str(number) for number in range(outcome["sent"])}
    assert set(ran.values()) == {1}


def test_a_service_of_the_same_dynamic_user_is_a_client(box: Box) -> None:
    """Of a unit that `systemd install --dynamic-user` wrote."""
    folder = "/srv/alone"
    service = Service(box, "alone", "taskiq-supervise-alone.service")
    service.folder = folder
    service.code()
    box.run(
        *(COMMAND, "systemd", "install", "--dynamic-user", "--daemon-reload"),
        *("app:broker", "--name", "alone"),
        folder=folder,
    )
    try:
        service.start()
        user = service.show("User")["User"]
        done = box.run(
            *("systemd-run", "--wait", "--pipe", "--quiet", "--collect"),
            *("-pDynamicUser=yes", f"-pUser={user}", "-pRuntimeDirectory=taskiq-supervise/alone"),
            *("-pRuntimeDirectoryPreserve=yes", f"-pWorkingDirectory={folder}"),
            f"-pEnvironment=TASKIQ_SUPERVISE_QUEUE_DIR={service.queues}",
            *(PYTHON, "-B", CLIENT, folder, "call", "add", "[5]"),
        )
        assert json.loads(done.stdout)["value"] == 5
        assert_refused(service, WEB)
        assert service.ledger("ran") == {"5": 1}
    finally:
        service.end()


# --- a user's own ---------------------------------------------------------------------------------

UID = 4711
RUNTIME = f"/run/user/{UID}"
MANAGER = f"""\
[Service]
Type=notify
User={UID}
Environment=XDG_RUNTIME_DIR={RUNTIME}
ExecStart=-/lib/systemd/systemd --user
KillMode=mixed
Delegate=yes
"""
"""What logind starts for somebody who logs in."""


class User:
    """Somebody who has logged in."""

    def __init__(self, box: Box, name: str) -> None:
        self._box = box
        self._name = name
        self.home = f"/home/{name}"

    def run(
        self, *command: str, folder: str | None = None, check: bool = True
    ) -> CompletedProcess[str]:
        environment = {"HOME": self.home, "XDG_RUNTIME_DIR": RUNTIME}
        return self._box.run(
            *command,
            user=self._name,
            folder=folder or self.home,
            environment=environment,
            check=check,
        )


@pytest.fixture
def user(box: Box) -> Iterator[User]:
    box.run("useradd", "--create-home", f"--uid={UID}", "somebody")
    box.run("install", "-d", "-m700", "-osomebody", "-gsomebody", RUNTIME)
    box.write("/etc/systemd/system/manager.service", MANAGER)
    box.run("systemctl", "daemon-reload")
    box.run("systemctl", "start", "manager.service")
    yield User(box, "somebody")
    box.run("systemctl", "stop", "manager.service")


def test_a_user_runs_one_without_root(box: Box, user: User) -> None:
    folder = f"{user.home}/shop"
    user.run("mkdir", folder)
    box.write(f"{folder}/app.py", (HERE / "shop.py").read_text())
    user.run(COMMAND, "systemd", "install", "--user", "app:broker", "-w1", folder=folder)
    unit = "taskiq-supervise-app-broker"
    user.run("systemctl", "--user", "daemon-reload")
    user.run("systemctl", "--user", "enable", "--now", unit)
    (instance,) = json.loads(user.run(COMMAND, "status", "--json").stdout)["instances"]
    shown = user.run("systemctl", "--user", "show", unit, "-pMainPID", "-pStatusText").stdout
    assert f"MainPID={instance['pid']}\n" in shown
    assert "StatusText=1 worker ready" in shown
    queues = f"{RUNTIME}/taskiq-supervise/app-broker/queues"
    where = f"TASKIQ_SUPERVISE_QUEUE_DIR={queues}"
    said = user.run("env", where, PYTHON, "-B", CLIENT, folder, "call", "echo", "[9]").stdout
    assert json.loads(said)["value"] == 9
    user.run("systemctl", "--user", "reload", unit)
    user.run("systemctl", "--user", "disable", "--now", unit)
    user.run(COMMAND, "systemd", "uninstall", "--user", "app-broker")
    assert user.run(COMMAND, "status", check=False).returncode == 3
