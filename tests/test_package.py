"""The package as a whole: what importing it costs, and what its public face is."""

import importlib.metadata
import subprocess
import sys

import pytest

import taskiq_supervise


def test_importing_the_package_does_not_import_taskiq() -> None:
    code = "import sys, taskiq_supervise; print('taskiq' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_public_name_is_there() -> None:
    for name in taskiq_supervise.__all__:
        assert getattr(taskiq_supervise, name) is not None
        assert name in dir(taskiq_supervise)


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Broker'"):
        _ = taskiq_supervise.Broker  # type: ignore[attr-defined]


def test_the_version_is_the_distributions() -> None:
    assert taskiq_supervise.__version__ == importlib.metadata.version("taskiq-supervise")
