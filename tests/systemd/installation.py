"""taskiq-supervise in a box, where its units look for it: an environment below /opt.

It is the one that the tests run in, with the sources of this repository, seen through other paths:
services must not look into home folders, and users without a name cannot.
"""

import os
import sys
import sysconfig
from pathlib import Path

from tests.systemd.box import Box

REPOSITORY = Path(__file__).parents[2]
UNITS = REPOSITORY / "systemd"
ENVIRONMENT = "/opt/taskiq-supervise"
COMMAND = f"{ENVIRONMENT}/bin/taskiq-supervise"
PYTHON = f"{ENVIRONMENT}/bin/python"

_SOURCES = "/opt/box/sources"
_LIBRARIES = "/opt/box/libraries"
_INTERPRETER = "/opt/box/interpreter"

SHOWN = {
    REPOSITORY: _SOURCES,
    Path(sysconfig.get_path("purelib")): _LIBRARIES,
    Path(sys.base_prefix): _INTERPRETER,
}


def install(box: Box, folder: str = ENVIRONMENT) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    executable = Path(os.path.realpath(sys.executable))
    interpreter = Path(_INTERPRETER) / executable.relative_to(os.path.realpath(sys.base_prefix))
    box.write(f"{folder}/pyvenv.cfg", f"home = {interpreter.parent}\n")
    packages = f"{folder}/lib/{version}/site-packages"
    box.write(f"{packages}/box.pth", f"{_SOURCES}/src\n{_LIBRARIES}\n")
    program = "import sys\nfrom taskiq_supervise.__main__ import main\nsys.exit(main())\n"
    box.write(f"{folder}/bin/taskiq-supervise", f"#!{folder}/bin/python\n{program}", 0o755)
    box.at(f"{folder}/bin/python").symlink_to(interpreter)
    if ".so" in (sysconfig.get_config_var("INSTSONAME") or ""):
        # A shared libpython knows where it was installed, and another could be found instead.
        box.setenv("LD_LIBRARY_PATH", f"{_INTERPRETER}/lib")
