"""Options travel from the supervisor to the zygote unchanged, and impossible ones are refused."""

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from taskiq.cli.worker.args import WorkerArgs

from taskiq_supervise.worker.config import ConfigError, WorkerConfig


def test_options_survive_json() -> None:
    config = WorkerConfig(
        "app:broker", modules=("a", "b"), receiver_arg=(("k", "v"),), max_async_tasks=7
    )
    assert WorkerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_defaults_are_taskiqs() -> None:
    ours, theirs = WorkerConfig("app:broker"), WorkerArgs(broker="app:broker", modules=[])
    for name in (
        "tasks_pattern", "fs_discover", "configure_logging", "log_format", "workers", "no_parse",
        "max_threadpool_threads", "max_process_pool_processes", "shutdown_timeout", "receiver",
        "max_async_tasks", "max_async_tasks_jitter", "max_prefetch", "no_propagate_errors",
        "use_process_pool",
    ):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.ack_type == theirs.ack_type.value
    assert ours.log_level == theirs.log_level.name


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ack_type": "never"}, "ack_type is 'never'"),
        ({"log_level": "LOUD"}, "log_level is 'LOUD'"),
        ({"workers": 0}, "workers is 0"),
        ({"max_prefetch": -1}, "max_prefetch is -1"),
        ({"shutdown_timeout": -0.5}, "shutdown_timeout is -0.5"),
        ({"max_threadpool_threads": 0}, "max_threadpool_threads is 0"),
        ({"transport": "tcp"}, "transport is 'tcp', not one of shm, zmq"),
        ({"log_style": "xml"}, "log_style is 'xml', not one of text, json"),
        ({"task_timeout": 0.0}, "task_timeout is 0.0"),
        ({"task_timeout": -1.0}, "task_timeout is -1.0"),
        ({"task_timeout": math.inf}, "task_timeout is inf"),
        ({"task_timeout": math.nan}, "task_timeout is nan"),
        ({"nice": 20}, "nice is 20"),
        ({"nice": -21}, "nice is -21"),
        ({"pin": True, "use_process_pool": True}, "pin and use_process_pool"),
    ],
)
def test_impossible_options_are_refused_with_their_value(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        WorkerConfig("app:broker", **options)


def test_an_option_of_another_version_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="unknown options: colour"):
        WorkerConfig.from_dict({"app": "app:broker", "colour": 1})


def test_reading_the_configuration_does_not_import_taskiq() -> None:
    code = "import sys, taskiq_supervise.worker.config; print('taskiq' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
