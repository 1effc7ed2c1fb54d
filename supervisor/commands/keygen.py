"""`taskiq-supervise keygen`: the keys of a ZeroMQBroker, in files, and what to do with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from taskiq_supervise.supervisor.commands.failure import leave
from taskiq_supervise.supervisor.core.model import EXIT_FAILED

if TYPE_CHECKING:
    from taskiq_supervise.broker.zeromq.keys import KeyPair

_SERVER, _CLIENT, _CLIENTS = "server", "client", "clients"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default="keys")
@click.option(
    "--client",
    metavar="NAME",
    help=f"Whose key to make; '{_CLIENT}' for the first. Again for each further client.",
)
def keygen(folder: Path, client: str | None) -> None:
    """Make keys for a ZeroMQBroker in FOLDER (keys), so that only known clients can send tasks.

    \b
      taskiq-supervise keygen
      taskiq-supervise keygen --client billing

    The first time: the server's and one client's. Then, with --client, one more client's. No file
    is ever overwritten.
    """
    name = client or _CLIENT
    if name == _SERVER or not _NAME.fullmatch(name):
        raise click.BadParameter(
            f"{name!r} is no name for a client's files: use letters, digits, '.', '_' and '-', and "
            f"not {_SERVER!r}",
            param_hint="--client",
        )
    is_new = not (folder / f"{_SERVER}.key").exists()
    if not is_new and client is None:
        leave(
            f"{folder} holds a server's keys already; for another client's, name it: "
            f"taskiq-supervise keygen {folder} --client NAME",
            EXIT_FAILED,
        )
    try:
        pairs = _pairs(2 if is_new else 1)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_new:
            pairs.pop().save(folder, _SERVER)
        secret = pairs.pop().save(folder, name, public_folder=folder / _CLIENTS)[1]
    except OSError as error:
        leave(f"no keys were made: {error}", EXIT_FAILED)
    _explain(folder, name, secret, is_new=is_new)


def _pairs(count: int) -> list[KeyPair]:
    import zmq

    from taskiq_supervise.broker.zeromq.keys import KeyPair

    if not zmq.has("curve"):
        leave("this build of libzmq has no CURVE; install pyzmq's own wheel", EXIT_FAILED)
    return [KeyPair.new() for _ in range(count)]


def _explain(folder: Path, name: str, secret: Path, *, is_new: bool) -> None:
    server, clients = folder / f"{_SERVER}.key", folder / _CLIENTS
    if not is_new:
        click.echo(
            f"made {secret} and {clients / name}.key; a running supervisor knows it at once.\n"
            f"The client needs {server} and {secret}."
        )
        return
    click.echo(
        f"""made
  {server}_secret   the listener's: keep it where the supervisor runs
  {server}   for every client
  {secret}   the client's own
  {clients / name}.key   lets that client in

Next, in the application:

  broker = ZeroMQBroker(
      "tcp://0.0.0.0:5555",
      "tcp://HOST-OF-THE-SUPERVISOR:5555",
      server_secret_key="{server}_secret",
      server_public_key="{server}",
      client_secret_key="{secret}",
      client_keys="{clients}",
  )

A client on another machine needs {server} and {secret}, and none of the others.
For one more client: taskiq-supervise keygen {folder} --client NAME"""
    )
