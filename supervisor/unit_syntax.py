"""Text as systemd reads it in unit files: systemd.syntax(7), and systemd.unit(5) for specifiers.

A `%` begins a specifier everywhere. Words are separated by blanks, and within double quotes a
backslash begins an escape as in C; but a setting that is one path, as WorkingDirectory=, knows
neither. `$` is left alone: our command lines begin with `:`, which turns variables off.
"""

import re

_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class UnitError(Exception):
    """Something cannot be said in a unit file; the message says what, and what to do."""


class Specified(str):
    """Text for systemd itself, in which `%i` and the like mean something."""

    __slots__ = ()


def specified(text: str) -> Specified:
    """For a setting that is neither split into words nor unquoted. Raises UnitError."""
    if isinstance(text, Specified):
        return text
    if "\n" in text or "\r" in text or "\0" in text:
        raise UnitError(f"{text!r} has a line break in it, which a unit file cannot hold there")
    return Specified(_checked(text).replace("%", "%%"))


def word(text: str) -> str:
    """One word of a command line or of Environment=. Raises UnitError."""
    if isinstance(text, Specified) or _PLAIN.fullmatch(text):
        return text
    escaped = "".join(map(_escaped, _checked(text)))
    return f'"{escaped}"'.replace("%", "%%")


def path(text: str) -> str:
    """A setting that is one absolute path. Raises UnitError."""
    given = specified(text)
    # Blanks at the end of a line are dropped, a backslash there continues it.
    return f"{given}/" if given[-1:] in {" ", "\t", "\\"} else given


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return f"\\x{ord(character):02x}" if ord(character) < 32 else character


def _checked(text: str) -> str:
    if "\0" in text or any(_is_refused(ord(character)) for character in text):
        raise UnitError(
            f"{text!r} cannot be written into a unit file: systemd takes valid UTF-8 only"
        )
    return text


def _is_refused(code: int) -> bool:
    """What UTF-8 is not for: bytes that were none, and noncharacters."""
    return 0xD800 <= code <= 0xDFFF or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
