"""CURVE keys in files, and the list of the clients that may connect.

The files are ZeroMQ's certificates (`zmq.auth` reads them): `name.key` is public, `name.key_secret`
holds both halves and is its owner's alone.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PUBLIC, SECRET = ".key", ".key_secret"
ANY_CLIENT = "*"
"""In place of a list: whoever knows the server's public key may connect."""

_KEY = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_LINE = re.compile(r'^\s*(public|secret)-key\s*=\s*"([^"\n]*)"\s*$', re.MULTILINE)


class KeyFileError(ValueError):
    """A key, or the file that should hold one, cannot be used."""


@dataclass(frozen=True)
class KeyPair:
    """Two halves, as 40 printable characters each (Z85)."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"

    @classmethod
    def new(cls) -> "KeyPair":
        import zmq

        return cls(*zmq.curve_keypair())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "KeyPair":
        """From a `.key_secret` file. Raises KeyFileError."""
        keys = _read(Path(path))
        if "secret" not in keys:
            raise KeyFileError(
                f"{path} holds no secret key; it is in the file that ends in {SECRET}"
            )
        if "public" not in keys:
            import zmq

            return cls(zmq.curve_public(keys["secret"]), keys["secret"])
        return cls(keys["public"], keys["secret"])

    def save(
        self, folder: Path, name: str, *, public_folder: Path | None = None
    ) -> tuple[Path, Path]:
        """The public and the secret file. Raises FileExistsError rather than lose a key."""
        if public_folder is not None:
            public_folder.mkdir(mode=0o700, exist_ok=True)
        public = (public_folder or folder) / f"{name}{PUBLIC}"
        secret = folder / f"{name}{SECRET}"
        if public.exists():
            raise FileExistsError(f"{public} exists already")
        _write(secret, _text(self.public, self.secret), 0o600)
        _write(public, _text(self.public), 0o644)
        return public, secret


def load_public(path: str | os.PathLike[str]) -> bytes:
    """The public key in either file. Raises KeyFileError."""
    keys = _read(Path(path))
    if "public" not in keys:
        raise KeyFileError(f"{path} holds no public key")
    return keys["public"]


def may_be_read_by_others(path: str | os.PathLike[str]) -> bool:
    return bool(Path(path).stat().st_mode & 0o077)


class AllowList:
    """Which clients may connect: their public keys.

    Files and folders are read for each client that connects, so that one is let in or kept out
    without a restart.
    """

    def __init__(
        self, allowed: "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"
    ) -> None:
        """allowed: a folder of public keys, "*", or a list of keys and files of them."""
        self.is_everybody = allowed == ANY_CLIENT
        self._keys: set[bytes] = set()
        self._paths: list[Path] = []
        if self.is_everybody:
            return
        for item in [allowed] if isinstance(allowed, (str, os.PathLike)) else allowed:
            if isinstance(item, str) and _KEY.fullmatch(item.encode()):
                self._keys.add(item.encode())
            else:
                self._paths.append(Path(item))

    def check(self) -> None:
        """Raises KeyFileError when one of the files cannot be used, now."""
        for path in self._files():
            load_public(path)

    def allows(self, public: bytes) -> bool:
        """A file that is missing or damaged lets nobody in, and keeps nobody else out."""
        if self.is_everybody or public in self._keys:
            return True
        try:
            files = self._files()
        except KeyFileError:
            return False
        return any(_holds(path, public) for path in files)

    def _files(self) -> list[Path]:
        files: list[Path] = []
        for path in self._paths:
            try:
                files += sorted(path.glob(f"*{PUBLIC}")) if path.is_dir() else [path]
            except OSError as error:
                raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
        return files


def _holds(path: Path, public: bytes) -> bool:
    try:
        return load_public(path) == public
    except KeyFileError:
        return False


def _read(path: Path) -> dict[str, bytes]:
    try:
        text = path.read_text()
    except OSError as error:
        raise KeyFileError(f"the key file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} is no key file; `taskiq-supervise keygen` makes some") from None
    keys = {name: key.encode() for name, key in _LINE.findall(text)}
    if not keys or not all(_KEY.fullmatch(key) for key in keys.values()):
        raise KeyFileError(f"{path} is no key file; `taskiq-supervise keygen` makes some")
    return keys


def _text(public: bytes, secret: bytes | None = None) -> str:
    title = "secret key: for its owner only" if secret else "public key"
    lines = [f"#   {title}", "metadata", "curve", f'    public-key = "{public.decode()}"']
    if secret is not None:
        lines.append(f'    secret-key = "{secret.decode()}"')
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(descriptor, "w") as file:
        file.write(text)
