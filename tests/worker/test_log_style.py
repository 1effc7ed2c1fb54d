"""Log lines for programs: each one is a JSON object, whatever is logged."""

import io
import json
import logging
import math
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_supervise.worker import log_handler, log_style
from taskiq_supervise.worker.config import LOG_FORMAT

if TYPE_CHECKING:
    from tests.worker.conftest import Nursery


class Log:
    """A logger that writes in one style, and what it has written."""

    def __init__(self, style: str = "json") -> None:
        self._stream = io.StringIO()
        handler = log_handler.handler(style, "%(levelname)s: %(message)s")
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(self._stream)
        self.logger = logging.Logger("orders")  # noqa: LOG001 - of no tree
        self.logger.addHandler(handler)

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def line(self) -> dict[str, Any]:
        [line] = self.text.splitlines()
        found: dict[str, Any] = json.loads(line, parse_constant=lambda _: pytest.fail("not JSON"))
        return found


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_style, "_identity", {})


def test_a_line_says_when_who_and_what() -> None:
    log_style.identify(instance="shop", worker=3)
    log = Log()
    log.logger.warning("%d orders\nleft", 7)
    line = log.line
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert isinstance(line.pop("pid"), int)
    assert line == {
        "level": "WARNING",
        "logger": "orders",
        "message": "7 orders\nleft",
        "process": "MainProcess",
        "worker": 3,
        "instance": "shop",
    }


def test_every_extra_is_a_key_of_its_own_and_none_takes_the_place_of_another() -> None:
    log = Log()
    log.logger.info("x", extra={"order": 5, "worker": 1, "level": "gold", "items": [{"a": None}]})
    line = log.line
    assert (line["order"], line["items"], line["worker"]) == (5, [{"a": None}], 1)
    assert (line["level"], line["extra_level"]) == ("INFO", "gold")


def test_an_exception_is_its_traceback() -> None:
    log = Log()
    try:
        math.sqrt(-1)
    except ValueError:
        log.logger.exception("failed", stack_info=True)
    line = log.line
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: math domain error")
    assert line["stack"].startswith("Stack (most recent call last):")


class Odd:
    def __str__(self) -> str:
        return "odd"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Odd(), "odd"),
        ({Odd()}, None),
        (math.nan, "nan"),
        ([math.inf], "[inf]"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        ("\ud800\n\x00é", "\ud800\n\x00é"),
        (b"\xff", "b'\\xff'"),
    ],
)
def test_what_json_has_no_word_for_is_its_text(value: object, shown: str | None) -> None:
    log = Log()
    log.logger.info("x", extra={"value": value, "other": 1})
    assert log.text.isascii()
    assert log.line["other"] == 1
    assert log.line["value"] == (str(value) if shown is None else shown)


def test_a_cycle_is_its_text() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    log = Log()
    log.logger.info("x", extra={"value": cycle})
    assert log.line["value"] == "[[...]]"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers() | st.binary(), inner)
        | st.tuples(inner)
    ),
)


@given(st.text(), st.dictionaries(st.text(), VALUES))
def test_any_line_is_an_object(message: str, fields: dict[str, Any]) -> None:
    log = Log()
    reserved = {*vars(logging.makeLogRecord({})), "message", "asctime"}
    log.logger.info("%s", message, extra={k: v for k, v in fields.items() if k not in reserved})
    assert log.line["message"] == message


def test_the_other_style_is_logging_s_own() -> None:
    log = Log("text")
    log.logger.info("hello", extra={"order": 5})
    assert log.text == "INFO: hello\n"
    with pytest.raises(ValueError, match="the log style is 'xml'"):
        log_handler.handler("xml", LOG_FORMAT)


APP = """
import logging, sys
from taskiq_supervise import SharedMemoryBroker
broker = SharedMemoryBroker("logging")

@broker.task(task_name="talk")
def talk():
    logging.getLogger("shop").info("sold", extra={"order": 5})
    print("printed, as it is")
    sys.stderr.write("written, as it is\\n")
"""


@pytest.fixture
async def client() -> AsyncIterator[Any]:
    from tests.broker.conftest import SMALL

    from taskiq_supervise.broker import SharedMemoryBroker

    broker = SharedMemoryBroker("logging", geometry=SMALL)
    yield broker
    await broker.shutdown()


@pytest.mark.parametrize("configure", [True, False])
async def test_a_worker_logs_in_it_and_leaves_what_tasks_write(
    nursery: Callable[[str], "Nursery"], client: Any, configure: bool
) -> None:
    from taskiq_supervise.broker.task import QueueKicker

    zygote = nursery(APP)
    zygote.load(log_style="json", configure_logging=configure)
    zygote.supervise("logging")
    await client.startup()
    worker = zygote.fork(1).wait_ready()
    task = await QueueKicker[[], None]("talk", client, {}).kiq()
    assert not (await task.wait_result(timeout=10)).is_err
    worker.order("drain")
    assert worker.wait() == 0
    lines = zygote.log.splitlines()
    assert "printed, as it is" in lines
    assert "written, as it is" in lines
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    if not configure:
        assert not logged
        return
    assert len(logged) == len(lines) - 2
    [sold] = [line for line in logged if line["logger"] == "shop"]
    assert (sold["worker"], sold["instance"], sold["order"]) == (1, "test", 5)
    assert (sold["process"], sold["pid"]) == ("worker-1", worker.pid)
