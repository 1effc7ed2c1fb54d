"""`python -m taskiq_supervise` is the command `taskiq-supervise`."""

import sys

from taskiq_supervise.supervisor.cli import main

if __name__ == "__main__":
    sys.exit(main())
