"""What goes through the queue comes out the same, and what is plain JSON stays plain JSON."""

import dataclasses
import datetime
import json
import math
import struct
import time
import uuid
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from taskiq import InMemoryBroker, TaskiqMessage
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.serializers import JSONSerializer, PickleSerializer

from taskiq_supervise.broker.formatter import FrameFormatter
from taskiq_supervise.broker.frames import MAGIC, pack, unpack
from taskiq_supervise.broker.payload import LARGE, Payload, buffers_of, size_of
from taskiq_supervise.broker.shared_memory import SharedMemoryBroker

JSON = JSONSerializer()

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
buffers = st.binary() | st.binary().map(bytearray)
values = st.recursive(
    scalars | buffers,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
# taskiq's JSONFormatter turns infinities into null.
finite = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)
plain_values = st.recursive(
    finite, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


def formatter(serializer: TaskiqSerializer = JSON) -> FrameFormatter:
    return FrameFormatter(SharedMemoryBroker().with_serializer(serializer))


def message(*args: Any, **kwargs: Any) -> TaskiqMessage:
    return TaskiqMessage(
        task_id="id", task_name="app:task", labels={"a": "1"}, args=list(args), kwargs=kwargs
    )


def there_and_back(sent: TaskiqMessage, serializer: TaskiqSerializer = JSON) -> TaskiqMessage:
    both = formatter(serializer)
    return both.loads(both.dumps(sent).message)


@given(st.lists(values), st.dictionaries(st.text(), values))
def test_arguments_come_out_as_they_went_in(args: list[Any], kwargs: dict[str, Any]) -> None:
    sent = message()
    sent.args, sent.kwargs = args, kwargs
    assert there_and_back(sent) == sent


@given(st.lists(values))
def test_arguments_come_out_as_they_went_in_with_pickle(args: list[Any]) -> None:
    sent = message(*args)
    assert there_and_back(sent, PickleSerializer()) == sent


@given(st.lists(plain_values))
def test_a_message_without_buffers_is_what_taskiqs_formatter_writes(args: list[Any]) -> None:
    sent = message(*args)
    ours = formatter().dumps(sent).message
    assert JSONFormatter().loads(ours) == sent
    assert formatter().loads(JSONFormatter().dumps(sent).message) == sent
    assert ours == JSONFormatter().dumps(sent).message


@given(st.lists(values, min_size=1), st.integers(min_value=0))
def test_a_truncated_message_is_a_value_error(args: list[Any], cut: int) -> None:
    data = pack({"args": [b"a frame", *args]}, ("args",), JSON)
    with pytest.raises(ValueError, match=r".+"):
        unpack(data[: cut % len(data)], JSON)


@given(st.binary())
def test_noise_is_a_value_error(noise: bytes) -> None:
    for data in (noise, MAGIC + noise):
        with pytest.raises(ValueError, match=r".+"):
            formatter().loads(data)


def framed(table: Any, envelope: Any, *frames: bytes) -> bytes:
    table_bytes = json.dumps(table).encode()
    envelope_bytes = json.dumps(envelope).encode()
    head = struct.pack("<4sIQ", MAGIC, len(table_bytes), len(envelope_bytes))
    return b"".join([head, table_bytes, envelope_bytes, *frames])


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ([["bytes", 5, ["args", 0]]], "frame 0 of 5 bytes"),
        ([["bytes", -1, ["args", 0]]], "frame 0 is described by"),
        ([["bytes", 4, []]], "frame 0 is described by"),
        ([["object", 4, ["args", 0]]], "frame 0 is described by"),
        ([["bytes", 4, ["args", 1]]], "value is already"),
        ([["bytes", 4, ["args", 7]]], "not in the message"),
        ([["bytes", 4, ["args", "x"]]], "not in the message"),
        ([["bytes", 4, ["args", 1, 0]]], "not in the message"),
        ([["bytes", 2, ["args", 0]]], "2 bytes follow the last frame"),
        ({}, "not a list"),
        ([["pickle", 4, []]], "give the brokers at both sides the same serializer"),
        ([["pickle", 4, ["args"]]], "frame 0 is described by"),
        ([["pickle", 2, []], ["bytes", 2, ["args", 0]]], "beside other frames"),
    ],
)
def test_a_hostile_table_of_frames_is_refused_in_words(table: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        unpack(framed(table, {"args": [None, 1]}, b"1234"), JSON)


def test_a_megabyte_travels_raw_and_fast() -> None:
    content = bytes(range(256)) * 4096
    both = formatter()
    data = both.dumps(message(content)).message
    assert buffers_of(data) == (content,)
    assert size_of(data) < len(content) + 300
    begin = time.perf_counter()
    for _ in range(10):
        assert both.loads(both.dumps(message(content)).message).args == [content]
    # 0.2 ms where it was written; base64 and JSON would take some 20.
    assert (time.perf_counter() - begin) / 10 < 0.010


def test_small_buffers_are_part_of_the_message() -> None:
    both = formatter()
    small, large = bytes(LARGE // 2 - 1), bytes(LARGE // 2)
    data = both.dumps(message(small, [small])).message
    assert type(data) is bytes
    assert len(data) > LARGE - 2
    data = both.dumps(message(small, [large, large])).message
    assert buffers_of(data) == (small, large, large)


@pytest.mark.parametrize(
    "blob",
    [
        bytes(range(256)) * 512,
        bytearray(range(256)) * 512,
        memoryview(bytes(range(256)) * 512)[::2],
        memoryview(bytes(range(256)) * 512).cast("I"),
        memoryview(bytes(range(256)) * 512).cast("B", (512, 256)),
    ],
)
def test_large_buffers_beside_the_message_find_their_place(blob: Any) -> None:
    both = formatter()
    sent = message(blob, {"key": [1, blob]}, None, blob=blob)
    data = both.dumps(sent).message
    assert len(data) < 500
    mapped = Payload.of(bytes(data), [memoryview(bytearray(each)) for each in buffers_of(data)])
    arrived = both.loads(mapped)
    kind = bytearray if isinstance(blob, bytearray) else bytes
    assert arrived.args == [kind(blob), {"key": [1, kind(blob)]}, None]
    assert type(arrived.kwargs["blob"]) is kind


def test_buffers_that_do_not_belong_to_the_message_are_refused() -> None:
    both = formatter()
    data = both.dumps(message(bytes(LARGE))).message
    for buffers in ([bytes(LARGE + 1)], [bytes(LARGE), b"x"], []):
        with pytest.raises(ValueError, match=r"buffers of \[.*\] bytes arrived|frame 0 of 65536"):
            both.loads(Payload.of(bytes(data), buffers))
    with pytest.raises(ValueError, match="4 bytes follow the envelope"):
        both.loads(Payload.of(data + b"more", buffers_of(data)))


def test_at_other_brokers_large_buffers_are_part_of_the_message() -> None:
    content = bytes(range(256)) * 4096
    both = FrameFormatter(InMemoryBroker())
    data = both.dumps(message(content)).message
    assert type(data) is bytes
    assert content in data
    assert both.loads(data).args == [content]


def test_memoryviews_arrive_as_bytes() -> None:
    view = memoryview(bytes(range(10)))
    assert there_and_back(message(view, view[::2])).args == [bytes(view), bytes(view[::2])]


def test_buffers_are_found_in_sets_tuples_models_and_dataclasses() -> None:
    class Model(pydantic.BaseModel):
        blob: bytes

    @dataclasses.dataclass
    class Data:
        blob: bytes
        name: str

    raw = b"\xff\xfe"
    arrived = there_and_back(message({raw}, (1, raw), [Model(blob=raw)], Data(raw, "x"), {7: raw}))
    assert arrived.args == [
        [raw],
        [1, raw],
        [{"blob": raw}],
        {"blob": raw, "name": "x"},
        {"7": raw},
    ]


def test_models_dates_and_ids_travel_as_with_taskiq() -> None:
    class Model(pydantic.BaseModel):
        when: datetime.datetime
        names: set[str]

    when = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    sent = message(Model(when=when, names={"x"}), when, uuid.UUID(int=5), {1}, b"utf-8")
    arrived = there_and_back(sent)
    assert arrived.args[:-1] == JSONFormatter().loads(JSONFormatter().dumps(sent).message).args[:-1]


def test_numbers_that_json_does_not_have_arrive() -> None:
    arrived = there_and_back(message(math.inf, -math.inf, math.nan, 2**200)).args
    assert arrived[:2] == [math.inf, -math.inf]
    assert math.isnan(arrived[2])
    assert arrived[3] == 2**200


def test_a_file_name_that_is_not_utf8_arrives() -> None:
    name = b"caf\xe9".decode(errors="surrogateescape")
    assert there_and_back(message(name)).args == [name]
    assert there_and_back(message(name, b"\xff")).args == [name, b"\xff"]


def test_a_null_in_the_arguments_is_not_taken_for_a_frame() -> None:
    assert there_and_back(message(None, b"x", [None])).args == [None, b"x", [None]]


def test_what_cannot_be_serialized_is_an_error_when_it_is_sent() -> None:
    with pytest.raises(ValueError, match="Unable to serialize unknown type"):
        formatter().dumps(message(object()))


class Point:
    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x

    __hash__ = None  # type: ignore[assignment]


def test_with_pickle_any_object_travels() -> None:
    assert there_and_back(message(Point(3), b"\xff"), PickleSerializer()).args == [
        Point(3),
        b"\xff",
    ]


def test_a_serializer_that_was_set_is_used() -> None:
    class Shouting(TaskiqSerializer):
        def dumpb(self, value: Any) -> bytes:
            return b"!" + json.dumps(value).encode()

        def loadb(self, value: bytes) -> Any:
            assert value[:1] == b"!"
            return json.loads(value[1:])

    assert formatter(Shouting()).dumps(message(1)).message.startswith(b"!")
    assert there_and_back(message(1, b"\xff"), Shouting()).args == [1, b"\xff"]


def test_a_label_of_bytes_survives_being_sent_again() -> None:
    sent = message()
    sent.labels, sent.labels_types = {"key": b"\xff\x00"}, {"key": 6}
    arrived = there_and_back(sent)
    arrived.parse_labels()
    assert arrived.labels == {"key": b"\xff\x00"}
