"""Where instances are found, who may have a name, and what a killed one leaves."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from taskiq_supervise.supervisor.runtime import (
    AlreadyRunning,
    Instance,
    RuntimeDirectoryError,
    check_instance_name,
    instance_name,
    instances,
    runtime_directory,
    socket_path,
)

CLAIM_AND_WAIT = (
    "import sys\n"
    "from taskiq_supervise.supervisor.runtime import Instance\n"
    "instance = Instance.claim(sys.argv[1])\n"
    "instance.listen()\n"
    "print('claimed', flush=True)\n"
    "sys.stdin.read()\n"
)


def claim_elsewhere(name: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM_AND_WAIT, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    return process


@pytest.mark.parametrize(
    ("environment", "root", "expected"),
    [
        ({"TASKIQ_SUPERVISE_RUNTIME_DIR": "/a", "RUNTIME_DIRECTORY": "/b"}, True, "/a"),
        ({"RUNTIME_DIRECTORY": "/b:/c", "XDG_RUNTIME_DIR": "/d"}, False, "/b"),
        ({"XDG_RUNTIME_DIR": "/d"}, True, "/run/taskiq-supervise"),
        ({"XDG_RUNTIME_DIR": "/d"}, False, "/d/taskiq-supervise"),
        ({}, False, f"/tmp/taskiq-supervise-{os.geteuid()}"),
    ],
)
def test_the_runtime_directory_is_the_first_that_applies(
    environment: dict[str, str], root: bool, expected: str
) -> None:
    found = runtime_directory(environment, root=root, temporary="/tmp")
    assert found == Path(expected)


@pytest.mark.parametrize(
    ("app", "name"),
    [
        ("app:broker", "app-broker"),
        ("my.app:make broker", "my.app-make-broker"),
        ("..:x", "-x"),
        ("é:ü", "---"),
        ("a" * 200 + ":b", "a" * 100),
    ],
)
def test_an_instance_is_named_after_its_application(app: str, name: str) -> None:
    assert instance_name(app) == name
    assert check_instance_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "a\n", "x" * 101])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(RuntimeDirectoryError, match=re.escape(repr(name))):
        check_instance_name(name)


def test_a_second_instance_of_the_name_is_refused_and_names_the_first() -> None:
    first = claim_elsewhere("one")
    try:
        with pytest.raises(AlreadyRunning, match=rf"'one'.*pid {first.pid}, .*-c one"):
            Instance.claim("one")
        Instance.claim("two").close()
    finally:
        first.communicate()


def test_what_a_killed_instance_left_is_no_obstacle_and_is_cleared() -> None:
    first = claim_elsewhere("one")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    folder = runtime_directory() / "one"
    assert (folder / "control.sock").is_socket()

    instance = Instance.claim("one")
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "pid"]
    assert (folder / "pid").read_text() == f"{os.getpid()}\n"
    instance.close()


def test_a_clean_end_leaves_nothing() -> None:
    instance = Instance.claim("one")
    instance.listen().close()
    instance.board("").touch()
    instance.board("fast").touch()
    instance.close()
    assert list(runtime_directory().iterdir()) == []


def test_the_name_can_be_taken_again_at_once() -> None:
    for _ in range(3):
        Instance.claim("one").close()


def test_folder_and_socket_are_for_their_owner_only() -> None:
    instance = Instance.claim("one")
    with instance.listen():
        assert stat.S_IMODE(instance.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((instance.folder / "control.sock").stat().st_mode) == 0o600
    instance.close()


def test_a_path_longer_than_a_sockets_may_be_works(tmp_path: Path) -> None:
    base = tmp_path / ("long" * 30)
    instance = Instance.claim("one", base)
    assert len(str(instance.folder / "control.sock")) > 107
    with (
        instance.listen() as listener,
        socket.socket(socket.AF_UNIX) as client,
        socket_path(instance.folder) as path,
    ):
        client.connect(path)
        listener.accept()[0].close()
    assert list(instances(base)) == [instance.folder]
    instance.close()


def test_only_folders_with_a_socket_are_instances(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert list(instances(tmp_path)) == []
    assert list(instances(tmp_path / "nothing")) == []


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a b", b".hidden", b"x" * 101], ids=repr)
def test_a_folder_with_a_name_that_no_instance_has_is_not_one(tmp_path: Path, name: bytes) -> None:
    for folder in (os.fsdecode(name), "one"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "control.sock").touch()
    assert list(instances(tmp_path)) == [tmp_path / "one"]


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(RuntimeDirectoryError, match=r"mode 0777.*TASKIQ_SUPERVISE_RUNTIME_DIR"):
        Instance.claim("one", tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(RuntimeDirectoryError, match="belongs to uid 12345"):
        Instance.claim("one", tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make links of others")
def test_somebody_elses_link_to_a_directory_of_ours_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "ours"
    target.mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(target)
    os.chown(link, 12345, -1, follow_symlinks=False)
    with pytest.raises(RuntimeDirectoryError, match="belongs to uid 12345"):
        Instance.claim("one", link)


def test_a_directory_that_cannot_be_made_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeDirectoryError, match="TASKIQ_SUPERVISE_RUNTIME_DIR"):
        Instance.claim("one", tmp_path / "file" / "below")
    with pytest.raises(RuntimeDirectoryError, match=r"not a directory|cannot be made"):
        Instance.claim("one", tmp_path / "file")


def test_the_owner_writes_down_who_it_is() -> None:
    instance = Instance.claim("one")
    written = json.loads((instance.folder / "lock").read_text())
    assert written["pid"] == os.getpid()
    instance.close()
