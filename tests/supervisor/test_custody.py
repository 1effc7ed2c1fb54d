"""What a supervisor holds of an application: its queue, and the endpoints that are listened to."""

import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from taskiq_supervise.supervisor.core.model import EXIT_FAILED, EXIT_REFUSED
from taskiq_supervise.supervisor.core.transport import Listening, Transport
from taskiq_supervise.supervisor.custody import Custody, CustodyRefused
from taskiq_supervise.supervisor.endpoints import Endpoints, EndpointTaken

DIRECT = Transport("broker", "app.Own")
Listen = Callable[..., Transport]


@pytest.fixture
async def custody() -> AsyncIterator[Custody]:
    custody = Custody()
    yield custody
    await custody.close()


@pytest.fixture
def listen(tmp_path: Path) -> Listen:
    """Makes the transport of a listener on endpoints of these names."""
    unique = uuid.uuid4()

    def make(*names: str, cls: str = "app.Own", **changes: object) -> Transport:
        endpoints = tuple(f"ipc:///{unique}/{name}" for name in names)
        listening = Listening("Own", cls, "it publishes", endpoints)
        return Transport(
            "listener",
            "feed",
            str(tmp_path),
            listener=replace(listening, **changes),  # type: ignore[arg-type]
        )

    return make


async def is_free(transport: Transport) -> bool:
    assert transport.listener is not None
    endpoints = Endpoints()
    try:
        await endpoints.take(transport.listener.endpoints, "another")
    except EndpointTaken:
        return False
    endpoints.close()
    return True


async def test_for_a_listener_both_its_queue_and_its_endpoints_are_held(
    custody: Custody, listen: Listen
) -> None:
    transport = listen("a", "b")
    await custody.open(transport, "app", 3)
    assert custody.participant > 0
    assert custody.stats() is not None
    assert not await is_free(listen("b"))
    await custody.close()
    assert await is_free(transport)


async def test_an_endpoint_that_somebody_has_is_refused_with_status_4(
    custody: Custody, listen: Listen
) -> None:
    endpoints = Endpoints()
    transport = listen("a")
    assert transport.listener is not None
    await endpoints.take(transport.listener.endpoints, "first")
    with pytest.raises(CustodyRefused, match="is served by") as caught:
        await custody.open(transport, "app", 3)
    endpoints.close()
    assert caught.value.exit_code == EXIT_REFUSED
    assert not custody.has_queue


async def test_where_no_segment_can_be_made_the_other_transport_is_named(
    custody: Custody, listen: Listen, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    transport = replace(listen("a"), directory=str(tmp_path / "file"))
    with pytest.raises(CustodyRefused, match="--transport zmq") as caught:
        await custody.open(transport, "app", 3)
    assert caught.value.exit_code == EXIT_FAILED


async def test_without_shared_memory_there_is_no_queue(custody: Custody, listen: Listen) -> None:
    await custody.open(listen("a", store="zmq"), "app", 3)
    assert (custody.has_queue, custody.participant, custody.stats()) == (False, 0, None)
    assert not await is_free(listen("a"))


async def test_new_code_may_listen_elsewhere_and_the_old_endpoint_is_free_in_the_end(
    custody: Custody, listen: Listen
) -> None:
    await custody.open(listen("old"), "app", 3)
    await custody.open(listen("new"), "app", 3)
    assert not await is_free(listen("old"))
    await custody.keep(listen("new"))
    assert await is_free(listen("old"))
    assert not await is_free(listen("new"))


async def test_new_code_may_do_without_a_listener_and_back(
    custody: Custody, listen: Listen
) -> None:
    await custody.open(listen("a"), "app", 3)
    await custody.open(DIRECT, "app", 3)
    assert custody.has_queue
    await custody.keep(DIRECT)
    assert not custody.has_queue
    assert await is_free(listen("a"))
    await custody.open(listen("a"), "app", 3)
    assert custody.has_queue


async def test_another_broker_or_another_store_is_not_followed(
    custody: Custody, listen: Listen
) -> None:
    await custody.open(listen("a"), "app", 3)
    for other in (
        Transport("broker", "app.Another"),
        Transport("shm", "feed", listen().directory),
        listen("a", store="zmq"),
    ):
        with pytest.raises(CustodyRefused, match="stop and start"):
            await custody.open(other, "app", 3)
