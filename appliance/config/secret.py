"""A secret that cannot be printed by accident."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NoReturn

from appliance.config.files import read_private
from appliance.errors import ConfigurationError

__all__ = ["FilePath", "Secret", "credential_path", "resolve_reference"]

_LIMIT: Final = 64 * 1024
_CREDENTIAL: Final = "${credential:"
_FILE: Final = "${file:"


class Secret:
    """Text that never appears in ``repr``, ``str``, ``format``, a pickle or a dump; `reveal` returns it."""

    __slots__ = ("_text", "finding", "source")

    def __init__(self, text: str = "", *, source: str = "", finding: str = "") -> None:
        self._text = text
        self.source = source
        """Where the secret came from (a path), for messages."""
        self.finding = finding
        """What is wrong with the permissions of its file: one sentence, or empty."""

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, strict: bool = True) -> Secret:
        """Return the content of a file without its last line end.

        Raises:
            ConfigurationError: The file cannot be read, is larger than 64 KiB, is not UTF-8, or, if ``strict``, may be read by every user of the machine.
        """
        name = os.fspath(path)
        read = read_private(name, _LIMIT, strict=strict)
        try:
            text = read.data.decode()
        except UnicodeDecodeError:
            # The decoding error contains the bytes, which are the secret, so it must not be chained to ours.
            raise ConfigurationError("a secret must be UTF-8 text", file=name) from None
        return cls(text.removesuffix("\n").removesuffix("\r"), source=name, finding=read.finding)

    @classmethod
    def first_line(cls, path: str | os.PathLike[str], *, setting: str, strict: bool = True) -> Secret:
        """Return the password in the first line of a file, as in openssl (``-passin file:``); the rest is ignored.

        ``setting`` is the variable or the key that names the file, for messages. An empty line is no password; the finding says
        so, because such a file is a setting without effect.

        Raises:
            ConfigurationError: As in `from_file`, for the first line.
        """
        name = os.fspath(path)
        read = read_private(name, _LIMIT, strict=strict)
        try:
            text = read.data.partition(b"\n")[0].removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            raise ConfigurationError("a password must be UTF-8 text", file=name) from None
        finding = read.finding
        if not text:
            empty = (
                f"{name}, named by {setting}, is empty or begins with an empty line: it contains no password"
            )
            finding = f"{empty}; {finding}" if finding else empty
        return cls(text, source=f"{name} ({setting})", finding=finding)

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __repr__(self) -> str:
        return "Secret('***')" if self._text else "Secret('')"

    def __str__(self) -> str:
        return "***" if self._text else ""

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __reduce__(self) -> NoReturn:
        msg = "a Secret cannot be serialised"
        raise TypeError(msg)


class FilePath(str):
    """A path in a configuration file, with ``~`` and ``${credential:NAME}`` already replaced."""

    __slots__ = ()


def credential_path(name: str, environ: Mapping[str, str] | None = None) -> str:
    """Return the path of a systemd credential.

    Raises:
        ConfigurationError: $CREDENTIALS_DIRECTORY is not set, or the name is not a file name.
    """
    if not name or "/" in name or "\0" in name or name in {".", ".."}:
        raise ConfigurationError(f"{name!r} is not the name of a credential: it must be a plain file name")
    directory = (os.environ if environ is None else environ).get("CREDENTIALS_DIRECTORY", "")
    if not directory:
        raise ConfigurationError(
            f"credential {name!r} is not available: CREDENTIALS_DIRECTORY is not set; "
            "start the service with systemd and LoadCredential=, or name a file with ${file:PATH}"
        )
    return os.path.join(directory, name)  # noqa: PTH118 - pathlib costs more than the tools' start-up can spare


def resolve_reference(text: str, environ: Mapping[str, str] | None = None) -> str | None:
    """Return the path that ``${credential:NAME}`` or ``${file:PATH}`` means, None for any other text."""
    if text.endswith("}"):
        if text.startswith(_CREDENTIAL):
            return credential_path(text[len(_CREDENTIAL) : -1], environ)
        if text.startswith(_FILE):
            path = text[len(_FILE) : -1]
            if not path.startswith("/"):
                raise ConfigurationError(f"${{file:...}} needs an absolute path, not {path!r}")
            return path
    return None
