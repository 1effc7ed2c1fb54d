"""What dies, hangs, or was never right, in a real systemd: what becomes of the instance."""

import re

import pytest
from tests.systemd.installation import COMMAND
from tests.systemd.service import Service

STARTED = r"^Started "


@pytest.fixture(autouse=True)
def impatient(service: Service) -> None:
    """The next start comes soon."""
    assert service.show("Restart") == {"Restart": "on-failure"}
    service.drop_in(RestartSec="100ms")


def assert_nothing_was_lost(service: Service, outcome: dict[str, object]) -> None:
    """What ran when its process died runs again, so some may have run twice."""
    assert outcome["wrong"] == {}
    assert outcome["right"] == outcome["sent"]
    assert set(service.ledger("ran")) == {
        str(number) for number in range(int(str(outcome["sent"])))
    }


def test_the_supervisor_is_killed(service: Service) -> None:
    service.start()
    before, main = service.worker_pids(), service.main_pid
    with service.flood() as flood, service.journal() as journal:
        flood.goes_on()
        service.kill(main, "KILL")
        journal.wait_for(STARTED)
        flood.goes_on()
        outcome = flood.end()
    assert service.show("ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "1"}
    assert service.main_pid != main
    assert not before & service.worker_pids()
    assert_nothing_was_lost(service, outcome)


def test_a_worker_is_killed_and_systemd_need_not_know(service: Service) -> None:
    service.start()
    before, main = service.worker_pids(), service.main_pid
    with service.flood() as flood, service.journal() as journal:
        flood.goes_on()
        victim = min(before)
        service.kill(victim, "KILL")
        journal.wait_for(r"worker=. gen=\d+ .* ready$")
        flood.goes_on()
        outcome = flood.end()
    assert service.show("ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
    assert service.main_pid == main
    after = service.worker_pids()
    assert len(after) == 2
    assert before - after == {victim}
    assert_nothing_was_lost(service, outcome)


def test_a_supervisor_that_hangs_is_replaced(service: Service) -> None:
    service.drop_in(RestartSec="100ms", WatchdogSec="3s")
    service.start()
    main = service.main_pid
    with service.flood() as flood, service.journal() as journal:
        flood.goes_on()
        service.kill(main, "STOP")
        journal.wait_for("[Ww]atchdog timeout")
        journal.wait_for(STARTED)
        flood.goes_on()
        outcome = flood.end()
    assert service.show("ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "1"}
    assert service.main_pid != main
    assert_nothing_was_lost(service, outcome)


def test_a_supervisor_that_works_says_so_to_the_watchdog(service: Service) -> None:
    service.start()
    assert service.show("WatchdogUSec") == {"WatchdogUSec": "30s"}
    service.drop_in(RestartSec="100ms", WatchdogSec="3s")
    service.systemctl("restart")
    main = service.main_pid
    said = service.show("WatchdogTimestampMonotonic")["WatchdogTimestampMonotonic"]
    while service.show("WatchdogTimestampMonotonic")["WatchdogTimestampMonotonic"] == said:
        assert service.state == "active"
    assert service.show("MainPID", "NRestarts") == {"MainPID": str(main), "NRestarts": "0"}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"workers": "many"}, "workers"),
        ({"app": "app"}, "'app' is no application"),
        ({"no-such-option": 1}, "no-such-option"),
    ],
    ids=["value", "application", "key"],
)
def test_a_wrong_configuration_is_one_readable_line(
    service: Service, values: dict[str, object], reason: str
) -> None:
    service.configure(**values)
    assert_it_fails_for_good_and_says(service, reason)


def test_a_wrong_option_is_one_readable_line(service: Service) -> None:
    service.drop_in_text(f"[Service]\nExecStart=\nExecStart={COMMAND} app:broker --wokers 4\n")
    assert_it_fails_for_good_and_says(service, "--wokers")


def assert_it_fails_for_good_and_says(service: Service, reason: str) -> None:
    done = service.box.run("systemctl", "start", service.unit, check=False)
    assert done.returncode != 0
    assert service.show("ActiveState", "Result", "ExecMainStatus", "NRestarts") == {
        "ActiveState": "failed",
        "Result": "exit-code",
        "ExecMainStatus": "2",
        "NRestarts": "0",
    }
    said = [
        entry for entry in service.entries() if entry["SYSLOG_IDENTIFIER"] == "taskiq-supervise"
    ]
    assert [entry["PRIORITY"] for entry in said] == ["3"], said
    assert reason in said[0]["MESSAGE"]
    assert reason in service.status_text
    shown = service.systemctl("status", check=False)
    assert re.search(rf'Status: ".*{re.escape(reason)}.*"$', shown, re.MULTILINE), shown


def test_an_application_that_cannot_be_loaded_is_tried_again(service: Service) -> None:
    service.code("\nraise ConnectionError('no database yet')\n")
    with service.journal() as journal:
        start = service.begin("start")
        journal.wait_for("no database yet")
        assert start.wait() != 0
        journal.wait_for("Scheduled restart job")
        service.code()
        journal.wait_for(STARTED)
    assert service.state == "active"
    assert "2 workers ready" in service.status_text
    assert int(service.show("NRestarts")["NRestarts"]) >= 1


def test_why_it_cannot_be_loaded_is_in_its_status(service: Service) -> None:
    service.drop_in(Restart="no")
    service.code("\nraise ConnectionError('no database yet')\n")
    assert service.box.run("systemctl", "start", service.unit, check=False).returncode != 0
    assert service.state == "failed"
    assert service.show("ExecMainStatus")["ExecMainStatus"] == "3"
    assert "no database yet" in service.status_text
