"""Frames: what is written is read again, and whatever else arrives is a ProtocolError."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_supervise.broker.zeromq.protocol import (
    Accepted,
    Alive,
    AllAccepted,
    AskProgress,
    Batch,
    Bye,
    Cancel,
    Denied,
    Ended,
    Failed,
    Heard,
    Hello,
    Look,
    Progress,
    ProtocolError,
    Put,
    Refused,
    TakeBack,
    Wait,
    Welcome,
    WhoAreYou,
    decode_from_client,
    decode_from_listener,
    encode_from_client,
    encode_from_listener,
    number_of_put,
    numbered,
)
from taskiq_supervise.ipc import DeadReason, Outcome, OutcomeKind, Ticket
from taskiq_supervise.ipc.model import DeathCause

characters = st.characters(exclude_categories=["Cs"])
texts = st.text(characters, max_size=20)
task_ids = st.text(characters, min_size=1, max_size=50)
numbers = st.integers(1, 2**48 - 1)
times = st.none() | st.floats(0, 2.0**33, exclude_max=True)
payloads = st.binary(max_size=100)
large_payloads = st.just(bytes(10_000))
targets = task_ids | st.builds(
    Ticket, st.integers(0, 2**32 - 2), st.integers(0, 2**63 - 1), task_ids
)
causes = st.builds(
    DeathCause,
    pid=st.integers(0, 2**22),
    worker=st.none() | st.integers(0, 1000),
    signal=st.integers(1, 64),
    oom=st.booleans(),
    hung=st.booleans(),
)
outcomes = st.builds(
    Outcome,
    task_ids,
    st.sampled_from(OutcomeKind),
    payloads,
    st.integers(0, 255),
    st.none() | st.sampled_from(DeadReason),
    texts,
    st.none() | causes,
    st.tuples() | st.tuples(payloads, payloads),
)
from_client = st.one_of(
    st.builds(Hello, st.binary(min_size=16, max_size=16), st.integers(0, 2**31 - 1), texts),
    st.builds(
        Put, numbers, task_ids, payloads | large_payloads,
        st.tuples() | st.tuples(payloads, payloads),
        st.integers(0, 9), times, times, st.integers(0, 255),
    ),
    st.builds(
        Batch,
        st.lists(st.builds(Put, numbers, task_ids, payloads), min_size=1, max_size=3).map(tuple),
    ),
    st.builds(TakeBack, numbers),
    st.builds(Heard, numbers),
    st.builds(Wait, numbers, targets),
    st.builds(Look, numbers, targets),
    st.builds(AskProgress, numbers, task_ids),
    st.builds(Cancel, numbers),
    st.just(Alive()),
    st.just(Bye()),
)  # fmt: skip
some_texts = st.text(characters, min_size=1, max_size=20)
answers = st.builds(
    Accepted, numbers, st.none() | st.integers(0, 2**32 - 2), st.integers(0, 2**63 - 1)
)
from_listener = st.one_of(
    st.builds(
        Welcome, texts, st.integers(0, 2**48 - 1), st.integers(1, 2**31 - 1), st.integers(1, 2**62),
        st.integers(1, 2**62), st.floats(0.001, 1e6),
    ),
    st.just(WhoAreYou()),
    answers,
    st.builds(AllAccepted, st.lists(answers, min_size=2).map(tuple)),
    st.builds(Refused, numbers, some_texts, some_texts),
    st.builds(Ended, numbers, outcomes),
    st.builds(Progress, numbers, st.none() | texts, st.none() | st.dictionaries(texts, texts)),
    st.builds(Failed, numbers, some_texts, some_texts),
    st.just(Alive()),
    st.builds(Denied, some_texts, some_texts),
    st.just(Bye()),
)  # fmt: skip


@given(from_client)
def test_what_a_client_says_arrives(message: Any) -> None:
    assert decode_from_client(encode_from_client(message)) == message


@given(from_listener)
def test_what_the_listener_says_arrives(message: Any) -> None:
    assert decode_from_listener(encode_from_listener(message)) == message


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_noise_is_a_protocol_error(frames: list[bytes]) -> None:
    for head in (b"", *(b"\x01" + bytes([kind]) for kind in b"HPMTKWGRCABh?ondpeaxb")):
        for decode in (decode_from_client, decode_from_listener):
            try:
                decode([head, *frames] if head else frames)
            except ProtocolError:
                continue


@st.composite
def damaged(draw: st.DrawFn, messages: st.SearchStrategy[Any], encode: Any) -> list[bytes]:
    frames = [bytes(frame) for frame in encode(draw(messages))]
    index = draw(st.integers(0, len(frames) - 1))
    frame = bytearray(frames[index])
    match draw(st.sampled_from(["flip", "cut", "longer", "lost", "twice"])):
        case "flip" if frame:
            frame[draw(st.integers(0, len(frame) - 1))] ^= 1 << draw(st.integers(0, 7))
        case "cut" if frame:
            del frame[draw(st.integers(0, len(frame) - 1)) :]
        case "lost":
            return frames[:index] + frames[index + 1 :]
        case "twice":
            return [*frames[:index], frames[index], *frames[index:]]
        case _:
            frame += draw(st.binary(min_size=1, max_size=5))
    frames[index] = bytes(frame)
    return frames


@given(damaged(from_client, encode_from_client) | damaged(from_listener, encode_from_listener))
def test_damaged_messages_are_read_as_valid_ones_or_not_at_all(frames: list[bytes]) -> None:
    """What is read is within the limits: written and read once more, it is the same."""
    for decode, encode in (
        (decode_from_client, encode_from_client),
        (decode_from_listener, encode_from_listener),
    ):
        try:
            message: Any = decode(frames)
        except ProtocolError:
            continue
        assert decode(encode(message)) == message


def put(task_id: bytes = b"id", schedule: bytes = b"", *, number: int = 1) -> bytes:
    """A head as it is written, whatever is in it."""
    sizes = struct.pack(">BH", len(task_id), len(schedule))
    return b"\x01P" + number.to_bytes(8, "big") + sizes + task_id + schedule


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([], "without a frame"),
        ([b"\x02P"], "version 2"),
        ([b"\x01Z"], "unknown kind"),
        ([b"\x01"], "head of 1 bytes"),
        ([b"\x01A?"], "head b'A' of 3 bytes"),
        ([b"\x01T"], "1 frames"),
        ([b"\x01P"], "head of 2 bytes"),
        ([put(number=0)], "number is 0"),
        ([put(number=2**64 - 1)], "number is"),
        ([put(b"")], "task id of 0 bytes"),
        ([put(b"x" * 201)], "task id of 201 bytes"),
        ([put(b"\xff")], "not UTF-8"),
        ([put()[:14]], "head of 14 bytes, not 15"),
        ([put() + b"payload", b"payload"], "and a payload, too"),
        ([put(b"id", b"[" * 9000)], "should be JSON is not"),
        ([put(b"id", b'{"due": NaN}')], "NaN"),
        ([put(b"id", b'{"due": 1}')], "is not an object with due"),
        (
            [put(b"id", b'{"priority":true,"due":null,"expires":null,"max_deliveries":0}')],
            "priority is True",
        ),
        (
            [put(b"id", b'{"priority":5,"due":1e999,"expires":null,"max_deliveries":0}')],
            "due is inf",
        ),
        ([b"\x01M"], "1 frames"),
        ([b"\x01M", put(), b"\x01A"], "something else"),
        ([b"\x01H", b"short", b'{"pid":1,"agent":""}'], "client's id of 5 bytes"),
        ([b"\x01W", bytes(8), b"id", b"xxx"], "ticket of 3 bytes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(frames: list[bytes], text: str) -> None:
    with pytest.raises(ProtocolError, match=text) as error:
        decode_from_client(frames)
    assert error.value.is_version == ("version" in text)


@pytest.mark.parametrize("size", [0, 1, 8192, 8193, 1 << 20])
def test_a_payload_arrives_in_as_few_frames_as_are_worth_it(size: int) -> None:
    payload = bytes(size)
    frames = encode_from_client(Put(1, "id", payload))
    assert len(frames) == (1 if size <= 8192 else 2)
    message = decode_from_client(numbered(frames, 2**48 - 1))
    assert message == Put(2**48 - 1, "id", payload)


@pytest.mark.parametrize("tail", [b"", bytes(19), bytes(41)])
def test_tickets_that_are_cut_are_none(tail: bytes) -> None:
    with pytest.raises(ProtocolError, match="numbers and tickets"):
        decode_from_listener([b"\x01o" + tail])


def test_the_number_of_a_task_is_in_its_first_frame() -> None:
    frames = encode_from_client(Put(7, "id", bytes(100_000), (b"buffer",)))
    assert number_of_put(frames[0]) == 7
    with pytest.raises(ProtocolError):
        number_of_put(b"\x01H")


def test_payload_and_buffers_are_handed_through_untouched() -> None:
    payload, buffer = memoryview(bytearray(b"payload")), memoryview(bytearray(b"buffer"))
    frames = encode_from_client(Put(7, "id", payload, (buffer,)))
    message = decode_from_client(numbered(frames, 8))
    assert isinstance(message, Put)
    assert message.number == 8
    assert message.payload is payload
    assert message.buffers[0] is buffer
