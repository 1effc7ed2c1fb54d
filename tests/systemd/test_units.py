"""The units: systemd takes them without a word, and they are closed but for what is explained."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.systemd.reading import needs_analyze, needs_manager, read, verify

from taskiq_supervise.supervisor import unit
from taskiq_supervise.supervisor.unit_syntax import UnitError, path, word

ROOT = Path(__file__).parents[2]
SHIPPED = unit.shipped()
SYSTEM, USER = "taskiq-supervise@.service", "user/taskiq-supervise@.service"
EXPOSURE = 3.0

MINIMAL = unit.Service(
    name="shop",
    program=(sys.executable, "-m", "taskiq_supervise"),
    arguments=("app:broker", "--name", "shop"),
    description="taskiq workers: app:broker",
    directory="/",
)
VARIANTS = {
    "fixed": MINIMAL,
    "dynamic": unit.Service(**{**MINIMAL.__dict__, "account": None}),
    "homes": unit.Service(**{**MINIMAL.__dict__, "reads_homes": True, "start_timeout": None}),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_files_are_made_of_the_same_text(name: str) -> None:
    assert (ROOT / "systemd" / name).read_text() == SHIPPED[name]


def test_nothing_else_is_shipped() -> None:
    folder = ROOT / "systemd"
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert files == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_line_fits_a_screen(name: str) -> None:
    assert max(map(len, SHIPPED[name].splitlines())) <= 105


# --- verify ---------------------------------------------------------------------------------------


@needs_analyze
@pytest.mark.parametrize("name", [SYSTEM, USER])
def test_systemd_has_nothing_to_say_about_a_template(tmp_path: Path, name: str) -> None:
    found = verify(tmp_path, {name: SHIPPED[name]}, name, user=name == USER)
    assert (found.code, found.said) == (0, "")


@needs_analyze
@pytest.mark.parametrize("drop_in", ["local", "dynamic-user"])
def test_systemd_has_nothing_to_say_about_a_drop_in(tmp_path: Path, drop_in: str) -> None:
    text = SHIPPED[f"drop-ins/{drop_in}.conf"]
    files = {SYSTEM: SHIPPED[SYSTEM], f"{SYSTEM}.d/{drop_in}.conf": text}
    found = verify(tmp_path, files, SYSTEM)
    assert (found.code, found.said) == (0, "")


@needs_analyze
def test_what_the_example_has_commented_out_is_right_as_well(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=[A-Z][A-Za-z]+=)", "", SHIPPED["drop-ins/local.conf"], flags=re.MULTILINE)
    text = re.sub(r":/srv/%i/\S+/taskiq-supervise", f":{unit.DEFAULT_PROGRAM}", text)
    assert text.count("=") > 15
    found = verify(tmp_path, {SYSTEM: SHIPPED[SYSTEM], f"{SYSTEM}.d/local.conf": text}, SYSTEM)
    assert (found.code, found.said) == (0, "")


@needs_analyze
@pytest.mark.parametrize("name", VARIANTS)
def test_systemd_has_nothing_to_say_about_a_unit_for_a_command(tmp_path: Path, name: str) -> None:
    found = verify(tmp_path, {"its.service": unit.render(VARIANTS[name])}, "its.service")
    assert (found.code, found.said) == (0, "")


@needs_analyze
def test_systemd_would_have_something_to_say(tmp_path: Path) -> None:
    broken = SHIPPED[SYSTEM].replace("WatchdogSec", "WatchdogSecc")
    assert "WatchdogSecc" in verify(tmp_path, {SYSTEM: broken}, SYSTEM).said


# --- security -------------------------------------------------------------------------------------


@needs_analyze
@pytest.mark.parametrize("name", ["template", *VARIANTS])
def test_a_unit_is_closed_but_for_what_it_explains(tmp_path: Path, name: str) -> None:
    service = unit.template() if name == "template" else VARIANTS[name]
    text = unit.render(service)
    file = tmp_path / ("its@.service" if name == "template" else "its.service")
    file.write_text(text)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    exposure = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert exposure is not None, done.stdout
    assert float(exposure[1]) <= EXPOSURE, done.stdout

    listed = subprocess.run(
        [*command, "--json=short"], capture_output=True, text=True, check=True
    ).stdout
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for check in json.loads(listed):
        if check["set"] is not False or not check.get("exposure"):
            continue
        names = re.findall(
            r"@\w+|AF_\w+|\w+(?==)", check["name"].replace("AF_(INET|INET6)", "AF_INET")
        )
        words = [
            name for name in names if name not in {"SystemCallFilter", "RestrictAddressFamilies"}
        ]
        assert words, check
        assert any(word in comments for word in words), check


# --- what stands in them --------------------------------------------------------------------------


def settings_of(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.split("\n"):
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("name", [SYSTEM, USER])
def test_an_instance_reloads_itself_and_no_other(name: str) -> None:
    its = settings_of(SHIPPED[name])
    (start,), (again,) = its["ExecStart"], its["ExecReload"]
    assert start.endswith(" --name %i")
    assert again == f"{start.split()[0]} reload --wait %i"


@pytest.mark.parametrize("name", [SYSTEM, USER])
def test_the_queue_is_in_what_outlives_a_stop(name: str) -> None:
    its = settings_of(SHIPPED[name])
    assert its["RuntimeDirectory"] == ["taskiq-supervise/%i taskiq-supervise/%i/queues"]
    assert its["RuntimeDirectoryPreserve"] == ["yes"]
    assert "TASKIQ_SUPERVISE_QUEUE_DIR=%t/taskiq-supervise/%i/queues" in its["Environment"]
    assert "TASKIQ_SUPERVISE_RUNTIME_DIR=%t/taskiq-supervise" in its["Environment"]


def test_a_pause_gets_longer_where_systemd_can_do_that() -> None:
    old = settings_of(unit.render(unit.template(systemd=253)))
    new = settings_of(unit.render(unit.template(systemd=254)))
    assert "RestartSteps" not in old
    assert new["RestartSteps"] == ["6"]
    assert new["RestartMaxDelaySec"] == ["60s"]


def test_a_unit_of_a_user_asks_for_no_rights_of_root() -> None:
    its = settings_of(SHIPPED[USER])
    assert not {"User", "Group", "ProtectSystem", "CapabilityBoundingSet"} & set(its)
    assert its["WantedBy"] == ["default.target"]


# --- escaping -------------------------------------------------------------------------------------

PLACES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=40
).filter(lambda text: all(ord(character) & 0xFFFE != 0xFFFE for character in text))
WORDS = st.one_of(
    PLACES,
    st.sampled_from(
        ["", ";", "%i", "%%", "$HOME", "${HOME}", "$$", "a b", '"', "'", "\\", "\\x41", "#", "-x"]
    ),
)


@needs_manager
@settings(max_examples=40)
@given(words=st.lists(WORDS, min_size=1, max_size=30), folder=PLACES)
def test_systemd_starts_exactly_what_was_typed(words: list[str], folder: str) -> None:
    """Quotes, blanks, percents, dollars, line breaks, other scripts: in arguments and folders."""
    arguments = [text for text in words if is_sayable(text)]
    directory = f"/srv/{folder}"
    if not is_sayable(folder) or set(folder) & set("\n\r") or folder in {".", ".."}:
        directory = "/srv/plain"
    service = unit.Service(
        name="shop",
        program=("/bin/ech o%", "$0"),
        arguments=tuple(arguments),
        description="anything",
        directory=directory,
    )
    assert settings_of(unit.render(service))["WorkingDirectory"] == [path(directory)]
    command = " ".join(map(word, (*service.program, *arguments)))
    found = read(f"[Service]\nWorkingDirectory={path(directory)}\nExecStart=:{command}\n")
    assert found.command == [*service.program, *arguments]
    assert found.directory == directory


def is_sayable(text: str) -> bool:
    try:
        word(text)
    except UnitError:
        return False
    return True


@needs_manager
@pytest.mark.parametrize("value", ["a b", "%h", "$HOME", '"quoted"', "back\\slash", "ünï", "#x"])
def test_a_value_in_the_environment_arrives_as_it_is(value: str) -> None:
    text = f"[Service]\nExecStart=/bin/true\nEnvironment={word(f'NAME={value}')}\n"
    assert read(text).environment == [f"NAME={value}"]


@needs_manager
@pytest.mark.parametrize(
    "folder", ["/a ", "/a\\", "/a\t", "/-", "/ a", "/%i", '/"a"', "/~", "/a;b"]
)
def test_a_folder_arrives_as_it_is(folder: str) -> None:
    text = f"[Service]\nExecStart=/bin/true\nWorkingDirectory={path(folder)}\n"
    assert read(text).directory == folder


@pytest.mark.parametrize("text", ["a\0b", "\udcff", "\ufffe", "\ufdd0"])
def test_what_a_unit_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(UnitError, match="UTF-8"):
        word(text)
    with pytest.raises(UnitError):
        path(f"/{text}")


def test_a_folder_with_a_line_break_is_refused() -> None:
    with pytest.raises(UnitError, match="line break"):
        path("/a\nb")
