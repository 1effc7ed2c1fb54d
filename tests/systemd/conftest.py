"""A machine for the tests of one file, and services in it."""

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests.systemd.box import Box, NoBox, boot
from tests.systemd.installation import SHOWN, UNITS, install
from tests.systemd.service import Service

REQUIRED = "TASKIQ_SUPERVISE_TEST_SYSTEMD"
"""Set to `required`: where no machine can be booted, the tests fail instead of being skipped."""


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    """With taskiq-supervise installed as docs/systemd.md has it for the template."""
    with ExitStack() as stack:
        box, reason = None, ""
        try:
            box = stack.enter_context(boot(SHOWN))
        except NoBox as error:
            reason = f"no systemd can be booted here: {error}"
        if box is None:
            if os.environ.get(REQUIRED) == "required":
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)
        install(box)
        for source, target in {
            "taskiq-supervise@.service": "/etc/systemd/system",
            "sysusers.d/taskiq-supervise.conf": "/etc/sysusers.d",
            "tmpfiles.d/taskiq-supervise.conf": "/etc/tmpfiles.d",
        }.items():
            box.write(f"{target}/{(UNITS / source).name}", (UNITS / source).read_text())
        box.run("systemd-sysusers", "taskiq-supervise.conf")
        box.run("systemd-tmpfiles", "--create", "taskiq-supervise.conf")
        box.run("systemctl", "daemon-reload")
        yield box


_numbers = itertools.count(1)


@pytest.fixture
def service(box: Box, request: pytest.FixtureRequest) -> Iterator[Service]:
    """An instance of this test's own, configured and not started."""
    service = Service(box, f"shop{next(_numbers)}")
    service.configure()
    try:
        yield service
    finally:
        said = box.run("journalctl", "-q", "-ocat", "-u", service.unit).stdout
        # pytest shows sections only for a test that failed.
        request.node.add_report_section("teardown", f"journal of {service.unit}", said)
        service.end()
