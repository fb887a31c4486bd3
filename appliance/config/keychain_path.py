"""``FILE;PASSWORD``: a keychain and its password in one setting, as Phoebus and the C++ programs read it.

Source: PVXS of 2026, ``src/config.cpp`` (``fromDefs``); Phoebus, ``SecureSockets.createContext``. Both split at the first semicolon.
"""

from __future__ import annotations

from appliance.config.secret import Secret
from appliance.errors import ConfigurationError

__all__ = ["refuse_password", "split_password"]


def split_password(text: str, setting: str) -> tuple[str, Secret | None]:
    """Return the file that ``FILE;PASSWORD`` names, and the password; None if there is no semicolon.

    Args:
        text: The value. It is in no message, because a part of it is a secret.
        setting: Where it was written, for messages: a variable, or a file and its line.

    Raises:
        ConfigurationError: There is a password and no file.
    """
    path, semicolon, password = text.partition(";")
    if not semicolon:
        return text, None
    if not path.strip():
        raise ConfigurationError(f"{setting} has a password and no keychain: write FILE;PASSWORD")
    return path, Secret(password, source=setting)


def refuse_password(path: object, setting: str, instead: str = "") -> None:
    """Refuse ``FILE;PASSWORD`` where it would be seen by others (an option), or where no other tool reads it so.

    The text is never in a message, because the part after the semicolon is a secret. ``instead`` says how to give the
    password, if there is no setting with the name of ``setting`` and _PWD_FILE.

    Raises:
        ConfigurationError: ``path`` has a semicolon.
    """
    if ";" in str(path):
        instead = instead or (
            "put it into a file of its own (chmod 600) and name that file with the setting of the same name and _PWD_FILE"
        )
        raise ConfigurationError(
            f"{setting} names a keychain with a semicolon in it; a password after the file's name is not supported here: "
            f"{instead}"
        )
