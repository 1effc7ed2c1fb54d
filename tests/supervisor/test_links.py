"""A channel to a process below: messages in order, descriptors beside them, and never a wait."""

import asyncio
import os
import socket
from typing import Any

from taskiq_supervise.ipc.framing import LineDecoder, encode, receive
from taskiq_supervise.supervisor.links import Channel


class Ends:
    """Our end as a channel, theirs as a plain socket, and what our end heard."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.settimeout(10)
        self.heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.ended: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.channel = Channel(
            asyncio.get_running_loop(), ours, self.heard.put_nowait, self.ended.set_result
        )

    def close(self) -> None:
        self.channel.close()
        self.theirs.close()


async def test_messages_arrive_whole_and_in_order() -> None:
    ends = Ends()
    ends.channel.start()
    data = encode({"n": 1}) + encode({"n": 2}) + encode({"n": 3})
    ends.theirs.send(data[:12])
    assert await ends.heard.get() == {"n": 1}
    ends.theirs.send(data[12:])
    assert [await ends.heard.get() for _ in range(2)] == [{"n": 2}, {"n": 3}]
    ends.close()


async def test_what_comes_before_the_start_waits_for_it() -> None:
    ends = Ends()
    ends.theirs.send(encode({"event": "ready"}))
    await asyncio.sleep(0)
    assert ends.heard.empty()
    ends.channel.start()
    assert await ends.heard.get() == {"event": "ready"}
    ends.close()


async def test_the_last_words_of_a_process_that_ended_are_heard() -> None:
    ends = Ends()
    ends.channel.start()
    ends.theirs.send(encode({"event": "boot_failed"}))
    ends.theirs.close()
    ends.channel.read_rest()
    assert ends.heard.get_nowait() == {"event": "boot_failed"}
    assert ends.ended.result() is None
    ends.close()


async def test_an_end_is_said_once_and_nonsense_with_its_reason() -> None:
    closed = Ends()
    closed.channel.start()
    closed.theirs.close()
    assert await closed.ended is None
    closed.close()

    nonsense = Ends()
    nonsense.channel.start()
    nonsense.theirs.send(b"hello\n")
    assert "hello" in str(await nonsense.ended)
    nonsense.close()


async def test_a_descriptor_travels_with_its_message_and_is_closed_here() -> None:
    ends = Ends()
    reading, writing = os.pipe()
    assert ends.channel.send({"op": "fork"}, (writing,))
    data, fds, _ = receive(ends.theirs)
    assert LineDecoder().feed(data) == [{"op": "fork"}]
    os.write(fds[0], b"x")
    os.close(fds[0])
    # The end of the file: nobody else has the writing end any more.
    assert os.read(reading, 10) == b"x"
    assert os.read(reading, 10) == b""
    os.close(reading)
    ends.close()


async def test_more_than_the_other_side_takes_is_kept_and_sent_when_it_does() -> None:
    ends = Ends()
    text = "x" * 100_000
    reading, writing = os.pipe()
    for number in range(20):
        assert ends.channel.send({"n": number, "text": text})
    assert ends.channel.send({"n": 20}, (writing,))

    decoder = LineDecoder()
    numbers: list[int] = []
    descriptors: list[int] = []
    while len(numbers) < 21:
        data, fds, _ = await asyncio.to_thread(receive, ends.theirs)
        descriptors += fds
        numbers += [message["n"] for message in decoder.feed(data)]
    assert numbers == list(range(21))
    assert len(descriptors) == 1
    os.close(descriptors[0])
    assert os.read(reading, 1) == b""
    os.close(reading)
    ends.close()


async def test_sending_to_nobody_is_said_and_leaks_no_descriptor() -> None:
    ends = Ends()
    ends.theirs.close()
    reading, writing = os.pipe()
    assert not ends.channel.send({"op": "drain"}, (writing,))
    assert os.read(reading, 1) == b""
    os.close(reading)
    ends.channel.close()
    assert not ends.channel.send({"op": "drain"})


async def test_closing_drops_what_was_not_sent_and_its_descriptors() -> None:
    ends = Ends()
    ends.channel.send({"text": "x" * 1_000_000})
    reading, writing = os.pipe()
    ends.channel.send({"op": "fork"}, (writing,))
    ends.channel.close()
    assert os.read(reading, 1) == b""
    os.close(reading)
    ends.close()
