"""The client against a listener that loses connections, restarts, answers late, or refuses."""

import asyncio
from typing import Any

import pytest
from taskiq import TaskiqResult, TaskiqResultTimeoutError
from tests.broker.conftest import until
from tests.broker.zeromq.conftest import Scripted, accepted, ended, message, welcome

from taskiq_supervise.broker import (
    BrokerNotStartedError,
    ConnectionDeniedError,
    ListenerUnreachableError,
    MessageRefusedError,
    MessageTooLargeError,
    QueueFullError,
    ResultExpiredError,
    ResultUnreachableError,
    wait_result,
)
from taskiq_supervise.broker.outcomes import encode
from taskiq_supervise.broker.zeromq import ZeroMQBroker, connection
from taskiq_supervise.broker.zeromq.protocol import (
    Accepted,
    AllAccepted,
    AskProgress,
    Bye,
    Cancel,
    Code,
    Denied,
    Ended,
    Failed,
    Heard,
    Hello,
    Look,
    Progress,
    Put,
    Refused,
    TakeBack,
    Wait,
    WhoAreYou,
)
from taskiq_supervise.ipc import Outcome, OutcomeKind, Ticket


def books(broker: ZeroMQBroker) -> tuple[int, int]:
    """How many messages and questions of the running loop are under way."""
    here = broker._attachments.here()
    assert isinstance(here, connection.Connection)
    return len(here._outbox), len(here._questions)


async def connected(broker: ZeroMQBroker) -> connection.Connection:
    await broker.startup()
    here = await broker.connection()
    assert here is not None
    await until(lambda: here.is_connected)
    return here


def result_of(broker: ZeroMQBroker, value: Any) -> bytes:
    result = TaskiqResult(is_err=False, return_value=value, execution_time=0.0)
    return bytes(encode("id", result, broker.serializer))


# --- sending -------------------------------------------------------------------------------------


async def test_kiq_returns_when_the_listener_has_accepted(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    await broker.startup()
    sending = asyncio.create_task(broker.kick(message("a", priority=9, max_deliveries=2)))
    (put,) = await listener.until(Put)
    assert (put.number, put.task_id, bytes(put.payload)) == (1, "a", b"xyz")
    assert (put.priority, put.max_deliveries) == (9, 2)
    await asyncio.sleep(0.01)
    assert not sending.done()
    listener.say(Accepted(1, 3, 4))
    await sending
    assert broker.ticket_of("a") == Ticket(3, 4, "a")
    assert books(broker) == (0, 0)


async def test_tasks_that_are_sent_at_the_same_time_are_one_message(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    await broker.startup()
    sizes = [10] * 20 + [30_000, 8000, 10] + [8000] * 10
    sending = asyncio.gather(
        *(broker.kick(message(str(n), bytes(size))) for n, size in enumerate(sizes))
    )
    puts = await listener.until(Put, len(sizes))
    assert [put.number for put in puts] == list(range(1, len(sizes) + 1))
    # Around the large one, which is a message of its own; and not more bytes than are good for one.
    assert listener.batches == [20, 9, 3]
    listener.say(AllAccepted(tuple(Accepted(put.number, put.number, 7) for put in puts)))
    await sending
    assert books(broker) == (0, 0)


async def test_a_batch_is_no_larger_than_a_message_may_be(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    listener.answers[Hello] = lambda _: [welcome(max_message=1000)]
    listener.answers[Put] = accepted
    await broker.startup()
    await asyncio.gather(*(broker.kick(message(str(n), bytes(290))) for n in range(7)))
    assert listener.batches == [3, 3]


async def test_what_waited_to_be_sent_as_a_connection_broke_is_sent_once(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    listener.answers[Put] = accepted
    await broker.startup()
    await broker.kick(message("first"))
    listener.say(WhoAreYou())
    sending = asyncio.gather(*(broker.kick(message(str(n))) for n in range(10)))
    await sending
    assert [put.number for put in listener.of(Put)] == list(range(1, 12))
    assert broker.ticket_of("9") is not None


async def test_a_client_may_be_there_before_the_listener(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    listener.close()
    listener.answers[Put] = accepted
    await broker.startup()
    sending = asyncio.gather(*(broker.kick(message(str(number))) for number in range(20)))
    await asyncio.sleep(0.05)
    assert not sending.done()
    listener.open()
    await sending
    assert [put.task_id for put in listener.of(Put)] == [str(number) for number in range(20)]


async def test_the_window_is_kept_in_messages_and_in_bytes(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    listener.answers[Hello] = lambda _: [welcome(window=2, window_bytes=1000)]
    await broker.startup()
    sizes = [10, 10, 10, 900, 900, 5000, 10]
    sending = asyncio.gather(
        *(broker.kick(message(str(n), bytes(size))) for n, size in enumerate(sizes))
    )
    # The number of the last that is under way, after each of them was accepted: two small ones,
    # one large and one small, and what is larger than the window only when it is alone.
    for number, under_way in enumerate([2, 3, 4, 4, 5, 6, 7]):
        await listener.until(Put, under_way)
        await asyncio.sleep(0.01)
        assert len(listener.of(Put)) == under_way
        listener.say(Accepted(number + 1, 1, 1))
    await sending


async def test_what_was_not_accepted_is_sent_again_with_its_number(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    await broker.startup()
    sending = [asyncio.create_task(broker.kick(message(str(number)))) for number in range(1, 6)]
    await listener.until(Put, 5)
    listener.say(Accepted(1, 0, 0))
    await sending[0]
    # Of the others, it has accepted 2 and 3, and said so to nobody.
    listener.answers[Hello] = lambda _: [welcome(last=3)]
    listener.close()
    listener.open()
    await listener.until(Hello, 2)
    first, second = listener.of(Hello)
    assert first.client == second.client
    await listener.until(Put, 7)
    assert [put.number for put in listener.of(Put)[5:]] == [4, 5]
    await asyncio.gather(*sending[1:3])
    assert broker.ticket_of("3") is None
    listener.say(Accepted(4))  # it knew it already
    listener.say(Accepted(5, 1, 1))
    await asyncio.gather(*sending)
    listener.answers[Put] = accepted
    await broker.kick(message("6"))
    assert listener.of(Put)[-1].number == 6
    assert books(broker) == (0, 0)


async def test_duplicate_and_late_answers_change_nothing(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    listener.answers[Put] = lambda put: accepted(put) * 2 + [Accepted(put.number + 100, 1, 1)]
    await broker.startup()
    for number in range(3):
        await broker.kick(message(str(number)))
    listener.say(Refused(1, Code.INVALID, "late"))
    listener.say(Ended(99, Outcome("nobody asked", OutcomeKind.NO_RESULT)))
    await broker.kick(message("3"))
    assert [put.number for put in listener.of(Put)] == [1, 2, 3, 4]
    assert books(broker) == (0, 0)


async def test_a_listener_that_has_forgotten_us_is_told_and_gets_everything(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    await connected(broker)
    listener.answers[Put] = lambda _: [WhoAreYou()]
    sending = asyncio.gather(broker.kick(message("a")), broker.kick(message("b")))
    await listener.until(Put, 2)
    listener.answers[Put] = accepted
    await sending
    assert len(listener.of(Hello)) == 2  # not once per message
    assert [put.number for put in listener.of(Put)] == [1, 2, 1, 2]
    assert len({route for route, _ in listener.heard}) == 1


async def test_a_full_queue_is_waited_for_as_long_as_kiq_timeout_says(
    endpoint: str, listener: Scripted
) -> None:
    listener.answers[TakeBack] = lambda it: [Refused(it.number, Code.TAKEN_BACK, "")]
    broker = ZeroMQBroker(endpoint, kiq_timeout=0.05)
    await connected(broker)
    with pytest.raises(QueueFullError, match=r"was full for 0\.05 s: .* start more workers"):
        await broker.kick(message("a"))
    assert [it.number for it in listener.of(TakeBack)] == [1]
    assert books(broker) == (0, 0)
    listener.answers[Put] = accepted
    await broker.kick(message("b", kiq_timeout="inf"))
    await broker.shutdown()


async def test_what_was_accepted_at_the_last_moment_is_accepted(
    endpoint: str, listener: Scripted
) -> None:
    listener.answers[TakeBack] = lambda it: [Accepted(it.number, 5, 6)]
    broker = ZeroMQBroker(endpoint, kiq_timeout=0.05)
    await connected(broker)
    await broker.kick(message("a"))
    assert broker.ticket_of("a") == Ticket(5, 6, "a")
    await broker.shutdown()


async def test_without_a_listener_the_timeout_says_so(endpoint: str) -> None:
    broker = ZeroMQBroker(endpoint, kiq_timeout=0.05)
    await broker.startup()
    with pytest.raises(ListenerUnreachableError, match=r"nobody listens on ipc.*supervisor") as it:
        await broker.kick(message("a"))
    assert not it.value.may_run
    assert books(broker) == (0, 0)
    await broker.shutdown()


async def test_what_was_sent_before_the_connection_was_lost_may_run(
    endpoint: str, listener: Scripted
) -> None:
    broker = ZeroMQBroker(endpoint, kiq_timeout=0.3)
    await connected(broker)
    sending = asyncio.create_task(broker.kick(message("a")))
    await listener.until(Put)
    listener.close()
    with pytest.raises(ListenerUnreachableError, match="it may be run nevertheless") as it:
        await sending
    assert it.value.may_run
    listener.answers[Hello] = lambda _: [welcome(last=0)]
    listener.answers[Put] = accepted
    listener.open()
    await broker.kick(message("b"))
    assert [put.task_id for put in listener.of(Put)] == ["a", "b"]  # nobody waits for a
    await broker.shutdown()


async def test_a_full_queue_that_is_not_known_to_be_full_may_have_the_task(
    endpoint: str, listener: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "TAKE_BACK_PATIENCE", 0.05)
    broker = ZeroMQBroker(endpoint, kiq_timeout=0.05)
    await connected(broker)  # to one that answers nothing
    with pytest.raises(ListenerUnreachableError, match="it does not answer; it may be run") as it:
        await broker.kick(message("a"))
    assert it.value.may_run
    await broker.shutdown()


async def test_who_is_denied_after_a_task_was_sent_is_told_that_it_may_run(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    listener.answers[Hello] = lambda _: [welcome(window=1)]
    await broker.startup()
    sent = asyncio.create_task(broker.kick(message("sent")))
    not_sent = asyncio.create_task(broker.kick(message("not sent")))
    await listener.until(Put)
    listener.answers[Hello] = lambda _: [Denied(Code.VERSION, "version 1 is too old")]
    listener.close()
    listener.open()
    with pytest.raises(ConnectionDeniedError, match="too old; it may be run nevertheless") as it:
        await sent
    assert it.value.may_run
    with pytest.raises(ConnectionDeniedError, match=r"too old$") as it:
        await not_sent
    assert not it.value.may_run


async def test_a_shutdown_tells_whose_tasks_may_run(endpoint: str, listener: Scripted) -> None:
    listener.answers[Hello] = lambda _: [welcome(window=1)]
    broker = ZeroMQBroker(endpoint)
    await broker.startup()
    sending = [asyncio.create_task(broker.kick(message(who))) for who in ("sent", "not sent")]
    await listener.until(Put)
    await broker.shutdown()
    errors = await asyncio.gather(*sending, return_exceptions=True)
    assert [type(error) for error in errors] == [BrokerNotStartedError] * 2
    assert [getattr(error, "may_run", None) for error in errors] == [True, False]


async def test_a_cancelled_kiq_leaves_nothing(broker: ZeroMQBroker, listener: Scripted) -> None:
    listener.answers[Hello] = lambda _: [welcome(window=1)]
    listener.answers[TakeBack] = lambda it: [Refused(it.number, Code.TAKEN_BACK, "")]
    await broker.startup()
    sent = asyncio.create_task(broker.kick(message("sent")))
    not_sent = asyncio.create_task(broker.kick(message("not sent")))
    await listener.until(Put)
    for sending in (not_sent, sent):
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    await listener.until(TakeBack)
    listener.answers[Put] = accepted
    await broker.kick(message("next"))
    assert [put.task_id for put in listener.of(Put)] == ["sent", "next"]
    assert books(broker) == (0, 0)


async def test_refusals_are_errors_that_say_why(broker: ZeroMQBroker, listener: Scripted) -> None:
    listener.answers[Put] = lambda put: [Refused(put.number, Code.INVALID, "no such thing")]
    await broker.startup()
    with pytest.raises(MessageRefusedError, match="refuses task 't': no such thing"):
        await broker.kick(message("a"))
    listener.answers[Put] = lambda put: [Refused(put.number, Code.TOO_LARGE, "no block")]
    with pytest.raises(MessageTooLargeError, match="no block"):
        await broker.kick(message("a"))
    assert books(broker) == (0, 0)
    assert [it.number for it in await listener.until(Heard, 2)] == [1, 2]


async def test_what_was_sent_behind_a_refused_message_is_accepted_once_that_was_heard(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    await broker.startup()
    sending = [asyncio.create_task(broker.kick(message(str(number)))) for number in range(3)]
    await listener.until(Put, 3)
    listener.answers[Heard] = lambda it: [Accepted(3, 1, 1)] if it.number == 2 else []
    listener.say(Accepted(1, 1, 1))
    listener.say(Refused(2, Code.INVALID, "no such thing"))
    listener.say(Bye())  # it still answers, and is answered
    with pytest.raises(MessageRefusedError):
        await sending[1]
    await asyncio.gather(sending[0], sending[2])


async def test_what_is_larger_than_max_message_is_not_sent(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    listener.answers[Hello] = lambda _: [welcome(max_message=1000)]
    listener.answers[Put] = accepted
    await broker.startup()
    with pytest.raises(MessageTooLargeError, match="takes 1000 bytes"):
        await broker.kick(message("large", bytes(1000)))
    await broker.kick(message("small", bytes(500)))
    assert [put.task_id for put in listener.of(Put)] == ["small"]


async def test_a_listener_that_denies_fails_what_waits_and_may_change_its_mind(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    listener.answers[Hello] = lambda _: [Denied(Code.VERSION, "version 1 is too old")]
    await broker.startup()
    waiting = asyncio.create_task(wait_result(broker, "x"))
    with pytest.raises(ConnectionDeniedError, match="refuses this client: version 1 is too old"):
        await broker.kick(message("a"))
    with pytest.raises(ResultUnreachableError, match="version 1 is too old"):
        await waiting
    listener.answers[Hello] = lambda _: [welcome()]
    listener.answers[Put] = accepted
    await connected(broker)
    await broker.kick(message("b"))
    await broker.shutdown()


async def test_one_client_too_many_waits_for_its_turn(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    listener.answers[Hello] = lambda _: [Denied(Code.FULL, "1,024 clients")]
    listener.answers[Put] = accepted
    await broker.startup()
    sending = asyncio.create_task(broker.kick(message("a")))
    await listener.until(Hello, 2)
    assert not sending.done()
    listener.answers[Hello] = lambda _: [welcome()]
    await sending


async def test_frames_that_are_none_of_ours_end_the_connection_with_a_reason(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    here = await connected(broker)
    sending = asyncio.create_task(broker.kick(message("a")))
    await listener.until(Put)
    listener.say_frames([b"HTTP/1.1 400"])
    with pytest.raises(ConnectionDeniedError, match="does not speak our protocol"):
        await sending
    await listener.until(Hello, 2)
    await until(lambda: here.is_connected)


async def test_a_listener_that_goes_down_gets_no_more_and_may_still_answer(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    await connected(broker)
    first = asyncio.create_task(broker.kick(message("first")))
    waiting = asyncio.create_task(broker.result_backend.wait("w"))  # type: ignore[attr-defined]
    await listener.until(Wait)
    await listener.until(Put)
    listener.say(Bye())
    listener.say(Accepted(1, 1, 1))
    await first
    second = asyncio.create_task(broker.kick(message("second")))
    data = result_of(broker, 7)
    listener.say(Ended(listener.of(Wait)[0].request, Outcome("w", OutcomeKind.RESULT, data)))
    assert (await waiting).return_value == 7
    assert len(listener.of(Put)) == 1
    listener.answers[Hello] = lambda _: [welcome(last=1)]
    listener.answers[Put] = accepted
    listener.close()
    listener.open()
    await second


# --- silence -------------------------------------------------------------------------------------


async def test_both_sides_give_signs_of_life_and_silence_ends_the_connection(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    listener.answers[Hello] = lambda _: [welcome(heartbeat=0.05)]
    await connected(broker)
    await listener.until(Hello, 2)  # it has said nothing more
    assert listener.alive >= 1
    assert len({route for route, _ in listener.heard}) == 2


async def test_a_welcome_that_does_not_come_is_not_waited_for_without_end(
    broker: ZeroMQBroker, listener: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HELLO_PATIENCE", 0.05)
    del listener.answers[Hello]
    await broker.startup()
    await listener.until(Hello, 2)
    listener.answers[Hello] = lambda _: [welcome()]
    await connected(broker)
    await broker.shutdown()


# --- results -------------------------------------------------------------------------------------


async def test_waits_are_woken_and_asked_again_by_their_ticket(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    listener.answers[Put] = accepted
    await broker.startup()

    @broker.task
    async def add(a: int, b: int) -> int:
        return a + b

    task = await add.kiq(1, 2)
    waiting = asyncio.create_task(task.wait_result(timeout=10))
    (wait,) = await listener.until(Wait)
    assert wait.target == Ticket(1, 7, task.task_id)
    listener.answers[Hello] = lambda _: [welcome(last=1)]
    listener.close()
    listener.open()
    _, again = await listener.until(Wait, 2)
    assert again == wait
    outcome = Outcome(task.task_id, OutcomeKind.RESULT, result_of(broker, 3), 1)
    listener.say(Ended(wait.request, outcome))
    assert (await waiting).return_value == 3
    assert books(broker) == (0, 0)


async def test_a_wait_that_times_out_or_is_cancelled_leaves_nothing(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    await broker.startup()
    with pytest.raises(TaskiqResultTimeoutError):
        await wait_result(broker, "a", timeout=0.05)
    waiting = asyncio.create_task(wait_result(broker, "b"))
    await listener.until(Wait, 2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    requests = [wait.request for wait in listener.of(Wait)]
    assert [it.request for it in await listener.until(Cancel, 2)] == requests
    assert books(broker) == (0, 0)


async def test_looks_are_answered_at_once(broker: ZeroMQBroker, listener: Scripted) -> None:
    answers: dict[str, Any] = {
        "running": lambda it: Failed(it.request, Code.NOT_READY, ""),
        "unknown": lambda it: Failed(it.request, Code.UNKNOWN, ""),
        "done": lambda it: Ended(
            it.request, Outcome("done", OutcomeKind.RESULT, result_of(broker, "value"))
        ),
    }
    listener.answers[Look] = lambda it: [answers[it.target](it)]
    listener.answers[Wait] = lambda it: [answers[it.target](it)]
    listener.answers[AskProgress] = lambda it: [Progress(it.request, "STARTED", {"percent": 7})]
    backend = broker.result_backend
    await broker.startup()
    assert await backend.is_result_ready("running") is False
    assert await backend.is_result_ready("done") is True
    assert (await backend.get_result("done")).return_value == "value"
    for ask in (backend.is_result_ready, lambda it: wait_result(broker, it)):
        with pytest.raises(ResultExpiredError):
            await ask("unknown")
    progress = await backend.get_progress("running")
    assert progress is not None
    assert (progress.state, progress.meta) == ("STARTED", {"percent": 7})
    listener.answers[AskProgress] = lambda it: [Progress(it.request)]
    assert await backend.get_progress("running") is None


async def test_too_many_questions_are_asked_again(broker: ZeroMQBroker, listener: Scripted) -> None:
    await broker.startup()
    waiting = asyncio.create_task(wait_result(broker, "a"))
    (wait,) = await listener.until(Wait)
    listener.say(Failed(wait.request, Code.TOO_MANY, "65,536 waits"))
    await listener.until(Wait, 2)
    listener.say(ended(wait, OutcomeKind.EXPIRED))
    assert (await waiting).is_err


# --- from startup to shutdown --------------------------------------------------------------------


async def test_a_shutdown_says_goodbye_and_ends_what_waits(
    broker: ZeroMQBroker, listener: Scripted
) -> None:
    await connected(broker)
    sending = asyncio.create_task(broker.kick(message("a")))
    waiting = asyncio.create_task(wait_result(broker, "b"))
    await listener.until(Wait)
    await broker.shutdown()
    with pytest.raises(BrokerNotStartedError):
        await sending
    with pytest.raises(ResultUnreachableError):
        await waiting
    await listener.until(Bye)
    with pytest.raises(BrokerNotStartedError, match=r"await broker\.startup\(\) first"):
        await broker.kick(message("c"))


async def test_a_shutdown_without_a_listener_is_immediate(endpoint: str) -> None:
    broker = ZeroMQBroker(endpoint)
    await broker.startup()
    sending = asyncio.create_task(broker.kick(message("a")))
    await asyncio.sleep(0)
    await asyncio.wait_for(broker.shutdown(), 0.5)
    with pytest.raises(BrokerNotStartedError):
        await sending
