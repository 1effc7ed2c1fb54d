"""With CloudpickleSerializer any object travels, and large memory travels beside the pickle."""

import array
import dataclasses
import io
import json
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from taskiq import InMemoryBroker, TaskiqMessage
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import JSONSerializer, PickleSerializer

from taskiq_supervise.broker import (
    CloudpickleSerializer,
    Payload,
    SharedMemoryBroker,
)
from taskiq_supervise.broker.formatter import FrameFormatter
from taskiq_supervise.broker.frames import MAGIC
from taskiq_supervise.broker.payload import LARGE, buffers_of, size_of

SERIALIZER = CloudpickleSerializer()


def formatter(serializer: TaskiqSerializer = SERIALIZER) -> FrameFormatter:
    broker = SharedMemoryBroker().with_serializer(serializer)
    assert isinstance(broker, SharedMemoryBroker)
    return FrameFormatter(broker)


def message(*args: Any, **kwargs: Any) -> TaskiqMessage:
    return TaskiqMessage(
        task_id="id", task_name="app:task", labels={"a": "1"}, args=list(args), kwargs=kwargs
    )


def as_mapped(data: bytes) -> bytes:
    """As the queue hands it out: the buffers in other memory, writable for the task."""
    return Payload.of(bytes(data), [memoryview(bytearray(buffer)) for buffer in buffers_of(data)])


def there_and_back(*args: Any, **kwargs: Any) -> TaskiqMessage:
    both = formatter()
    return both.loads(as_mapped(both.dumps(message(*args, **kwargs)).message))


def address(buffer: Any) -> int:
    return int(np.frombuffer(buffer, np.uint8).__array_interface__["data"][0])


def view(of: Any) -> memoryview:
    return memoryview(of)


# --- any object ----------------------------------------------------------------------------------


def test_lambdas_and_closures_travel() -> None:
    factor = 3
    (function,) = there_and_back(lambda x: x * factor).args
    assert function(5) == 15
    assert there_and_back(key=len).kwargs["key"]("four") == 4


def test_classes_of_main_travel() -> None:
    code = """
import dataclasses, pickle, sys
from taskiq_supervise.broker import CloudpickleSerializer

@dataclasses.dataclass
class Point:
    x: int
    def doubled(self): return Point(2 * self.x)

sys.stdout.buffer.write(CloudpickleSerializer().dumpb([Point(3), Point]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    point, cls = SERIALIZER.loadb(done.stdout)
    assert isinstance(point, cls)
    assert point.doubled() == cls(6)


@dataclasses.dataclass
class Node:
    name: str
    blob: bytes = b""
    next: "Node | None" = None


def test_cycles_and_shared_objects_stay_what_they_are() -> None:
    node = Node("a")
    node.next = node
    shared = [1]
    arrived = there_and_back(node, shared, again=shared)
    assert arrived.args[0].next is arrived.args[0]
    assert arrived.args[1] is arrived.kwargs["again"]


values = st.recursive(
    st.none()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers(), inner),
    max_leaves=20,
)


@given(st.lists(values), st.dictionaries(st.text(), values))
def test_arguments_come_out_as_they_went_in(args: list[Any], kwargs: dict[str, Any]) -> None:
    arrived = there_and_back(*args)
    assert arrived.args == args
    sent = message()
    sent.kwargs = kwargs
    both = formatter()
    assert both.loads(both.dumps(sent).message).kwargs == kwargs


def test_what_cannot_be_pickled_is_an_error_when_it_is_sent() -> None:
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock'"):
        formatter().dumps(message(threading.Lock()))


def test_task_and_labels_can_be_read_without_running_the_pickle() -> None:
    data = formatter().dumps(message(lambda: 1)).message
    magic, table_size, envelope_size = struct.unpack_from("<4sIQ", data)
    assert magic == MAGIC
    begin = struct.calcsize("<4sIQ") + table_size
    envelope = json.loads(data[begin : begin + envelope_size])
    assert (envelope["task_id"], envelope["task_name"]) == ("id", "app:task")
    assert envelope["labels"] == {"a": "1"}


@pytest.mark.parametrize("other", [JSONSerializer(), PickleSerializer()])
def test_who_has_not_asked_for_pickles_runs_none(other: TaskiqSerializer) -> None:
    data = formatter().dumps(message(1)).message
    with pytest.raises(ValueError, match=r".+"):
        formatter(other).loads(data)
    with pytest.raises(ValueError, match="the same serializer"):
        formatter(JSONSerializer()).loads(data)


def test_plain_messages_of_taskiq_are_read_too() -> None:
    sent = message(1, b"\xff", key="value")
    assert formatter().loads(formatter(JSONSerializer()).dumps(sent).message) == sent


# --- large memory --------------------------------------------------------------------------------

COUNT = LARGE  # of eight bytes each


def test_a_large_array_is_copied_nowhere() -> None:
    sent = np.arange(COUNT, dtype=np.float64)
    both = formatter()
    data = both.dumps(message(sent, "x")).message
    assert len(data) < 1000
    (buffer,) = buffers_of(data)
    assert address(buffer) == address(sent)
    assert size_of(data) == len(data) + sent.nbytes

    arrived_data = as_mapped(data)
    arrived, _ = both.loads(arrived_data).args
    assert address(arrived) == address(buffers_of(arrived_data)[0])
    assert arrived.flags.writeable
    np.testing.assert_array_equal(arrived, sent)


def test_small_memory_stays_in_the_pickle() -> None:
    sent = message(np.arange(10), bytes(100), bytearray(100), memoryview(b"x" * 100))
    assert type(formatter().dumps(sent).message) is bytes


def large_values() -> list[Any]:
    numbers = np.arange(COUNT, dtype=np.int64)
    return [
        numbers.astype(np.float32),
        numbers.reshape(256, -1),
        np.asfortranarray(numbers.reshape(256, -1)),
        numbers[::-2],
        numbers.astype("M8[s]"),
        np.array([("x", 1)] * COUNT, dtype=[("name", "U1"), ("n", "i4")]),
        np.ma.masked_array(numbers, mask=numbers % 2 == 0),
        bytes(range(256)) * 1024,
        bytearray(range(256)) * 1024,
        pd.DataFrame({"a": numbers, "b": numbers * 0.5, "c": numbers * 2.5}),
        pd.Series(numbers, index=pd.date_range("2026", periods=COUNT, freq="s")),
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, pd.DataFrame | pd.Series):
        return bool(one.equals(other))
    if isinstance(one, np.ndarray):
        equal = np.array_equal(np.asarray(one), np.asarray(other))
        in_order = one.ndim == 1 or one.flags.f_contiguous == other.flags.f_contiguous
        return equal and in_order and one.dtype == other.dtype
    return bool(one == other)


@pytest.mark.parametrize("number", range(len(large_values())))
def test_large_values_arrive_as_what_they_are(number: int) -> None:
    sent = large_values()[number]
    (alone,) = there_and_back(sent).args
    inside = there_and_back(key=[{"deep": (sent, sent)}, Node("n")]).kwargs["key"][0]["deep"]
    for arrived in (alone, *inside):
        assert type(arrived) is type(sent)
        assert same(sent, arrived)


def test_bytes_are_found_wherever_they_are() -> None:
    blob = b"x" * LARGE
    data = formatter().dumps(message([{"image": blob}], Node("n", blob))).message
    assert [address(buffer) for buffer in buffers_of(data)] == [address(blob)] * 2
    arrived = formatter().loads(as_mapped(data)).args
    assert arrived == [[{"image": blob}], Node("n", blob)]
    assert type(arrived[1].blob) is bytes


VIEWS: list[Callable[[], memoryview]] = [
    lambda: memoryview(b"x" * LARGE),
    lambda: memoryview(bytearray(b"x" * LARGE)),
    lambda: memoryview(b"small"),
    lambda: memoryview(b""),
    lambda: memoryview(array.array("d", range(COUNT))),
    lambda: memoryview(array.array("h", range(5))),
    lambda: memoryview(bytes(LARGE)).cast("B", (LARGE // 2, 2)),
    lambda: memoryview(bytes(range(256)) * 1024)[::3],
    lambda: view(np.asfortranarray(np.arange(COUNT).reshape(2, -1))),
    lambda: view(np.float64(2.5)),
    lambda: view(np.zeros((0, 3))),
]


@pytest.mark.parametrize("make", VIEWS)
def test_a_memoryview_arrives_as_one_that_needs_no_copy(make: Callable[[], memoryview]) -> None:
    sent = make()
    both = formatter()
    data = as_mapped(both.dumps(message(sent)).message)
    (arrived,) = both.loads(data).args
    assert type(arrived) is memoryview
    assert (arrived.tolist(), arrived.format) == (sent.tolist(), sent.format)
    assert arrived.shape == sent.shape or not sent.nbytes
    if buffers_of(data):
        assert address(arrived.cast("B")) == address(buffers_of(data)[0])


def test_a_memoryview_of_records_is_refused_in_words() -> None:
    records = np.zeros(3, dtype=[("name", "S4"), ("n", "i4")])
    with pytest.raises(pickle.PicklingError, match="send the array"):
        formatter().dumps(message(view(records)))


def test_read_only_arrays_stay_read_only_and_others_do_not() -> None:
    fixed = np.arange(COUNT)
    fixed.flags.writeable = False
    arrived = there_and_back(fixed, np.arange(COUNT), np.arange(3)).args
    assert [one.flags.writeable for one in arrived] == [False, True, True]


def test_buffers_that_got_lost_are_an_error() -> None:
    both = formatter()
    data = both.dumps(message(np.arange(COUNT))).message
    with pytest.raises(pickle.UnpicklingError, match="buffers"):
        both.loads(bytes(data))


def test_at_other_brokers_everything_is_in_the_message() -> None:
    broker = InMemoryBroker().with_serializer(SERIALIZER)
    both = FrameFormatter(broker)
    sent = np.arange(COUNT)
    blob = bytes(LARGE)
    data = both.dumps(message(sent, blob, memoryview(blob))).message
    assert type(data) is bytes
    arrived = both.loads(data).args
    np.testing.assert_array_equal(arrived[0], sent)
    assert arrived[1:] == [blob, memoryview(blob)]


@pytest.mark.parametrize("pid", [("object", b""), ("memoryview", b"1234", "B", (4,), 5), "bytes"])
def test_an_unknown_kind_of_buffer_is_an_error(pid: Any) -> None:
    class Strange(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return pid if obj == "here" else None

    stream = io.BytesIO()
    Strange(stream, 5).dump(["here"])
    with pytest.raises(pickle.UnpicklingError, match="unknown kind of buffer"):
        SERIALIZER.loadb(stream.getvalue())
