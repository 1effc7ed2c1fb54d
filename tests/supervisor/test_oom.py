"""Kills for want of memory, by the counters of cgroup v1 and v2."""

import os
from pathlib import Path

import pytest

from taskiq_supervise.supervisor.oom import OomMeter, find_counter

V2 = "low 0\nhigh 12\nmax 40\noom 4\noom_kill {}\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    file = tmp_path / "memory.events"
    file.write_text(V2.format(3))
    return file


@pytest.mark.parametrize("form", [V1, V2])
def test_a_kill_since_the_last_question_explains_a_death(counter: Path, form: str) -> None:
    counter.write_text(form.format(3))
    meter = OomMeter(counter)
    assert not meter.killed_since_last(1.0)
    counter.write_text(form.format(4))
    assert meter.killed_since_last(2.0)
    assert not meter.killed_since_last(2.0)


def test_several_kills_at_once_explain_as_many_deaths_one_by_one(counter: Path) -> None:
    meter = OomMeter(counter)
    counter.write_text(V2.format(5))
    assert [meter.killed_since_last(at) for at in (1.0, 1.01, 1.02)] == [True, True, False]


def test_a_kill_that_explained_nothing_in_time_was_somebody_elses(counter: Path) -> None:
    meter = OomMeter(counter)
    counter.write_text(V2.format(5))
    assert meter.killed_since_last(1.0)
    assert not meter.killed_since_last(60.0)
    counter.write_text(V2.format(6))
    assert meter.killed_since_last(61.0)
    assert not meter.killed_since_last(61.0)


def test_without_a_counter_nothing_is_explained(counter: Path) -> None:
    assert not OomMeter(None).killed_since_last(1.0)
    meter = OomMeter(counter)
    counter.unlink()
    assert not meter.killed_since_last(1.0)
    counter.write_text("nothing to see here\n")
    assert not meter.killed_since_last(2.0)


def test_a_counter_that_comes_late_accuses_from_then_on(counter: Path) -> None:
    counter.rename(counter.with_name("elsewhere"))
    meter = OomMeter(counter)
    counter.write_text(V2.format(7))
    assert not meter.killed_since_last(1.0)
    counter.write_text(V2.format(8))
    assert meter.killed_since_last(2.0)


class System:
    """A made-up /proc/self and /sys/fs/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.proc.mkdir()
        self.mounts = folder / "sys"
        self._write("mountinfo", "21 1 0:20 / /proc rw,relatime - proc proc rw")

    def _write(self, file: str, line: str) -> None:
        with (self.proc / file).open("a") as out:
            out.write(line + "\n")

    def mount(self, kind: str, options: str, at: str = "", root: str = "/") -> Path:
        point = self.mounts / at
        self._write("mountinfo", f"32 31 0:29 {root} {point} rw,relatime - {kind} cgroup {options}")
        return point

    def member(self, line: str) -> None:
        self._write("cgroup", line)

    def counter(self, file: Path, text: str) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(0))
        return file


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_the_counter_of_cgroup_v2_is_found(system: System) -> None:
    point = system.mount("cgroup2", "rw,nsdelegate")
    system.member("0::/system.slice/taskiq.service")
    file = system.counter(point / "system.slice/taskiq.service/memory.events", V2)
    assert find_counter(system.proc) == file


def test_the_counter_of_cgroup_v1_is_found_beside_a_v2_without_memory(system: System) -> None:
    (system.mount("cgroup2", "rw", "unified") / "app").mkdir(parents=True)
    system.mount("cgroup", "rw,cpu,cpuacct", "cpu")
    point = system.mount("cgroup", "rw,memory", "memory")
    for line in ("12:cpu,cpuacct:/app", "4:memory:/app", "1:name=systemd:/app", "0::/app"):
        system.member(line)
    file = system.counter(point / "app/memory.oom_control", V1)
    assert find_counter(system.proc) == file


def test_in_a_container_the_mount_begins_at_its_own_cgroup(system: System) -> None:
    point = system.mount("cgroup2", "rw", root="/docker/1234")
    system.member("0::/docker/1234")
    file = system.counter(point / "memory.events", V2)
    assert find_counter(system.proc) == file


def test_a_cgroup_outside_of_what_is_mounted_has_none_for_us(system: System) -> None:
    point = system.mount("cgroup2", "rw", root="/docker/1234")
    for file in ("memory.events", "5/memory.events"):
        system.counter(point / file, V2)
    system.member("0::/docker/12345")
    assert find_counter(system.proc) is None


def test_the_root_of_cgroup_v2_has_none(system: System) -> None:
    system.mount("cgroup2", "rw").mkdir()
    system.member("0::/")
    assert find_counter(system.proc) is None


def test_a_system_without_cgroups_has_none(system: System) -> None:
    assert find_counter(system.proc) is None
    assert find_counter(system.proc / "nowhere") is None


def test_this_system_answers_one_way_or_the_other() -> None:
    found = find_counter()
    assert found is None or "oom_kill" in found.read_text()
    assert not OomMeter(found).killed_since_last(os.times().elapsed)
