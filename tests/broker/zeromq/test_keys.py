"""Key files, the list of who may connect, and the command that makes them."""

import stat
from pathlib import Path

import pytest
import zmq.auth
from click.testing import CliRunner

from taskiq_supervise.broker.zeromq.keys import AllowList, KeyFileError, KeyPair, load_public
from taskiq_supervise.supervisor.commands.cli import cli


def keygen(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(cli, ["keygen", *arguments])
    assert done.exit_code == status, done.output
    return done.output


def test_keygen_makes_what_the_broker_needs_and_says_what_to_type(workdir: Path) -> None:
    output = keygen()
    files = {str(path): stat.S_IMODE(path.stat().st_mode) for path in Path("keys").rglob("*.*")}
    assert files == {
        "keys/server.key": 0o644,
        "keys/server.key_secret": 0o600,
        "keys/client.key_secret": 0o600,
        "keys/clients/client.key": 0o644,
    }
    for line in (
        'server_secret_key="keys/server.key_secret"',
        'server_public_key="keys/server.key"',
        'client_secret_key="keys/client.key_secret"',
        'client_keys="keys/clients"',
    ):
        assert line in output
    server = KeyPair.load("keys/server.key_secret")
    assert server.public == load_public("keys/server.key") == zmq.curve_public(server.secret)
    assert AllowList("keys/clients").allows(KeyPair.load("keys/client.key_secret").public)
    assert server.secret.decode() not in output
    assert server.secret.decode() not in repr(server)


def test_further_clients_are_added_and_nothing_is_overwritten(workdir: Path) -> None:
    keygen("k")
    before = Path("k/server.key").read_text()
    assert "holds a server's keys already" in keygen("k", status=1)
    assert "a running supervisor knows it at once" in keygen("k", "--client", "billing")
    assert "exists" in keygen("k", "--client", "billing", status=1)
    assert Path("k/server.key").read_text() == before
    assert sorted(path.name for path in Path("k/clients").iterdir()) == [
        "billing.key",
        "client.key",
    ]


@pytest.mark.parametrize("name", ["server", "a/b", "..", ""])
def test_a_clients_name_is_a_file_name(workdir: Path, name: str) -> None:
    if name:
        assert "is no name" in keygen("--client", name, status=2)
    assert not Path("keys").exists()


def test_the_files_are_those_of_zeromq(tmp_path: Path) -> None:
    pair = KeyPair.new()
    _, secret = pair.save(tmp_path, "ours")
    assert zmq.auth.load_certificate(secret) == (pair.public, pair.secret)
    public, theirs = zmq.auth.create_certificates(tmp_path, "theirs")
    assert KeyPair.load(theirs).public == load_public(public)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b'public-key = "short"', b'curve\n  public-key = "' + b"~" * 40]
)
def test_what_is_no_key_file_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.key"
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match="is no key file; `taskiq-supervise keygen`"):
        load_public(path)


def test_clients_are_let_in_and_kept_out_without_a_restart(tmp_path: Path) -> None:
    one, other, third = (KeyPair.new() for _ in range(3))
    allowed = AllowList(tmp_path)
    assert not allowed.allows(one.public)
    public, _ = one.save(tmp_path, "one")
    assert allowed.allows(one.public)
    assert not allowed.allows(other.public)
    (tmp_path / "damaged.key").write_text("nonsense")
    assert allowed.allows(one.public)  # one bad file is not everybody's problem
    with pytest.raises(KeyFileError):
        allowed.check()
    public.unlink()
    assert not allowed.allows(one.public)
    listed = AllowList([one.public.decode(), other.save(tmp_path, "other")[0]])
    assert [listed.allows(pair.public) for pair in (one, other, third)] == [True, True, False]
    assert AllowList("*").allows(third.public)
