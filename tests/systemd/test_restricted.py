"""What a service may not do, and gets along without."""

import os
import stat
from pathlib import Path

import pytest

from taskiq_supervise.ipc.access import make_folder
from taskiq_supervise.supervisor import runtime
from taskiq_supervise.supervisor.client import Client
from taskiq_supervise.supervisor.runtime import Instance, RuntimeDirectoryError

STRANGER = 47_113


@pytest.fixture
def restricted(monkeypatch: pytest.MonkeyPatch) -> None:
    """RestrictSUIDSGID=: systemd.exec(5). The real one is in tests that boot systemd."""
    chmod = Path.chmod

    def refuse(path: Path, mode: int, **options: bool) -> None:
        if mode & (stat.S_ISGID | stat.S_ISUID):
            raise PermissionError(1, "Operation not permitted", str(path))
        chmod(path, mode, **options)

    monkeypatch.setattr(Path, "chmod", refuse)


@pytest.mark.usefixtures("restricted")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_shared_folder_takes_its_bit_and_its_group_from_the_one_around(
    tmp_path: Path, umask: int
) -> None:
    around = tmp_path / "queues"
    around.mkdir()
    os.chmod(around, 0o2750)  # noqa: PTH101 - not the one that is refused
    before = os.umask(umask)
    try:
        make_folder(around / "shop", 0o2770, around.stat().st_gid)
        make_folder(around / "shop" / "files", 0o2770)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((around / "shop" / "files").stat().st_mode) == 0o2770


@pytest.mark.usefixtures("restricted")
def test_it_is_not_made_where_nothing_gives_it_the_bit(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        make_folder(tmp_path / "shop", 0o2770, tmp_path.stat().st_gid)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def of_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory that is root's, for a service of another user."""
    base = tmp_path / "run"
    base.mkdir(mode=0o755)
    base.chmod(0o555)
    access = os.access

    def as_another(path: Path, mode: int) -> bool:
        return access(path, mode) and not (mode & os.W_OK and path.stat().st_mode & 0o200 == 0)

    monkeypatch.setattr(os, "access", as_another)  # root would be allowed everything
    return base


def test_an_instance_takes_the_folder_that_systemd_has_made_for_it(of_root: Path) -> None:
    of_root.chmod(0o755)
    (of_root / "shop").mkdir(mode=0o750)
    of_root.chmod(0o555)
    instance = Instance.claim("shop", of_root)
    assert instance.folder == of_root / "shop"
    with pytest.raises(RuntimeDirectoryError, match="not writable"):
        Instance.claim("other", of_root)
    instance.close()


def test_services_of_this_user_are_found_beside_his_own_instances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, own = tmp_path / "system", tmp_path / "own"
    monkeypatch.delenv("TASKIQ_SUPERVISE_RUNTIME_DIR")
    monkeypatch.setattr(runtime, "SYSTEM", system)
    monkeypatch.setattr(runtime, "runtime_directory", lambda: own)
    there = [Instance.claim("shop", system), Instance.claim("mail", own)]
    sockets = [instance.listen() for instance in there]
    try:
        assert [folder.name for folder in runtime.instances()] == ["mail", "shop"]
        assert Client("shop").folder == system / "shop"
        assert Client("mail").folder == own / "mail"
        assert Client("none").folder == own / "none"
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
        assert [folder.name for folder in runtime.instances()] == ["mail"]
    finally:
        monkeypatch.undo()
        for listener, instance in zip(sockets, there, strict=True):
            listener.close()
            instance.close()


def test_what_is_said_in_the_environment_is_the_only_place() -> None:
    assert runtime.runtime_directories() == (runtime.runtime_directory(),)
