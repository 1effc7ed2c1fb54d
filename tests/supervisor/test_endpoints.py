"""One supervisor per endpoint: the second one learns who the first is, and dies with nobody."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from taskiq_supervise.supervisor.endpoints import Endpoints, EndpointTaken

_HOLDER = """
import asyncio, sys
from taskiq_supervise.supervisor.endpoints import Endpoints

async def main():
    held = Endpoints()
    await held.take(sys.argv[2:], sys.argv[1])
    print("held", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextmanager
def holder(name: str, *endpoints: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has them."""
    command = [sys.executable, "-c", _HOLDER, name, *endpoints]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def stop(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


@pytest.fixture
def endpoint() -> str:
    """One of its own for each test: the names are the host's."""
    return f"ipc:///tests/{uuid.uuid4()}"


async def refused(endpoints: Endpoints, *wanted: str) -> EndpointTaken:
    with pytest.raises(EndpointTaken) as caught:
        await endpoints.take(wanted, "second")
    return caught.value


async def test_a_second_process_is_refused_and_told_the_name_and_pid_of_the_first(
    endpoint: str,
) -> None:
    with holder("shop", endpoint) as first:
        error = await refused(Endpoints(), endpoint)
        assert (error.endpoint, error.name, error.pid) == (endpoint, "shop", first.pid)
        assert str(error) == (
            f"{endpoint} is served by the supervisor 'shop' (pid {first.pid}) already"
        )


async def test_one_that_stands_still_is_named_by_the_kernel(endpoint: str) -> None:
    with holder("shop", endpoint) as first:
        stop(first)
        error = await refused(Endpoints(), endpoint)
        assert (error.name, error.pid) == ("", first.pid)


async def test_it_is_free_as_soon_as_its_holder_was_killed(endpoint: str) -> None:
    with holder("shop", endpoint) as first:
        first.kill()
        first.wait()
        endpoints = Endpoints()
        await endpoints.take([endpoint], "second")
        endpoints.close()


async def test_all_are_taken_or_none(endpoint: str) -> None:
    free = f"{endpoint}-free"
    endpoints = Endpoints()
    with holder("shop", endpoint):
        await refused(endpoints, free, endpoint)
        other = Endpoints()
        await other.take([free], "third")
        other.close()


async def test_what_one_holds_it_may_take_again_and_a_refusal_leaves_it(endpoint: str) -> None:
    own = f"{endpoint}-own"
    endpoints = Endpoints()
    await endpoints.take([own], "first")
    with holder("shop", endpoint):
        await refused(endpoints, own, endpoint)
    assert str(os.getpid()) in str(await refused(Endpoints(), own))
    endpoints.close()


async def test_another_pool_of_the_same_process_is_said_to_be_that(endpoint: str) -> None:
    endpoints = Endpoints()
    await endpoints.take([endpoint], "shop")
    assert "another pool of this instance" in str(await refused(Endpoints(), endpoint))
    endpoints.close()


async def test_only_those_that_are_kept_stay(endpoint: str) -> None:
    old, new = f"{endpoint}-old", f"{endpoint}-new"
    endpoints, other = Endpoints(), Endpoints()
    await endpoints.take([old, new], "shop")
    endpoints.keep([new])
    await other.take([old], "other")
    await refused(other, new)
    endpoints.close()
    other.close()


async def test_an_address_of_any_length_has_one_holder(endpoint: str) -> None:
    long = endpoint + "/x" * 100
    endpoints = Endpoints()
    with holder("shop", long):
        assert (await refused(endpoints, long)).name == "shop"
        await endpoints.take([f"{long}y"], "second")
    endpoints.close()


async def test_whoever_asks_and_leaves_at_once_does_not_disturb_it(endpoint: str) -> None:
    with holder("shop", endpoint):
        for _ in range(50):
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(f"\0taskiq-supervise/endpoint/{endpoint}")
        assert (await refused(Endpoints(), endpoint)).name == "shop"


@pytest.mark.parametrize(
    "said", [b"", b"{}\n", b"[]\n", b"\xff\n", b"x" * 5000, json.dumps({"name": 1}).encode()]
)
async def test_nonsense_instead_of_a_name_is_as_good_as_none(endpoint: str, said: bytes) -> None:
    from taskiq_supervise.supervisor import endpoints as module

    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(f"\0taskiq-supervise/endpoint/{endpoint}")
        squatter.listen()
        # A child asks: our own process is never asked.
        script = (
            "import asyncio, sys\n"
            f"from {module.__name__} import Endpoints, EndpointTaken\n"
            "try:\n"
            "    asyncio.run(Endpoints().take(sys.argv[1:], 'second'))\n"
            "except EndpointTaken as error:\n"
            "    print(error)\n"
        )
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, endpoint), stdout=asyncio.subprocess.PIPE
        )
        squatter.setblocking(False)
        asking, _ = await asyncio.get_running_loop().sock_accept(squatter)
        with asking:
            await asyncio.get_running_loop().sock_sendall(asking, said)
        out, _ = await child.communicate()
    assert f"(pid {os.getpid()}) already" in out.decode()
