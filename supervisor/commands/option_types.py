"""What the values of options look like: durations, sizes, names, and what is wrong with them.

The same checks serve the command line, the environment and the configuration file. Beside the
value itself each type says which types of TOML can stand for it.
"""

import logging
import math
import re
from typing import TYPE_CHECKING, Any

import click

from taskiq_supervise.supervisor.http import AddressError, parse_address
from taskiq_supervise.supervisor.runtime import RuntimeDirectoryError, check_instance_name

if TYPE_CHECKING:
    _FloatType = click.ParamType[float]
    _IntType = click.ParamType[int]
else:  # generic for type checkers only, before click 8.5
    _FloatType = _IntType = click.ParamType

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")
_DURATION_PART = re.compile(r"([\d.]+)([dhms])")
_SECONDS_PER = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_LONGEST = 1e9
"""Seconds, 31 years: far below what the kernel's timers can be set to."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:I?B)?|B)?", re.IGNORECASE)
_LARGEST = 1 << 63
_BYTES_PER = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Duration(_FloatType):
    """Seconds: a number, or as in 90s, 15m, 12h, 1d, 1h30m."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value).strip().lower()
        if _DURATION.fullmatch(text):
            parts = _DURATION_PART.findall(text)
            seconds = sum(float(number) * _SECONDS_PER[unit] for number, unit in parts)
        else:
            try:
                seconds = float(text)
            except ValueError:
                self.fail(f"{value!r} is neither seconds nor as in 90s, 15m, 12h or 1d", param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not a finite number of seconds", param, ctx)
        if not 0 <= seconds <= _LONGEST:
            self.fail(f"{value!r} is not between 0 and {_LONGEST:.0f} seconds", param, ctx)
        return seconds


class Size(_IntType):
    """Bytes: a number, or as in 500M and 1.5G, in powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is neither bytes nor as in 500M or 1.5G", param, ctx)
        size = float(match[1]) * _BYTES_PER[(match[2] or "").upper()]
        if size > _LARGEST:
            self.fail(f"{value!r} is more than an address can say", param, ctx)
        return int(size)


class Share(click.FloatRange):
    """From 0 to below 1."""

    def __init__(self) -> None:
        super().__init__(0, 1, max_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        share = float(super().convert(value, param, ctx))
        if math.isnan(share):  # is in every range
            self.fail(f"{value!r} is not a number", param, ctx)
        return share


def check_application(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> str | None:
    if value is None:
        return None
    module, colon, variable = value.partition(":")
    if not (module and colon and variable):
        raise click.BadParameter(
            f"{value!r} is no application written as module:variable, for example app:broker"
        )
    return value


def check_name(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    try:
        return value if value is None else check_instance_name(value)
    except RuntimeDirectoryError as error:
        raise click.BadParameter(str(error)) from None


def check_http(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        try:
            parse_address(value)
        except AddressError as error:
            raise click.BadParameter(str(error)) from None
    return value


def split_pairs(
    _ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    pairs = []
    for value in values:
        key, equals, rest = value.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{value!r} is not written as key=value")
        pairs.append((key, rest))
    return tuple(pairs)


def check_log_format(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Formats one record: logging itself finds most mistakes only then, and in every process."""
    record = logging.LogRecord("taskiq_supervise", logging.INFO, __file__, 0, "", (), None)
    try:
        logging.Formatter(value).format(record)
    except (ValueError, TypeError, OverflowError) as error:
        raise click.BadParameter(f"{value!r} is no format for Python's logging: {error}") from None
    return value
