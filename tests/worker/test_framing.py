"""Messages survive being cut into pieces, and descriptors arrive beside their lines."""

import os
import resource
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_supervise.ipc.framing import (
    MAX_LINE,
    FramingError,
    LineDecoder,
    encode,
    receive,
    send,
    send_with_fd,
)

messages = st.lists(
    st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text()))
)


@given(messages, st.lists(st.integers(min_value=1, max_value=9)))
def test_messages_survive_being_cut(sent: list[dict[str, Any]], cuts: list[int]) -> None:
    stream = b"".join(map(encode, sent))
    decoder = LineDecoder()
    arrived = []
    for size in cuts:
        arrived += decoder.feed(stream[:size])
        stream = stream[size:]
    arrived += decoder.feed(stream)
    assert arrived == sent
    assert not decoder.incomplete


@pytest.mark.parametrize("line", [b"[1]\n", b"{\n", b"\xff\n", b"\n"])
def test_what_is_no_message_is_an_error_that_shows_it(line: bytes) -> None:
    with pytest.raises(FramingError, match="not a JSON object"):
        LineDecoder().feed(line)


def test_a_line_without_an_end_is_given_up() -> None:
    decoder = LineDecoder()
    decoder.feed(b"x" * MAX_LINE)
    assert decoder.incomplete
    with pytest.raises(FramingError, match="has no end"):
        decoder.feed(b"x")


def test_descriptors_arrive_in_the_order_of_their_lines() -> None:
    ours, theirs = socket.socketpair()
    pipes = [os.pipe() for _ in range(3)]
    with ours, theirs:
        send(ours, {"number": -1})
        for number, (reading, _) in enumerate(pipes):
            send_with_fd(ours, {"number": number}, reading)
        decoder = LineDecoder()
        lines: list[dict[str, Any]] = []
        fds: list[int] = []
        while len(lines) < 4:
            data, new, _ = receive(theirs)
            lines += decoder.feed(data)
            fds += new
        assert [line["number"] for line in lines] == [-1, 0, 1, 2]
        for fd, (_, writing) in zip(fds, pipes, strict=True):
            os.write(writing, str(writing).encode())
            assert os.read(fd, 10) == str(writing).encode()
            assert not os.get_inheritable(fd)
        ours.close()
        assert receive(theirs) == (b"", [], False)
    for fd in (*fds, *(fd for pipe in pipes for fd in pipe)):
        os.close(fd)


def test_descriptors_that_find_no_room_are_told_of_and_the_line_arrives() -> None:
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with ours, theirs:
        socket.send_fds(ours, [encode({"number": 1})], [reading, reading, writing])
        lowest = os.dup(reading)
        os.close(lowest)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
        try:
            data, fds, truncated = receive(theirs)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert LineDecoder().feed(data) == [{"number": 1}]
        assert (fds, truncated) == ([lowest], True)
    for fd in (*fds, reading, writing):
        os.close(fd)
