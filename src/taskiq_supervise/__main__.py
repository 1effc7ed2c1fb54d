"""`python -m taskiq_supervise` is the command `taskiq-supervise`."""

from taskiq_supervise.supervisor.cli import main

if __name__ == "__main__":
    main()
