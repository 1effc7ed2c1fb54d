"""Where a ZeroMQBroker listens and connects to, and what it refuses to do without keys."""

from pathlib import Path
from typing import Any

import pytest
from taskiq.serializers import JSONSerializer, PickleSerializer

from taskiq_supervise import CloudpickleSerializer, ZeroMQBroker
from taskiq_supervise.broker import UnsuitableBrokerError
from taskiq_supervise.broker.zeromq.addresses import Endpoint
from taskiq_supervise.broker.zeromq.keys import KeyPair


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    KeyPair.new().save(tmp_path, "server")
    KeyPair.new().save(tmp_path, "client", public_folder=tmp_path / "clients")
    return tmp_path


def broker_at(*addresses: Any, **options: Any) -> ZeroMQBroker:
    return ZeroMQBroker(*addresses, **options)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("tcp://localhost:5555", "tcp://127.0.0.1:5555"),
        ("tcp://127.0.0.7:1", "tcp://127.0.0.7:1"),
        ("tcp://*:5555", "tcp://0.0.0.0:5555"),
        ("tcp://[0:0::1]:5555", "tcp://[::1]:5555"),
        ("tcp://worker.example:5555", "tcp://worker.example:5555"),
        ("ipc:///run/a/../b", "ipc:///run/b"),
        ("ipc://@name", "ipc://@name"),
    ],
)
def test_an_address_has_one_form(text: str, normal: str) -> None:
    assert str(Endpoint.of(text)) == normal


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:5555", "tcp://127.0.0.1", "tcp://127.0.0.1:0", "tcp://127.0.0.1:70000",
        "tcp://127.0.0.1:*", "tcp://::1:5555", "tcp://[zz]:5555", "inproc://a", "ipc://", "ipc://*",
        "ipc:///" + "x" * 107,
    ],
)  # fmt: skip
def test_what_no_client_could_connect_to_is_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match=r"tcp://|no port|port|socket|brackets"):
        ZeroMQBroker(text)


@pytest.mark.parametrize(
    ("arguments", "bind", "note"),
    [
        ((), "tcp://127.0.0.1:5555", "narrowed to tcp://127.0.0.1:5555"),
        (("tcp://localhost:7000",), "tcp://127.0.0.1:7000", ""),
        (("tcp://127.0.0.3:7000",), "tcp://127.0.0.3:7000", ""),
        (("tcp://[::1]:7000",), "tcp://[::1]:7000", ""),
        (("ipc:///tmp/socket",), "ipc:///tmp/socket", ""),
        (("tcp://0.0.0.0:5555",), None, "without keys lets everybody"),
        (("tcp://*:5555",), None, "without keys lets everybody"),
        (("tcp://[::]:5555",), None, "without keys lets everybody"),
        (("tcp://192.0.2.1:5555",), None, "without keys lets everybody"),
        (("tcp://some.host:5555",), None, "without keys lets everybody"),
    ],
)
def test_without_keys_only_this_machine_is_listened_to(
    arguments: tuple[str, ...], bind: str | None, note: str
) -> None:
    broker = broker_at(*arguments)
    if bind is None:
        with pytest.raises(UnsuitableBrokerError, match=note):
            broker.listener_settings()
        settings = broker_at(*arguments, insecure=True).listener_settings()
        assert settings.bind == str(Endpoint.of(arguments[0]))
        assert "has no keys" in settings.notes[0]
        return
    settings = broker.listener_settings()
    assert settings.bind == bind
    assert settings.endpoints == (bind,)
    assert settings.is_ipv6 == ("[" in bind)
    assert settings.server_keys is None
    assert settings.clients is None
    assert note in "".join(settings.notes)
    assert bool(settings.notes) == bool(note)


def test_with_keys_any_address_is_listened_to(keys: Path) -> None:
    broker = ZeroMQBroker(
        server_secret_key=keys / "server.key_secret", client_keys=keys / "clients"
    )
    settings = broker.listener_settings()
    assert settings.bind == "tcp://0.0.0.0:5555"
    assert settings.server_keys == KeyPair.load(keys / "server.key_secret")
    assert settings.clients is not None
    assert settings.clients.allows(KeyPair.load(keys / "client.key_secret").public)
    assert not settings.clients.allows(KeyPair.new().public)
    assert not settings.notes


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((), "tcp://127.0.0.1:5555"),
        (("tcp://127.0.0.1:7000",), "tcp://127.0.0.1:7000"),
        (("tcp://0.0.0.0:7000",), "tcp://127.0.0.1:7000"),
        (("tcp://[::]:7000",), "tcp://[::1]:7000"),
        (("tcp://0.0.0.0:7000", "tcp://10.0.0.1:7000"), "tcp://10.0.0.1:7000"),
        (("ipc:///tmp/socket",), "ipc:///tmp/socket"),
    ],
)
def test_where_clients_connect_follows_unless_it_is_given(
    arguments: tuple[str, ...], name: str
) -> None:
    assert broker_at(*arguments).name == name


async def test_clients_send_to_other_machines_with_keys_only(keys: Path) -> None:
    arguments = ("tcp://192.0.2.1:5555",)
    with pytest.raises(UnsuitableBrokerError, match=r"sending to .* without keys"):
        await ZeroMQBroker(*arguments).startup()
    for options in (
        {"insecure": True},
        {"server_public_key": keys / "server.key"},
        {
            "server_public_key": keys / "server.key",
            "client_secret_key": keys / "client.key_secret",
        },
    ):
        async with ZeroMQBroker(*arguments, **options):
            pass


@pytest.mark.parametrize("serializer", [CloudpickleSerializer, PickleSerializer, JSONSerializer])
@pytest.mark.parametrize(
    ("address", "keyed", "allowed"),
    [
        ("tcp://127.0.0.1:5555", None, False),  # every user of this machine reaches it
        ("ipc://@abstract", None, False),
        ("ipc:///tmp/socket", None, True),
        ("tcp://0.0.0.0:5555", "clients", True),
        ("tcp://0.0.0.0:5555", "*", False),
    ],
)
def test_pickle_is_taken_from_known_senders_only(
    keys: Path, serializer: Any, address: str, keyed: str | None, allowed: bool
) -> None:
    options: dict[str, Any] = {}
    if keyed is not None:
        options["server_secret_key"] = keys / "server.key_secret"
        options["client_keys"] = keyed if keyed == "*" else keys / keyed
    broker = ZeroMQBroker(address, **options).with_serializer(serializer())
    if allowed or serializer is JSONSerializer:
        broker.listener_settings()
    else:
        with pytest.raises(UnsuitableBrokerError, match=f"{serializer.__name__} runs code"):
            broker.listener_settings()


async def test_clients_do_not_send_or_read_pickle_without_keys_either(keys: Path) -> None:
    broker = ZeroMQBroker("tcp://127.0.0.1:5555").with_serializer(CloudpickleSerializer())
    with pytest.raises(UnsuitableBrokerError, match="CloudpickleSerializer runs code"):
        await broker.startup()
    insecure = ZeroMQBroker("tcp://192.0.2.1:1", insecure=True)
    with pytest.raises(UnsuitableBrokerError, match="CloudpickleSerializer runs code"):
        await insecure.with_serializer(CloudpickleSerializer()).startup()
    keyed = ZeroMQBroker(server_public_key=keys / "server.key")
    async with keyed.with_serializer(CloudpickleSerializer()):
        pass


def test_half_a_configuration_says_what_is_missing(keys: Path, tmp_path: Path) -> None:
    secret = keys / "server.key_secret"
    with pytest.raises(ValueError, match="client_keys has to say who may connect"):
        ZeroMQBroker(server_secret_key=secret)
    with pytest.raises(ValueError, match="needs server_public_key"):
        ZeroMQBroker(client_secret_key=keys / "client.key_secret")
    with pytest.raises(ValueError, match="max_message is 0"):
        ZeroMQBroker(max_message=0)
    for wrong, text in (
        (keys / "server.key", "no secret key"),
        (tmp_path / "none", "No such file"),
    ):
        broker = ZeroMQBroker(server_secret_key=wrong, client_keys="*")
        with pytest.raises(UnsuitableBrokerError, match=text):
            broker.listener_settings()


def test_a_secret_that_others_can_read_is_a_note_in_the_log(keys: Path) -> None:
    secret = keys / "server.key_secret"
    secret.chmod(0o644)
    (note,) = ZeroMQBroker(server_secret_key=secret, client_keys="*").listener_settings().notes
    assert "can be read by others; chmod 600" in note
