"""What an application weighs at import; every contestant's application imports it.

In the processes of a contestant only: the client that measures has the variables unset.
"""

import importlib
import os
import time

SECONDS = "BENCHMARK_IMPORT_SECONDS"
MODULES = "BENCHMARK_IMPORTS"

_began = time.perf_counter()
for _name in os.environ.get(MODULES, "").split():
    importlib.import_module(_name)
_rest = float(os.environ.get(SECONDS, "0")) - (time.perf_counter() - _began)
if _rest > 0:
    time.sleep(_rest)
