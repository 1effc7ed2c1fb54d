"""What is shown of a message is what is in it, and looking runs nothing of it."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from taskiq import TaskiqMessage
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.serializers import JSONSerializer, PickleSerializer

from taskiq_supervise.broker import FrameFormatter, frames
from taskiq_supervise.broker.pickling import CloudpickleSerializer
from taskiq_supervise.supervisor.commands import message_text
from taskiq_supervise.supervisor.commands.message_text import (
    Frame,
    MessageText,
    jsonable,
    read_message,
    short_arguments,
    short_labels,
)

LARGE = 200_000


def message(*args: Any, **kwargs: Any) -> TaskiqMessage:
    return TaskiqMessage(
        task_id="id", task_name="app:add", labels={"timeout": 3}, args=list(args), kwargs=kwargs
    )


def formatted(content: TaskiqMessage, serializer: Any = None, *, beside: bool = False) -> bytes:
    broker: Any = SimpleNamespace(serializer=serializer or JSONSerializer(), takes_buffers=beside)
    return FrameFormatter(broker).dumps(content).message


def test_json_is_read_in_full_whoever_wrote_it() -> None:
    content = message(1, "two", [3.0, None], path={"a": True})
    other: Any = SimpleNamespace(serializer=JSONSerializer())
    for payload in (formatted(content), JSONFormatter().dumps(content).message):
        text = read_message(payload)
        assert (text.format, text.task_name) == ("json", "app:add")
        assert (text.args, text.kwargs) == ([1, "two", [3.0, None]], {"path": {"a": True}})
        assert text.labels is not None
        assert text.labels["timeout"] in (3, "3")
    assert other


@pytest.mark.parametrize("beside", [False, True])
def test_raw_frames_are_named_where_they_belong(beside: bool) -> None:
    content = message(b"\xff\xfe", [bytearray(LARGE)], data={"deep": b"x" * 3})
    text = read_message(formatted(content, beside=beside))
    assert (text.format, text.task_name) == ("frames", "app:add")
    assert text.args == [Frame("bytes", 2), [Frame("bytearray", LARGE)]]
    assert text.kwargs == {"data": {"deep": Frame("bytes", 3)}}
    assert short_arguments(text) == (
        f"<bytes, 2 bytes>, [<bytearray, {LARGE} bytes>], data={{'deep': <bytes, 3 bytes>}}"
    )
    assert json.loads(json.dumps(jsonable(text.args)))[0] == {"type": "bytes", "size": 2}


def test_the_magic_is_the_formatters() -> None:
    assert message_text.MAGIC == frames.MAGIC


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("beside", [False, True])
def test_of_a_cloudpickle_message_name_and_labels_are_read_and_nothing_is_run(
    tmp_path: Path, beside: bool
) -> None:
    bomb = tmp_path / "went-off"
    content = message(Bomb(str(bomb)), bytes(LARGE))
    text = read_message(formatted(content, CloudpickleSerializer(), beside=beside))
    assert (text.format, text.task_name, text.args) == ("pickle", "app:add", None)
    assert text.labels is not None
    assert text.preview is not None
    assert text.preview.startswith("<pickle, ")
    assert not bomb.exists()


def test_of_a_pickle_the_name_is_read_and_nothing_is_run(tmp_path: Path) -> None:
    bomb = tmp_path / "went-off"
    values = message().model_dump() | {"args": [Bomb(str(bomb))]}
    for protocol in range(2, 6):
        text = read_message(pickle.dumps(values, protocol))
        assert (text.format, text.task_name, text.args) == ("pickle", "app:add", None)
    assert read_message(cloudpickle.dumps(values)).task_name == "app:add"
    assert read_message(PickleSerializer().dumpb(values)).task_name == "app:add"
    assert not bomb.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\x00 not a message",
        b"[1, 2]",
        b'"text"',
        b"{}",
        b'{"task_name": 5}',
        b"[" * 100_000,
        b"\xf5TSF",
        b"\xf5TSF" + b"\xff" * 12,
        b"\xf5TSF" + bytes(12) + b"{}",
    ],
    ids=lambda payload: repr(payload[:12]),
)
def test_what_is_no_message_is_shown_by_its_beginning(payload: bytes) -> None:
    text = read_message(payload)
    assert (text.format, text.task_name) == ("unknown", None)
    assert text.preview is not None
    assert text.preview.startswith(repr(payload[:5])[:-1])
    assert len(text.preview) < 1_200
    assert short_arguments(text) is None
    assert short_labels(text) is None


def test_a_pickle_without_a_name_or_cut_short_is_just_a_pickle() -> None:
    whole = pickle.dumps({"task_name": "app:add"})
    for payload in (pickle.dumps([1]), whole[:14], b"\x80\x05", b"\x80\x05\x95\xff"):
        assert read_message(payload) == MessageText("pickle", preview=repr(payload))


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x80\x04", b"\xf5TSF", b'{"task_name":"']))
def test_reading_never_fails(rest: bytes, beginning: bytes) -> None:
    assert read_message(beginning + rest).format in {"json", "frames", "pickle", "unknown"}


@given(st.integers(0, 120), st.integers(0, 255))
def test_a_damaged_message_does_not_hurt(position: int, value: int) -> None:
    payload = bytearray(formatted(message(b"raw", [b"bytes"], deep={"x": b"y"})))
    payload[position] = value
    read_message(bytes(payload))


def test_frames_that_lead_nowhere_are_left_out() -> None:
    table = b'[["bytes", 3, ["args", 7]], ["bytes", 3, ["args", "x"]], ["bytes", 3, ["other"]], 5]'
    envelope = b'{"task_name": "t", "args": [1], "kwargs": {}, "labels": {}}'
    head = message_text._HEAD.pack(message_text.MAGIC, len(table), len(envelope))
    text = read_message(head + table + envelope)
    assert (text.task_name, text.args, text.kwargs) == ("t", [1], {})


def test_long_arguments_are_shortened() -> None:
    content = message("x" * 10_000, list(range(10_000)), *range(20), key={"deep": "y" * 999})
    shown = short_arguments(read_message(formatted(content)))
    assert shown is not None
    assert len(shown) < 400
    assert shown.startswith("'xxx")
    assert "[0, 1, 2, 3, 4, 5, ...]" in shown
    assert shown.endswith("… 11 more")


def test_labels_are_shown_as_they_were_given() -> None:
    text = MessageText("json", "t", {"priority": 3, "queue": "mail"}, [], {})
    assert short_labels(text) == "priority=3, queue='mail'"
    assert short_arguments(text) == ""
