"""Labels say what makes sense, or are refused where they are written."""

import math
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from taskiq import Context, SimpleRetryMiddleware, SmartRetryMiddleware, TaskiqDepends
from taskiq.abc.broker import AsyncBroker
from taskiq.exceptions import SendTaskError, TaskiqError
from taskiq.kicker import AsyncKicker
from taskiq.labels import prepare_label
from taskiq.message import BrokerMessage, TaskiqMessage
from taskiq.receiver import Receiver
from taskiq.result_backends.dummy import DummyResultBackend

from taskiq_supervise.broker.errors import InvalidLabelError
from taskiq_supervise.broker.formatter import FrameFormatter
from taskiq_supervise.broker.labels import (
    PassedDelay,
    Schedule,
    hard_timeout,
    mark_delivered,
    settled,
)

NOW = 1_800_000_000.0
"""15 January 2027."""
HOUR_LATER = datetime.fromtimestamp(NOW + 3600, timezone.utc)


def as_sent(**labels: Any) -> dict[str, str]:
    """As taskiq's kicker makes them."""
    return {name: prepare_label(value)[0] for name, value in labels.items()}


def schedule(**labels: Any) -> Schedule:
    """The labels' meaning, which is the same for strings and for what they were before."""
    meant = Schedule.of(labels, NOW)
    assert Schedule.of(as_sent(**labels), NOW) == meant
    return meant


def test_without_labels_a_task_runs_at_once_in_the_middle_lane() -> None:
    plain = Schedule(priority=5, due=None, expires=None, max_deliveries=0, kiq_timeout=None)
    assert schedule() == schedule(colour="red", timeout=3) == plain
    assert schedule(priority=None, delay=None, eta=None, expires=None, kiq_timeout=None) == plain


def test_priorities_and_deliveries_are_numbers() -> None:
    assert [schedule(priority=number).priority for number in range(10)] == list(range(10))
    assert schedule(max_deliveries=255).max_deliveries == 255


def test_a_delay_counts_from_now() -> None:
    assert schedule(delay=1.5).due == NOW + 1.5
    assert schedule(delay=0).due is None


@pytest.mark.parametrize(
    "eta",
    [
        HOUR_LATER,
        HOUR_LATER.isoformat(),
        HOUR_LATER.strftime("%Y-%m-%dT%H:%M:%SZ"),
        HOUR_LATER.astimezone(timezone(timedelta(hours=5, minutes=30))),
        HOUR_LATER.astimezone().replace(tzinfo=None),
        HOUR_LATER.astimezone().replace(tzinfo=None).isoformat(" "),
        NOW + 3600,
        int(NOW + 3600),
    ],
)
def test_an_eta_is_an_instant_however_it_is_written(eta: object) -> None:
    assert schedule(eta=eta).due == NOW + 3600
    assert schedule(expires=eta).expires == NOW + 3600 or isinstance(eta, (int, float))


def test_an_eta_that_has_passed_is_no_delay() -> None:
    assert schedule(eta=NOW - 1).due is None
    assert schedule(eta="1999-12-31").due is None


def test_expiry_is_seconds_or_an_instant() -> None:
    assert schedule(expires=30).expires == NOW + 30
    assert schedule(expires=HOUR_LATER).expires == NOW + 3600
    # Too late by a little is the same as too late by much: the client gets an error result.
    assert schedule(expires=datetime.fromtimestamp(NOW - 1, timezone.utc)).expires == NOW - 1


def test_the_sender_says_how_long_it_waits_for_room() -> None:
    assert schedule(kiq_timeout=0).kiq_timeout == 0
    assert schedule(kiq_timeout=0.5).kiq_timeout == 0.5
    assert schedule(kiq_timeout=math.inf).kiq_timeout == math.inf


@pytest.mark.parametrize(
    ("value", "limit"), [(5, 5), ("0.5", 0.5), (0, None), ("0", None), (None, 60), ("None", 60)]
)
def test_the_worker_reads_the_hard_limit_and_has_one_for_tasks_without(
    value: object, limit: float | None
) -> None:
    assert hard_timeout({"hard_timeout": value}, 60) == limit
    assert hard_timeout({}, 60) == 60
    assert hard_timeout({}, None) is None
    assert schedule(hard_timeout=value) == Schedule()


@pytest.mark.parametrize(
    ("label", "value", "says"),
    [
        ("hard_timeout", -1, "a number of seconds, 0 (no limit) or more"),
        ("hard_timeout", math.nan, "a number of seconds"),
        ("hard_timeout", math.inf, "a number of seconds"),
        ("hard_timeout", 1e300, "a number of seconds"),
        ("hard_timeout", "long", "a number of seconds"),
        ("hard_timeout", True, "a number of seconds"),
        ("priority", 42, "an integer from 0 to 9"),
        ("priority", -1, "an integer from 0 to 9"),
        ("priority", 5.5, "an integer from 0 to 9"),
        ("priority", "high", "an integer from 0 to 9"),
        ("priority", True, "an integer from 0 to 9"),
        ("delay", -0.5, "a number of seconds, 0 or more"),
        ("delay", math.nan, "a number of seconds"),
        ("delay", math.inf, "a number of seconds"),
        ("delay", 1e300, "a number of seconds"),
        ("delay", "soon", "a number of seconds"),
        ("delay", True, "a number of seconds"),
        ("delay", timedelta(seconds=5), "a number of seconds"),
        ("eta", "tomorrow at noon", "an ISO 8601 time"),
        ("eta", "2026-13-01", "an ISO 8601 time"),
        ("eta", "", "an ISO 8601 time"),
        ("eta", math.nan, "seconds since 1970"),
        ("eta", NOW * 1000, "seconds since 1970, before the year 2242"),
        ("eta", datetime.max, "an ISO 8601 time"),
        ("expires", 0, "more than 0 seconds"),
        ("expires", -3, "more than 0 seconds"),
        ("expires", "never", "a number of seconds from now"),
        ("expires", math.inf, "a number of seconds from now"),
        ("expires", 1e300, "more than 0 seconds"),
        ("max_deliveries", 0, "an integer from 1 to 255"),
        ("max_deliveries", 256, "an integer from 1 to 255"),
        ("max_deliveries", "often", "an integer from 1 to 255"),
        ("kiq_timeout", -1, "a number of seconds, 0 or more"),
        ("kiq_timeout", "patiently", "a number of seconds, 0 or more"),
    ],
)
def test_nonsense_is_an_error_with_label_value_and_what_is_allowed(
    label: str, value: object, says: str
) -> None:
    for labels in ({label: value}, as_sent(**{label: value})):
        with pytest.raises(InvalidLabelError) as caught:
            Schedule.of(labels, NOW)
        assert str(caught.value).startswith(f"the label {label} is {str(value)!r}, not ")
        assert says in str(caught.value)
    assert issubclass(InvalidLabelError, TaskiqError)
    assert issubclass(InvalidLabelError, SendTaskError)


def test_labels_that_contradict_each_other_are_refused() -> None:
    for eta in (NOW + 5, NOW - 5):
        with pytest.raises(InvalidLabelError, match=r"label delay is '5', .* together with eta"):
            schedule(delay=5, eta=eta)
    with pytest.raises(InvalidLabelError, match=r"label expires is '5', not later than .* due"):
        schedule(delay=5, expires=5)
    with pytest.raises(InvalidLabelError, match="not later than the task is due"):
        schedule(eta=HOUR_LATER, expires=60)
    assert schedule(delay=5, expires=6).expires == NOW + 6


# --- sent again ----------------------------------------------------------------------------------


def message(**labels: Any) -> TaskiqMessage:
    prepared = {name: prepare_label(value) for name, value in labels.items()}
    return TaskiqMessage(
        task_id="id",
        task_name="t",
        labels={name: text for name, (text, _) in prepared.items()},
        labels_types={name: kind for name, (_, kind) in prepared.items()},
        args=[],
        kwargs={},
    )


def test_expiry_in_seconds_travels_as_the_instant_that_it_means() -> None:
    labels, types = settled(message(expires=3600, colour="red"), NOW)
    assert labels == {"expires": HOUR_LATER.isoformat(), "colour": "red"}
    assert types is not None
    later = message()
    later.labels, later.labels_types = labels, types
    later.parse_labels()
    assert settled(later, NOW + 1000) == (labels, types)
    assert Schedule.of(labels, NOW + 1000).expires == NOW + 3600


def test_a_message_without_expiry_is_written_as_it_is() -> None:
    for sent in (message(), message(colour="red"), message(expires=HOUR_LATER)):
        assert settled(sent, NOW) == (sent.labels, sent.labels_types)


def test_a_delay_that_has_passed_is_a_number_for_everybody_but_the_queue() -> None:
    for value in (15, 1.5, "15"):
        delivered = message(delay=value)
        mark_delivered(delivered)
        delivered.parse_labels()
        delay = delivered.labels["delay"]
        assert isinstance(delay, float)
        assert float(delay) == float(value)
        assert Schedule.of({"delay": delay}, NOW, again=True).due is None
        # Another task, that was given the labels of this one.
        assert Schedule.of(as_sent(delay=delay), NOW).due == NOW + float(value)
        # Kept by a scheduler, sent by it, and delivered again.
        again = message(delay=delay, _retries=1)
        assert Schedule.of(again.labels, NOW).due is None
        mark_delivered(again)
        again.parse_labels()
        assert isinstance(again.labels["delay"], PassedDelay)
        assert again.labels["delay"] == float(value)
        # What a retry middleware makes of it counts.
        retry = as_sent(delay=float(again.labels["delay"]), _retries=2)
        assert Schedule.of(retry, NOW).due == NOW + float(value)


def test_a_sender_has_no_hurry_with_a_task_that_it_sends_again() -> None:
    labels = as_sent(kiq_timeout=0.1, _retries=1)
    assert Schedule.of(labels, NOW).kiq_timeout is None
    assert Schedule.of(as_sent(kiq_timeout=0.1), NOW, again=True).kiq_timeout is None


STARTED = time.time()
"""The formatter reads the clock."""
IN_AN_HOUR = datetime.fromtimestamp(STARTED + 3600, timezone.utc)


class Recording(AsyncBroker):
    """Keeps what is sent; `deliver()` runs the last of it with taskiq's own receiver."""

    takes_buffers = True

    def __init__(self, *middlewares: Any) -> None:
        super().__init__()
        self.sent: list[BrokerMessage] = []
        self.formatter = FrameFormatter(self)
        self.with_middlewares(*middlewares)
        self.with_result_backend(DummyResultBackend())

    async def kick(self, message: BrokerMessage) -> None:
        self.sent.append(message)

    async def listen(self) -> Any:
        raise NotImplementedError
        yield b""

    async def deliver(self) -> BrokerMessage:
        """Returns what the task, which fails, is sent again as."""
        count = len(self.sent)
        await Receiver(self, run_startup=False).callback(self.sent[-1].message)
        assert len(self.sent) == count + 1
        return self.sent[-1]


def failing(broker: AsyncBroker) -> Any:
    @broker.task(retry_on_error=True, max_retries=10)
    async def fail() -> None:
        raise ValueError("on purpose")

    return fail


async def test_a_simple_retry_runs_at_once_and_expires_when_the_first_did() -> None:
    broker = Recording(SimpleRetryMiddleware())
    await failing(broker).kicker().with_labels(delay=100, expires=1000).kiq()
    first = Schedule.of(broker.sent[0].labels, STARTED)
    assert first.due == STARTED + 100
    for _ in range(3):
        retry = Schedule.of((await broker.deliver()).labels, STARTED + 200)
        assert retry.due is None
        assert retry.expires == first.expires


async def test_a_simple_retry_after_an_eta_runs_at_once() -> None:
    broker = Recording(SimpleRetryMiddleware())
    await failing(broker).kicker().with_labels(eta=IN_AN_HOUR).kiq()
    assert Schedule.of((await broker.deliver()).labels, STARTED + 3601).due is None


@pytest.mark.parametrize("first", [{"delay": 7}, {"delay": 7.0}, {"eta": IN_AN_HOUR}, {}])
async def test_a_smart_retry_waits_for_as_long_as_its_middleware_says(
    first: dict[str, Any],
) -> None:
    broker = Recording(SmartRetryMiddleware(default_delay=7))
    await failing(broker).kicker().with_labels(**first).kiq()
    for _ in range(3):
        again = await broker.deliver()
        assert Schedule.of(again.labels, STARTED + 4000).due == STARTED + 4007


async def test_a_retry_that_waits_longer_than_the_task_lives_is_no_invalid_label() -> None:
    broker = Recording(SmartRetryMiddleware(default_delay=1e6))
    await failing(broker).kicker().with_labels(expires=60).kiq()
    expires = Schedule.of(broker.sent[0].labels, STARTED).expires
    retry = Schedule.of((await broker.deliver()).labels, STARTED)
    assert (retry.due, retry.expires) == (STARTED + 1e6, expires)


@pytest.mark.parametrize("middleware", [SimpleRetryMiddleware, SmartRetryMiddleware])
async def test_a_requeued_task_runs_at_once(middleware: Any) -> None:
    broker = Recording(middleware())

    @broker.task(retry_on_error=True)
    async def again(context: Context = TaskiqDepends()) -> None:
        await context.requeue()

    await again.kicker().with_labels(delay=100, expires=1000).kiq()
    expires = Schedule.of(broker.sent[0].labels, STARTED).expires
    for _ in range(3):
        requeued = Schedule.of((await broker.deliver()).labels, STARTED)
        assert (requeued.due, requeued.expires) == (None, expires)


async def test_with_other_brokers_labels_stay_as_they_are() -> None:
    broker = Recording(SimpleRetryMiddleware())
    broker.takes_buffers = False
    broker.formatter = FrameFormatter(broker)
    await failing(broker).kicker().with_labels(delay=100, expires=1000).kiq()
    for _ in range(2):
        labels = broker.sent[-1].labels
        assert (labels["delay"], labels["expires"]) == ("100", "1000")
        await broker.deliver()


async def test_a_retry_by_way_of_a_scheduler_waits_once() -> None:
    broker = Recording(SimpleRetryMiddleware())
    await failing(broker).kicker().with_labels(delay=100).kiq()
    stored = (await broker.deliver()).labels
    # What a schedule source keeps and its scheduler sends: labels as strings.
    kicker: AsyncKicker[[], None] = AsyncKicker("t", broker, stored)
    await kicker.with_labels(schedule_id="1").kiq()
    assert Schedule.of(broker.sent[-1].labels, STARTED).due is None
