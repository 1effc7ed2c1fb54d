"""What a zygote says is understood, or it is one that has to be replaced."""

from typing import Any

import pytest

from taskiq_supervise import __version__
from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.transport import Listening, Transport
from taskiq_supervise.supervisor.zygote import understand

LOADED: dict[str, Any] = {
    "op": "loaded",
    "version": __version__,
    "transport": {"kind": "broker", "class": "taskiq_redis.ListQueueBroker"},
    "threads": [],
    "broadcast": None,
}


def test_loaded_with_somebody_elses_broker() -> None:
    expected = m.ZygoteLoaded(3, Transport("broker", "taskiq_redis.ListQueueBroker"))
    assert understand(LOADED, 3) == expected


def test_loaded_with_a_queue_in_shared_memory() -> None:
    transport = {"kind": "shm", "name": "q", "directory": "/d", "geometry": {"slots": 64}}
    message = {**LOADED, "transport": transport, "threads": ["pool"], "broadcast": "why"}
    assert understand(message, 3) == m.ZygoteLoaded(
        3, Transport("shm", "q", "/d", {"slots": 64}), threads=("pool",), broadcast="why"
    )


LISTENER: dict[str, Any] = {
    "kind": "listener",
    "name": "listener-app",
    "directory": "/d",
    "geometry": {"slots": 64},
    "broker": "taskiq.ZeroMQBroker",
    "class": "taskiq.brokers.zmq_broker.ZeroMQBroker",
    "reason": "it publishes",
    "endpoints": ["tcp://127.0.0.1:5555"],
    "own": False,
    "notes": ["a note"],
    "store": "shm",
}


def test_loaded_with_a_broker_that_one_process_listens_to() -> None:
    assert understand({**LOADED, "transport": LISTENER}, 3) == m.ZygoteLoaded(
        3,
        Transport(
            "listener",
            "listener-app",
            "/d",
            {"slots": 64},
            listener=Listening(
                "taskiq.ZeroMQBroker",
                "taskiq.brokers.zmq_broker.ZeroMQBroker",
                "it publishes",
                ("tcp://127.0.0.1:5555",),
                notes=("a note",),
            ),
        ),
    )


def test_an_application_that_cannot_be_loaded() -> None:
    message = {"op": "load_failed", "kind": "user", "message": "boom", "traceback": "Trace"}
    assert understand(message, 3) == m.ZygoteLoadFailed(3, "boom", "Trace")


def test_another_version_of_ours_is_not_loaded_however_it_describes_itself() -> None:
    message = {"op": "loaded", "version": "99.1", "transport": "who knows"}
    assert understand(message, 3) == m.ZygoteLoadFailed(
        3,
        f"it imports taskiq-supervise 99.1 and the supervisor is {__version__}: "
        "restart the service instead of reloading it",
    )


def test_answers_to_forks() -> None:
    forked = understand({"op": "forked", "slot": 1, "generation": 2, "pid": 17}, 3)
    assert isinstance(forked, m.Forked)
    assert (forked.slot, forked.generation, forked.pid) == (1, 2, 17)
    assert 0 <= forked.jitter < 1
    failed = {"op": "fork_failed", "slot": 1, "generation": 2, "errno": 11, "message": "EAGAIN"}
    event = understand(failed, 3)
    assert isinstance(event, m.ForkFailed)
    assert (event.slot, event.generation, event.message) == (1, 2, "EAGAIN")
    assert 0 <= event.jitter < 1


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"op": "dance"},
        {"op": "forked", "slot": 1, "generation": 2},
        {"op": "forked", "slot": "one", "generation": 2, "pid": 3},
        {"op": "loaded"},
        {"op": "loaded", "version": __version__},
        {**LOADED, "transport": {"kind": "pigeon"}},
        {**LOADED, "transport": {**LISTENER, "store": "pigeon"}},
        {**LOADED, "transport": {**LISTENER, "endpoints": None}},
        {**LOADED, "transport": None},
        {**LOADED, "threads": 5},
    ],
    ids=str,
)
def test_everything_else_is_a_reason_to_replace_it(message: dict[str, Any]) -> None:
    event = understand(message, 3)
    assert isinstance(event, m.ZygoteStuck)
    assert str(message) in event.message
