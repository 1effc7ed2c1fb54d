"""`python -m taskiq_supervise` is the command `taskiq-supervise`."""

import sys


def main() -> None:
    """Also the entry point of the distribution's command."""
    # asyncio takes OpenSSL along if it is there: 5 MB of a supervisor that has no use for it.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    import asyncio  # noqa: F401

    del sys.modules["ssl"]
    from taskiq_supervise.supervisor.commands.cli import main as cli

    cli()


if __name__ == "__main__":
    main()
