"""Real processes: who is reaped, who is killed with whom, and what a child is started with."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator

import pytest

from taskiq_supervise.supervisor.core.model import ExitStatus
from taskiq_supervise.supervisor.processes import Child, Children, spawn

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd_open")


class Exits:
    """Adopts children and waits for their exits."""

    def __init__(self) -> None:
        self.children = Children(asyncio.get_running_loop(), lambda: False)

    def adopt(self, pid: int) -> "tuple[Child, asyncio.Future[ExitStatus]]":
        exited: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        return self.children.adopt(pid, exited.set_result), exited


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Its writing end is inherited; reading gives the end of file once all who have it are gone."""
    ours, theirs = os.pipe()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def start(script: str, fd: int) -> int:
    return spawn(["/bin/sh", "-c", script], os.environ, fd)


def wait_for_end(pid: int) -> None:
    """It is a zombie then."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def reap(pid: int) -> None:
    os.waitpid(pid, 0)


def is_reaped(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 0", ExitStatus(code=0)),
        ("exit 3", ExitStatus(code=3)),
        ("kill -KILL $$", ExitStatus(signal=9)),
        ("kill -TERM $$", ExitStatus(signal=15)),
    ],
)
async def test_an_exit_arrives_with_its_status(
    pipe: tuple[int, int], script: str, expected: ExitStatus
) -> None:
    child, exited = Exits().adopt(start(script, pipe[1]))
    assert await exited == expected
    assert child.gone
    assert is_reaped(child.pid)


async def test_a_child_that_is_dead_before_it_is_adopted_is_not_missed(
    pipe: tuple[int, int],
) -> None:
    pid = start("exit 4", pipe[1])
    wait_for_end(pid)
    _, exited = Exits().adopt(pid)
    assert await exited == ExitStatus(code=4)


async def test_a_child_that_somebody_else_reaped_has_ended_all_the_same(
    pipe: tuple[int, int],
) -> None:
    pid = start("exit 4", pipe[1])
    reap(pid)
    child, exited = Exits().adopt(pid)
    assert await exited == ExitStatus()
    child.kill_group()  # the number may be somebody else's by now


async def test_what_a_worker_left_in_its_group_ends_with_it(pipe: tuple[int, int]) -> None:
    pid = start(f"sleep 1000 & echo $! > /proc/self/fd/{pipe[1]}; kill -KILL $$", pipe[1])
    _, exited = Exits().adopt(pid)
    left = os.pidfd_open(int(os.read(pipe[0], 100)))
    try:
        await exited
        assert select.select([left], [], [], 10)[0]
    finally:
        os.close(left)


async def test_killing_a_group_takes_all_of_it(pipe: tuple[int, int]) -> None:
    pid = start(f"sleep 1000 & echo $! > /proc/self/fd/{pipe[1]}; wait", pipe[1])
    child, exited = Exits().adopt(pid)
    left = os.pidfd_open(int(os.read(pipe[0], 100)))
    try:
        child.kill_group()
        assert await exited == ExitStatus(signal=9)
        assert select.select([left], [], [], 10)[0]
    finally:
        os.close(left)
    child.signal(signal.SIGTERM)  # after the end: to nobody


async def test_unknown_children_are_reaped_and_known_ones_found_on_the_way(
    pipe: tuple[int, int],
) -> None:
    exits = Exits()
    unknown, known = start("exit 1", pipe[1]), start("exit 2", pipe[1])
    _, exited = exits.adopt(known)
    for pid in (unknown, known):
        wait_for_end(pid)
    exits.children.sweep()
    assert exited.result() == ExitStatus(code=2)
    assert is_reaped(unknown)


async def test_an_unknown_zombie_is_kept_while_it_may_be_the_worker_that_was_asked_for(
    pipe: tuple[int, int],
) -> None:
    outstanding = True
    children = Children(asyncio.get_running_loop(), lambda: outstanding)
    pid = start("exit 7", pipe[1])
    wait_for_end(pid)
    children.sweep()
    exited: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
    children.adopt(pid, exited.set_result)
    outstanding = False
    assert await exited == ExitStatus(code=7)


async def test_only_a_child_of_ours_is_killed_as_a_stray(pipe: tuple[int, int]) -> None:
    exits = Exits()
    stray = start("sleep 1000", pipe[1])
    exits.children.kill_stray(stray)
    _, exited = exits.adopt(stray)
    assert await exited == ExitStatus(signal=9)

    foreign = start(f"(echo $$; sleep 1000) & echo $! > /proc/self/fd/{pipe[1]}; wait", pipe[1])
    child, exited = exits.adopt(foreign)
    grandchild = int(os.read(pipe[0], 100))
    exits.children.kill_stray(grandchild)
    exits.children.kill_stray(foreign)  # in the book: not a stray
    os.kill(grandchild, 0)
    child.signal(signal.SIGTERM)
    assert await exited == ExitStatus(signal=15)


async def test_a_child_starts_with_nothing_but_what_it_is_given(pipe: tuple[int, int]) -> None:
    script = textwrap.dedent(
        f"""
        import errno, os, signal
        try:
            os.fstat({pipe[0]})
        except OSError as error:
            closed = error.errno == errno.EBADF
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        own_group = os.getpgid(0) == os.getpid()
        os.write({pipe[1]}, repr([own_group, os.read(0, 1), closed, mask]).encode())
        """
    )
    pid = spawn([sys.executable, "-c", script], os.environ, pipe[1])
    _, exited = Exits().adopt(pid)
    assert await exited == ExitStatus(code=0)
    assert os.read(pipe[0], 1000).decode() == "[True, b'', True, set()]"
    assert not os.get_inheritable(pipe[1])


async def test_a_child_ignores_no_signal_though_its_parent_does(pipe: tuple[int, int]) -> None:
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN  # Python's own doing
    _, exited = Exits().adopt(start("kill -PIPE $$", pipe[1]))
    assert await exited == ExitStatus(signal=signal.SIGPIPE)


class Stops:
    """Adopts children, and sweeps on SIGCHLD as the supervisor does."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.children = Children(loop, lambda: False)
        self.told: asyncio.Queue[bool] = asyncio.Queue()
        self.exited: asyncio.Future[ExitStatus] = loop.create_future()

    def adopt(self, pid: int) -> Child:
        return self.children.adopt(pid, self.exited.set_result, self.told.put_nowait)


@pytest.fixture
async def stops() -> AsyncIterator[Stops]:
    loop = asyncio.get_running_loop()
    stops = Stops()
    loop.add_signal_handler(signal.SIGCHLD, stops.children.sweep)
    yield stops
    loop.remove_signal_handler(signal.SIGCHLD)


def wait_for_stop(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def wait_for_continuation(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WCONTINUED | os.WNOWAIT)


async def test_a_stop_and_its_end_are_noticed_without_polling(
    pipe: tuple[int, int], stops: Stops
) -> None:
    child = stops.adopt(start("sleep 1000", pipe[1]))
    for _ in range(3):
        child.signal(signal.SIGSTOP)
        assert await stops.told.get() is True
        assert child.stopped
        child.signal(signal.SIGCONT)
        assert await stops.told.get() is False
        assert not child.stopped
    child.kill_group()
    assert await stops.exited == ExitStatus(signal=9)
    assert stops.told.empty()


async def test_a_stop_by_the_process_itself_and_by_the_terminal_count_as_well(
    pipe: tuple[int, int], stops: Stops
) -> None:
    child = stops.adopt(start("kill -TSTP $$; exit 5", pipe[1]))
    assert await stops.told.get() is True
    child.signal(signal.SIGCONT)
    assert await stops.exited == ExitStatus(code=5)


async def test_a_child_that_was_stopped_before_it_is_adopted_is_not_missed(
    pipe: tuple[int, int],
) -> None:
    stops = Stops()  # its SIGCHLD has come and gone, and no other comes
    pid = start("sleep 1000", pipe[1])
    os.kill(pid, signal.SIGSTOP)
    wait_for_stop(pid)
    child = stops.adopt(pid)
    assert await stops.told.get() is True
    child.kill_group()  # SIGKILL ends a stopped process too
    assert await stops.exited == ExitStatus(signal=9)
    assert stops.told.empty()


async def test_a_child_that_ran_between_two_stops_is_told_to_have_run(
    pipe: tuple[int, int],
) -> None:
    """Nobody looks in between here: the kernel keeps only the last change."""
    stops = Stops()
    child = stops.adopt(start("sleep 1000", pipe[1]))
    child.signal(signal.SIGSTOP)
    wait_for_stop(child.pid)
    stops.children.sweep()
    child.signal(signal.SIGCONT)
    wait_for_continuation(child.pid)
    child.signal(signal.SIGSTOP)
    wait_for_stop(child.pid)
    stops.children.sweep()
    assert [stops.told.get_nowait() for _ in range(3)] == [True, False, True]
    child.kill_group()
    await stops.exited


async def test_a_stop_that_was_over_before_anybody_looked_is_no_news(
    pipe: tuple[int, int],
) -> None:
    stops = Stops()
    child = stops.adopt(start("sleep 1000", pipe[1]))
    child.signal(signal.SIGSTOP)
    wait_for_stop(child.pid)
    child.signal(signal.SIGCONT)
    wait_for_continuation(child.pid)
    stops.children.sweep()
    assert stops.told.empty()
    child.kill_group()
    await stops.exited


async def test_the_stops_of_others_are_left_alone(pipe: tuple[int, int], stops: Stops) -> None:
    unwatched, exited = start("sleep 1000", pipe[1]), asyncio.get_running_loop().create_future()
    stops.children.adopt(unwatched, exited.set_result)
    watched = stops.adopt(start("sleep 1000", pipe[1]))
    os.kill(unwatched, signal.SIGSTOP)
    watched.signal(signal.SIGSTOP)
    assert await stops.told.get() is True
    wait_for_stop(unwatched)  # whoever wants to know still can
    for child in (unwatched, watched.pid):
        os.kill(child, signal.SIGKILL)
    await exited
    await stops.exited
    assert stops.told.empty()


def test_orphans_of_orphans_come_to_a_subreaper_and_leave_no_zombies() -> None:
    script = textwrap.dedent(
        """
        import asyncio, os, signal, sys
        from taskiq_supervise.supervisor.processes import Children, become_subreaper

        async def main():
            loop = asyncio.get_running_loop()
            become_subreaper()
            children = Children(loop, lambda: False)
            reaped = asyncio.Event()

            def swept():
                children.sweep()
                try:
                    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                except ChildProcessError:
                    reaped.set()

            loop.add_signal_handler(signal.SIGCHLD, swept)
            # The shell ends at once; what it started comes to us and ends later.
            os.posix_spawn("/bin/sh", ["sh", "-c", "(sleep 0.1; exit 3) & exit 0"], os.environ)
            await asyncio.wait_for(reaped.wait(), 20)
            print("no children left")

        asyncio.run(main())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "no children left\n"


def own_pid_namespace() -> list[str] | None:
    """A command that makes what follows PID 1 of a namespace; None: not for this user."""
    for rights in ([], ["--user", "--map-root-user"]):
        command = ["unshare", *rights, "--pid", "--fork", "--kill-child", "--mount-proc"]
        try:
            subprocess.run([*command, "true"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return command
    return None


def test_as_pid_1_of_a_container_it_reaps_strangers() -> None:
    command = own_pid_namespace()
    if command is None:
        pytest.skip("needs the right to make a PID namespace")
    script = textwrap.dedent(
        """
        import asyncio, os, signal
        from taskiq_supervise.supervisor.processes import Children

        async def main():
            assert os.getpid() == 1
            loop = asyncio.get_running_loop()
            children = Children(loop, lambda: False)
            alone = asyncio.Event()

            def swept():
                children.sweep()
                # A zombie would still be listed.
                if [name for name in os.listdir("/proc") if name.isdigit()] == ["1"]:
                    alone.set()

            loop.add_signal_handler(signal.SIGCHLD, swept)
            # Daemons: their parents end first, and nobody but PID 1 is left for them.
            for delay in ("0", "0.05", "0.1"):
                script = f"(setsid sh -c 'sleep {delay}; exit 3' &) & exit 0"
                os.posix_spawn("/bin/sh", ["sh", "-c", script], os.environ)
            await asyncio.wait_for(alone.wait(), 20)
            print("alone")

        asyncio.run(main())
        """
    )
    done = subprocess.run(
        [*command, sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("alone\n", "")
