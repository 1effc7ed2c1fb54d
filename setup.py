"""The C extension; everything else about the package is in pyproject.toml.

The sources are named through `src/taskiq_supervise/ipc` (a symlink in the checkout, a folder in
the sdist), so that the same paths hold in both.
"""

from pathlib import Path

from setuptools import Extension, setup

IPC = "src/taskiq_supervise/ipc"
FLAGS = ["-std=c11", "-O3", "-Wall", "-Wextra", "-Wconversion", "-fvisibility=hidden", "-pthread"]


def core_extension() -> Extension:
    if not Path(IPC).is_dir():
        raise SystemExit(
            f"{IPC} is not a folder: this checkout was made without symbolic links "
            "(git config core.symlinks); clone again with links, or build from the sdist"
        )
    sources = sorted(
        str(path) for part in ("core", "binding") for path in Path(IPC, part).glob("*.c")
    )
    return Extension(
        "taskiq_supervise.ipc._core",
        sources=sources,
        include_dirs=[f"{IPC}/core"],
        depends=sorted(str(path) for path in Path(IPC).rglob("*.h")),
        define_macros=[("_GNU_SOURCE", None)],
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
    )


setup(ext_modules=[core_extension()])
