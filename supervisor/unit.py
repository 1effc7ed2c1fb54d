"""systemd units for a supervisor: the one place where their text is.

`taskiq-supervise systemd print` and `install` write it for one command line; the files in systemd/
are the same text for a template, whose instance is a configuration file. Each setting has its
reason beside it, for whoever reads the unit on a machine; docs/systemd.md is the whole story.

The lowest systemd that counts is 252 (Debian 12). What later ones add is written only for those:
an unknown setting is a warning at each start.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from textwrap import dedent

from taskiq_supervise.supervisor.core.model import EXIT_USAGE
from taskiq_supervise.supervisor.unit_syntax import Specified, path, specified, word

OLDEST_SYSTEMD = 252
"""What the units are written for and tested with."""
SYSTEMD_WITH_STEPS = 254
"""Has RestartSteps= and RestartMaxDelaySec=."""

ACCOUNT = "taskiq-supervise"
"""The user and the group of services that say no other; sysusers.d makes them."""
TEMPLATE = "taskiq-supervise@"
_INSTANCE = Specified("%i")


@dataclass(frozen=True)
class Service:
    """What differs from one unit to another. Plain strings are taken literally, Specified ones by
    systemd."""

    name: str
    """Of the instance."""
    program: tuple[str, ...]
    """How `taskiq-supervise` is started: absolute."""
    arguments: tuple[str, ...]
    """Of `run`, `--name` among them."""
    description: str
    for_user: bool = False
    """A unit of a user's own service manager."""
    directory: str | None = None
    """The current folder of the service."""
    account: str | None = ACCOUNT
    """Whose processes they are; None: a user that exists only while the service runs."""
    group: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    reads_homes: bool = False
    """Something of it lies in a home folder."""
    start_timeout: float | None = 300.0
    """Seconds for a start or a reload; None: no limit."""
    stop_timeout: float = 90.0
    systemd: int = OLDEST_SYSTEMD


def template(
    program: tuple[str, ...] | None = None,
    *,
    for_user: bool = False,
    systemd: int = OLDEST_SYSTEMD,
    account: str | None = ACCOUNT,
    group: str | None = ACCOUNT,
    environment: Mapping[str, str] | None = None,
    reads_homes: bool = False,
) -> Service:
    """The service of which each file in the configuration folder is an instance."""
    default = "%h/.local/bin/taskiq-supervise" if for_user else DEFAULT_PROGRAM
    folder = "%E/taskiq-supervise" if for_user else "/etc/taskiq-supervise"
    return Service(
        name=_INSTANCE,
        program=program or (Specified(default),),
        arguments=("--config", Specified(f"{folder}/%i.toml"), "--name", _INSTANCE),
        description=Specified("taskiq workers: %i"),
        for_user=for_user,
        account=account,
        group=group,
        environment=environment or {},
        reads_homes=reads_homes,
        systemd=systemd,
    )


DEFAULT_PROGRAM = "/opt/taskiq-supervise/bin/taskiq-supervise"
"""Of the template as it is shipped; `systemd install --template` knows better."""


def queue_directory(service: Service) -> str:
    """For the unit and for clients: where its queues are."""
    return f"%t/taskiq-supervise/{service.name}/queues"


def render(service: Service) -> str:
    """The unit file. Raises UnitError."""
    sections = [
        _unit(service),
        _commands(service),
        _places(service),
        _life(service),
        _processes(),
        _user_limits() if service.for_user else _system_limits(service),
        _install(service),
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _unit(service: Service) -> Iterator[str]:
    yield "[Unit]"
    yield f"Description={specified(service.description)}"
    if not service.for_user:
        yield from _lines(
            """
            # Stopped before the network is: tasks may still need it while they end.
            After=network.target
            """
        )
    yield from _lines(
        """
        # It is tried again for as long as it takes: what it needs may be back later.
        StartLimitIntervalSec=0
        """
    )


def _commands(service: Service) -> Iterator[str]:
    start = " ".join(map(word, (*service.program, *service.arguments)))
    again = " ".join(map(word, (*service.program, "reload", "--wait", service.name)))
    yield from _lines(
        """
        [Service]
        # "active" means that every worker is ready. Only the supervisor speaks for the service.
        Type=notify
        NotifyAccess=main
        # The colon: there are no $variables in the line.
        """
    )
    yield f"ExecStart=:{start}"
    yield "# Waits for its outcome: when the new code does not come up the old workers stay, and"
    yield "# `systemctl reload` fails. A signal could not tell."
    yield f"ExecReload=:{again}"
    if service.directory is not None:
        yield f"WorkingDirectory={path(service.directory)}"
    if not service.for_user:
        yield from _account(service)
    for name, value in service.environment.items():
        yield f"Environment={word(f'{name}={value}')}"
    yield "# So that what tasks print is in the journal at once."
    yield "Environment=PYTHONUNBUFFERED=1"
    folder = "%E" if service.for_user else "/etc"
    yield "# Lines of NAME=value for the application and for options; it need not exist."
    yield f"EnvironmentFile=-{folder}/taskiq-supervise/{service.name}.env"


def _account(service: Service) -> Iterator[str]:
    if service.account is None:
        yield "# Its user exists while it runs. Its queue is for other services with the same one."
        yield "DynamicUser=yes"
    else:
        yield f"User={specified(service.account)}"
    if service.group is not None:
        yield f"Group={specified(service.group)}"


def _places(service: Service) -> Iterator[str]:
    folder = f"taskiq-supervise/{service.name}"
    mode = "0700" if service.for_user else "2750"
    yield from _lines(
        """
        # In memory, and kept while the service is stopped: what is in the queues waits there, and
        # clients go on sending. They need the same TASKIQ_SUPERVISE_QUEUE_DIR.
        """
    )
    yield f"RuntimeDirectory={folder} {folder}/queues"
    if not service.for_user:
        yield "# A queue that the application opens to a group gets its group from the folder."
    yield f"RuntimeDirectoryMode={mode}"
    yield "RuntimeDirectoryPreserve=yes"
    yield "Environment=TASKIQ_SUPERVISE_RUNTIME_DIR=%t/taskiq-supervise"
    yield f"Environment=TASKIQ_SUPERVISE_QUEUE_DIR={queue_directory(service)}"
    if not service.for_user:
        yield "# Where tasks may keep files: $STATE_DIRECTORY, in /var/lib."
        yield f"StateDirectory={folder}"
        yield "StateDirectoryMode=0750"


def _life(service: Service) -> Iterator[str]:
    limit = "infinity" if service.start_timeout is None else f"{service.start_timeout:g}s"
    yield "# Holds for a reload as well, in which the old workers may finish their tasks."
    yield f"TimeoutStartSec={limit}"
    yield "# While tasks still end, within --graceful-timeout, the supervisor asks for more."
    yield f"TimeoutStopSec={service.stop_timeout:g}s"
    yield "# A supervisor whose loop does not turn any more is replaced."
    yield "WatchdogSec=30s"
    yield "Restart=on-failure"
    if service.systemd >= SYSTEMD_WITH_STEPS:
        yield "# After each failure in a row a longer pause, up to the last."
        yield from ("RestartSec=1s", "RestartSteps=6", "RestartMaxDelaySec=60s")
    else:
        yield "# Steps up to a longer pause need systemd 254: drop-ins/restart-steps.conf."
        yield "RestartSec=2s"
    yield "# A wrong option or configuration file does not get better by itself."
    yield f"RestartPreventExitStatus={EXIT_USAGE}"


def _processes() -> list[str]:
    return _lines(
        """
        # SIGTERM for the supervisor, which lets its workers finish; SIGKILL for all that is left.
        KillMode=mixed
        # A worker that the kernel ends for want of memory is replaced by the supervisor.
        OOMPolicy=continue
        # Workers run in a control group of their own below the service's.
        Delegate=yes
        """
    )


def _system_limits(service: Service) -> Iterator[str]:
    yield "# What the processes may do. A drop-in can allow more: drop-ins/local.conf."
    yield from ("NoNewPrivileges=yes", "CapabilityBoundingSet=", "AmbientCapabilities=")
    if service.reads_homes:
        yield from (
            "# Not ProtectHome=yes: something of it is in a home folder.",
            "ProtectHome=read-only",
        )
    else:
        yield "ProtectHome=yes"
    yield from _lines(_CLOSED + _LEFT_OPEN)


_CLOSED = """
# All is read-only but /dev/shm, a /tmp of its own, and its folders in /run and /var/lib;
# ReadWritePaths= for more.
ProtectSystem=strict
PrivateTmp=yes
PrivateMounts=yes
UMask=0077
# Leaves /dev/null and the like, and /dev/shm with multiprocessing's semaphores and blocks.
PrivateDevices=yes
DevicePolicy=closed
ProtectHostname=yes
ProtectClock=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectProc=invisible
KeyringMode=private
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallFilter=@chown
SystemCallErrorNumber=EPERM
"""

_LEFT_OPEN = """
# Left open, and why:
# ProtectControlGroups=, Delegate=  the supervisor makes the workers' control group.
# MemoryDenyWriteExecute=  compilers at run time (numba, PyTorch, PCRE) execute what they wrote.
# PrivateUsers=  clients under other users could not be told apart.
# PrivateNetwork=, IPAddressDeny=, AF_INET, AF_INET6  tasks talk to others; where it is known to
#   whom, IPAddressDeny=any and IPAddressAllow= in a drop-in.
# AF_UNIX  the control socket, the journal, databases.
# AF_NETLINK  names and addresses of network interfaces, for resolvers and ZeroMQ.
# ProcSubset=  "pid" hides /proc/sys/kernel/random/boot_id (is a queue of this boot?) and the
#   memory and load of the machine.
# RemoveIPC=  would remove the user's other queues in /dev/shm, under those who use them.
# @resources  --pin, --nice, and the limit of open files that the supervisor raises.
# @privileged  only @chown of it: to give a queue to another group of the user's.
# DeviceAllow=  ProtectClock= itself lets the clock be read.
# RootDirectory=, RootImage=  the application is where it was installed.
"""


def _user_limits() -> list[str]:
    return _lines(
        """
        # What needs no rights of root. The rest would need user namespaces, which not every machine
        # gives to its users.
        NoNewPrivileges=yes
        LockPersonality=yes
        RestrictRealtime=yes
        RestrictSUIDSGID=yes
        SystemCallArchitectures=native
        """
    )


def _install(service: Service) -> list[str]:
    target = "default.target" if service.for_user else "multi-user.target"
    return ["[Install]", f"WantedBy={target}"]


def sysusers() -> str:
    """sysusers.d(5)."""
    return _file(
        f"""
        # The user of services that name no other, and its group, in which clients may be as well.
        u {ACCOUNT} - "taskiq workers" /var/lib/taskiq-supervise
        """
    )


SHARED_QUEUES = "/run/taskiq-supervise-queues"
"""Queues that a group shares with services whose user is a dynamic one."""


def tmpfiles() -> str:
    """tmpfiles.d(5)."""
    return _file(
        f"""
        # Holds the folders of all instances; made here, lest somebody makes it with another mode.
        d /run/taskiq-supervise 0755 root root -
        # For services with DynamicUser=, whose own folders are closed to others:
        # drop-ins/dynamic-user.conf. Who is in the group may make queues here, and trusts the rest.
        d {SHARED_QUEUES} 2770 root {ACCOUNT} -
        # Supervisors that were started by hand, without a $XDG_RUNTIME_DIR, have their folders
        # here; the cleaning of old files would take them away.
        x /tmp/taskiq-supervise-*
        """
    )


def restart_steps() -> str:
    """A drop-in."""
    return _file(
        f"""
        # For systemd {SYSTEMD_WITH_STEPS} and later: after each failure in a row a longer pause.
        [Service]
        RestartSec=1s
        RestartSteps=6
        RestartMaxDelaySec=60s
        """
    )


def dynamic_user() -> str:
    """A drop-in."""
    return _file(
        f"""
        # No fixed user. Clients then share the queue by its group: the broker needs
        #   SharedMemoryBroker(..., mode=0o660, group="{ACCOUNT}")
        # and each client its user in that group and TASKIQ_SUPERVISE_QUEUE_DIR={SHARED_QUEUES}
        [Service]
        DynamicUser=yes
        # A name that no fixed user has: of an existing one nothing would be dynamic. In the unit of
        # one application write it out; %i is the instance of a template.
        User=taskiq-%i
        Group={ACCOUNT}
        # The runtime directory of such a service lies in /run/private, where only root gets in. In
        # /dev/shm a queue would be removed at each stop.
        Environment=TASKIQ_SUPERVISE_QUEUE_DIR={SHARED_QUEUES}
        ReadWritePaths={SHARED_QUEUES}
        """
    )


def local_example() -> str:
    """A drop-in, with all of it commented out but the heading."""
    return _file(
        """
        # Changes for one instance, as `systemctl edit taskiq-supervise@shop` makes them:
        #   /etc/systemd/system/taskiq-supervise@shop.service.d/local.conf
        # for all instances: /etc/systemd/system/taskiq-supervise@.service.d/local.conf

        [Unit]
        # What its tasks need; it is started after that.
        #After=postgresql.service redis-server.service

        [Service]
        # Another user. Clients run as the same, or in its group where the queue is for a group.
        #User=shop
        #Group=shop
        # Another environment. The empty line first: else there would be two commands.
        #ExecStart=
        #ExecStart=:/srv/%i/.venv/bin/taskiq-supervise --config /srv/%i/workers.toml --name %i
        #WorkingDirectory=/srv/%i

        # A password in a file of its own, $CREDENTIALS_DIRECTORY/database, that only root can read.
        #LoadCredential=database:/etc/taskiq-supervise/database.secret

        # Limits for all processes together. --max-memory is one worker's, and replaces it in time.
        #MemoryHigh=3G
        #MemoryMax=4G
        #CPUWeight=50

        # Folders that tasks write to.
        #ReadWritePaths=/srv/shop/media
        # Application or environment in a home folder.
        #ProtectHome=read-only
        # Graphics cards.
        #PrivateDevices=no
        #DevicePolicy=auto
        # Browsers have a sandbox of their own, made of namespaces.
        #RestrictNamespaces=no
        # --nice below 0.
        #LimitNICE=-10

        # Longer than the longest --graceful-timeout.
        #TimeoutStopSec=10min
        """
    )


def shipped() -> dict[str, str]:
    """The files of systemd/, by their paths there."""
    return {
        "taskiq-supervise@.service": render(template()),
        "user/taskiq-supervise@.service": render(template(for_user=True)),
        "sysusers.d/taskiq-supervise.conf": sysusers(),
        "tmpfiles.d/taskiq-supervise.conf": tmpfiles(),
        "drop-ins/local.conf": local_example(),
        "drop-ins/dynamic-user.conf": dynamic_user(),
        "drop-ins/restart-steps.conf": restart_steps(),
    }


def _lines(text: str) -> list[str]:
    return dedent(text).strip("\n").splitlines()


def _file(text: str) -> str:
    return "\n".join(_lines(text)) + "\n"
