"""Storms over pools that have a listener, and over the clients that send it their tasks."""

import signal
from collections.abc import Callable
from pathlib import Path

import psutil
from tests.e2e.chaos import Storm
from tests.e2e.conftest import Supervisor


class ListenerStorm(Storm):
    """Over clients and listeners, too; and the supervisor is exchanged as it is in an upgrade."""

    loaded = "listener: one process listens"

    def __init__(
        self, start: Callable[[], Supervisor], folder: Path, seed: str, *, kills: bool
    ) -> None:
        super().__init__(start, folder, seed, kills=kills)
        self._actions |= {
            self._stop_listener: 6,
            self._terminate_listener: 6,
            self._stop_client: 6,
            self._restart_supervisor: 3,
        }
        if kills:
            self._actions |= {self._kill_listener: 10, self._kill_client: 4}

    def _stop_listener(self) -> None:
        if listener := self._pick("listener"):
            self._note(f"stop listener {listener.pid}")
            self._stop_for_a_while(listener)

    def _terminate_listener(self) -> None:
        if listener := self._pick("listener"):
            self._note(f"terminate listener {listener.pid}")
            self._signal(listener, signal.SIGTERM)

    def _kill_listener(self) -> None:
        if listener := self._pick("listener"):
            self._note(f"kill listener {listener.pid}")
            self._signal(listener, signal.SIGKILL)

    def _restart_supervisor(self) -> None:
        self.release.publish()
        self._undo(all_of_them=True)
        self._note(f"restart supervisor {self.supervisor.pid}")
        assert self.supervisor.stop() == 0
        self._start_again()

    def _stop_client(self) -> None:
        process = psutil.Process(self._chance.choice(self.loads).process.pid)
        self._note(f"stop client {process.pid}")
        self._stop_for_a_while(process)

    def _kill_client(self) -> None:
        """Another comes in its place."""
        index = self._chance.randrange(len(self.loads))
        self._note(f"kill client {self.loads[index].process.pid}")
        self.loads[index] = self.loads[index].successor()
