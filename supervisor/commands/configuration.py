"""The configuration file: taskiq-supervise.toml, or [tool.taskiq-supervise] in pyproject.toml.

    app = "shop.tasks:broker"
    workers = 4
    [pools.mail]                     # overrides what stands above it, for this pool
    app = "shop.mail:broker"

Keys are the long options without their dashes, and each value goes through the check of its option.
TOML knows numbers from strings, so a value of the wrong type is refused, not guessed at. Nothing is
skipped: a key that is not known would be a limit that somebody believes to be in force.
"""

import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import click

from taskiq_supervise.supervisor.commands.grouped_options import GroupedOption
from taskiq_supervise.supervisor.commands.option_types import Duration, Size

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "taskiq-supervise.toml"
PYPROJECT = "pyproject.toml"
_TOOL = "taskiq-supervise"
_POOLS = "pools"
_POOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,50}")

Parameters: TypeAlias = Mapping[str, click.Parameter]


class ConfigurationError(Exception):
    """The file cannot be used; the message names the file, the key, and what to do."""


@dataclass(frozen=True)
class Configuration:
    """Values by the names of `run`'s parameters, checked, only those that the file has."""

    path: Path
    top: Mapping[str, Any]
    pools: Mapping[str, Mapping[str, Any]]
    """By name, in the file's order: each pool's own values."""


def load(ctx: click.Context, path: Path | None = None) -> Configuration | None:
    """The file that is given, or the one in the current folder; None if there is none.

    `ctx` is `run`'s: its parameters say which keys there are. Raises ConfigurationError.
    """
    found = _find() if path is None else (path, _options_of(path))
    if found is None:
        return None
    path, options = found
    if options is None:
        raise ConfigurationError(f"{path}: there is no [tool.{_TOOL}] in it")
    prefix = f"tool.{_TOOL}." if path.name == PYPROJECT else ""
    return _Reader(ctx, path, prefix).read(options)


def _find() -> tuple[Path, Any] | None:
    own = Path(FILE_NAME)
    if own.exists():
        return own, _options_of(own)
    pyproject = Path(PYPROJECT)
    options = _options_of(pyproject) if pyproject.exists() else None
    return None if options is None else (pyproject, options)


def _options_of(path: Path) -> Any:
    """What concerns us in a file; None for a pyproject.toml that doesn't."""
    content = _parse(path)
    if path.name != PYPROJECT:
        return content
    tools = content.get("tool")
    return tools.get(_TOOL) if isinstance(tools, dict) else None


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8: {error.reason}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: is not TOML: {error}") from error


class _Reader:
    """Turns the tables of one file into checked values."""

    def __init__(self, ctx: click.Context, path: Path, prefix: str) -> None:
        self._ctx = ctx
        self._path = path
        self._prefix = prefix
        self._for_instance = dict(_keys(ctx.command.params, pool=False))
        self._for_pools = dict(_keys(ctx.command.params, pool=True))

    def read(self, options: Any) -> Configuration:
        if not isinstance(options, dict):
            raise self._error(self._prefix.rstrip("."), "is not a table")
        tables = options.get(_POOLS, {})
        if not isinstance(tables, dict):
            raise self._error(f"{self._prefix}{_POOLS}", f"is not a table: write [{_POOLS}.NAME]")
        top = {key: value for key, value in options.items() if key != _POOLS}
        return Configuration(
            self._path,
            self._values(self._prefix, top, self._for_instance),
            {name: self._pool(name, table) for name, table in tables.items()},
        )

    def _pool(self, name: str, table: Any) -> Mapping[str, Any]:
        where = f"{self._prefix}{_POOLS}.{name}"
        if not _POOL_NAME.fullmatch(name):
            raise self._error(where, "the name of a pool has letters, digits, '_' and '-'")
        if not isinstance(table, dict):
            raise self._error(where, "is not a table")
        for key in table:
            if key in self._for_instance and key not in self._for_pools:
                raise self._error(f"{where}.{key}", "is for all pools: write it above the first")
        return self._values(f"{where}.", table, self._for_pools)

    def _values(self, where: str, table: Mapping[str, Any], known: Parameters) -> dict[str, Any]:
        values: dict[str, Any] = {}
        said: dict[str, str] = {}
        for key, value in table.items():
            if key not in known:
                names = [*known, _POOLS] if known is self._for_instance else known
                raise self._error(f"{where}{key}", f"unknown key{_suggestion(key, names)}")
            parameter = known[key]
            assert parameter.name is not None
            if parameter.name in values:
                raise self._error(f"{where}{key}", f"means the same as {said[parameter.name]}")
            said[parameter.name] = key
            values[parameter.name] = self._value(f"{where}{key}", parameter, value)
        return values

    def _value(self, where: str, parameter: click.Parameter, value: Any) -> Any:
        types, name = _expected(parameter)
        several = parameter.multiple or parameter.nargs == -1
        if several and type(value) is not list:
            raise self._error(where, f"{_shown(value)} is not an array; write [{name}, …]")
        elements = value if several else [value]
        for element in elements:
            if type(element) not in types:
                raise self._error(where, f"{_shown(element)} is not {name}")
        if isinstance(parameter.type, click.Path):
            elements = [str(self._path.parent / element) for element in elements]
        try:
            return parameter.process_value(self._ctx, elements if several else elements[0])
        except click.BadParameter as error:
            raise self._error(where, error.message.rstrip(".")) from error

    def _error(self, where: str, text: str) -> ConfigurationError:
        return ConfigurationError(f"{self._path}: {where}: {text}")


def _keys(
    parameters: Iterable[click.Parameter], *, pool: bool
) -> Iterable[tuple[str, click.Parameter]]:
    """What may stand in a pool's table, or above it."""
    for parameter in parameters:
        if isinstance(parameter, click.Argument):
            assert parameter.name is not None
            yield parameter.name, parameter
        elif isinstance(parameter, GroupedOption) and parameter.may_stand(in_pool=pool):
            yield from ((key, parameter) for key in parameter.keys)


def _expected(parameter: click.Parameter) -> tuple[tuple[type, ...], str]:
    """The types of TOML that can stand for a value of this parameter, and their name."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return (bool,), "true or false"
    match parameter.type:
        case Duration():
            return (int, float, str), 'a duration: seconds, or a string as "15m"'
        case Size():
            return (int, str), 'a size: bytes, or a string as "500M"'
        case click.FloatRange():
            return (int, float), "a number"
        case click.types.IntParamType():
            return (int,), "a whole number"
        case _:
            return (str,), "a string"


def _shown(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str() | int() | float():
            return repr(value)
        case list():
            return "an array"
        case dict():
            return "a table"
        case _:
            return f"{value} (a date or time)"


def _suggestion(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key.lower().replace("_", "-"), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
