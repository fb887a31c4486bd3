"""Which key in which token: PKCS#11 URIs (RFC 7512), as ``ca_key`` has them. Pure.

Stricter than the RFC where that is safer: what has no effect here is refused, and so is a PIN in the URI itself.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from appliance.errors import ConfigurationError

__all__ = ["PKCS11URI", "parse_pkcs11_uri"]

_MAX: Final = 1024
_PATH: Final = (
    "token",
    "manufacturer",
    "model",
    "serial",
    "slot-id",
    "slot-description",
    "slot-manufacturer",
    "object",
    "id",
    "type",
)
_QUERY: Final = ("module-path", "pin-source")
_REFUSED: Final = {
    "pin-value": "a PIN must not stand in a setting: use ca_key_pin: ${credential:NAME}, or pin-source=file:/PATH",
    "module-name": "name the library by its path: module-path=/usr/lib/.../NAME.so",
    "library-manufacturer": "the library is named by module-path alone",
    "library-description": "the library is named by module-path alone",
    "library-version": "the library is named by module-path alone",
}
# RFC 7512 section 2.3. "&" is for values of the path only, "/" and "?" for those of the query only.
_VALUE: Final = r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,={extra}]|%[0-9A-Fa-f]{{2}})*"
_PATH_VALUE: Final = re.compile(_VALUE.format(extra="&"))
_QUERY_VALUE: Final = re.compile(_VALUE.format(extra="/?|"))


class PKCS11URI(NamedTuple):
    """A key in a token. What is empty or None is not asked for."""

    module_path: str
    """The library of the token's manufacturer."""
    token: str = ""
    """The token's label."""
    manufacturer: str = ""
    model: str = ""
    serial: str = ""
    slot_id: int | None = None
    slot_description: str = ""
    slot_manufacturer: str = ""
    object: str = ""
    """The key's label."""
    id: bytes = b""
    """The key's identifier."""
    pin_source: str = ""
    """A file whose first line is the PIN."""
    shown: str = ""
    """The key and its token, as written, for messages."""

    def __str__(self) -> str:
        return self.shown


def parse_pkcs11_uri(text: str, *, key: str = "ca_key") -> PKCS11URI:
    """Read a URI.

    Args:
        text: Such as ``pkcs11:token=site;object=ca?module-path=/usr/lib/softhsm/libsofthsm2.so``.
        key: The setting that has it, for messages.

    Returns:
        What it asks for.

    Raises:
        ConfigurationError: It is no such URI, or asks for something that is not done here.
    """
    if not text.startswith("pkcs11:"):
        raise ConfigurationError(
            "a key outside a keychain is named by a PKCS#11 URI, such as "
            "pkcs11:token=site;object=ca?module-path=/usr/lib/softhsm/libsofthsm2.so",
            key=key,
        )
    if len(text) > _MAX:
        raise ConfigurationError(
            f"the PKCS#11 URI has {len(text)} characters; at most {_MAX} are allowed", key=key
        )
    path, _, query = text.removeprefix("pkcs11:").partition("?")
    found = _attributes(path, ";", _PATH, _PATH_VALUE, key)
    found |= _attributes(query, "&", _QUERY, _QUERY_VALUE, key)
    kind = _text(found, "type", key)
    if kind not in ("", "private"):
        raise ConfigurationError(f"type={kind} is no private key; write type=private, or nothing", key=key)
    module = _text(found, "module-path", key)
    if not module.startswith("/"):
        raise ConfigurationError(
            "the PKCS#11 URI does not say which library reaches the token; add its path, such as "
            "?module-path=/usr/lib/softhsm/libsofthsm2.so",
            key=key,
        )
    if not found.get("object") and not found.get("id"):
        raise ConfigurationError(
            "the PKCS#11 URI names no key; add object=LABEL or id=%01 (octets in hexadecimal)", key=key
        )
    return PKCS11URI(
        module_path=module,
        token=_text(found, "token", key),
        manufacturer=_text(found, "manufacturer", key),
        model=_text(found, "model", key),
        serial=_text(found, "serial", key),
        slot_id=_slot(found, key),
        slot_description=_text(found, "slot-description", key),
        slot_manufacturer=_text(found, "slot-manufacturer", key),
        object=_text(found, "object", key),
        id=found.get("id", b""),
        pin_source=_pin_source(_text(found, "pin-source", key), key),
        shown=f"pkcs11:{path}",
    )


def _attributes(
    text: str, separator: str, known: tuple[str, ...], form: re.Pattern[str], key: str
) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in text.split(separator) if text else ():
        name, equals, value = part.partition("=")
        if name in _REFUSED:
            raise ConfigurationError(f"{name} in a PKCS#11 URI is not used here: {_REFUSED[name]}", key=key)
        if name not in known or not equals:
            raise ConfigurationError(
                f"the PKCS#11 URI has {name[:64]!a}, which is not understood here; known are {', '.join(known)}",
                key=key,
            )
        if name in found:
            raise ConfigurationError(f"the PKCS#11 URI has {name} twice", key=key)
        if not form.fullmatch(value):
            raise ConfigurationError(
                f"{name} in the PKCS#11 URI has characters that must be written as %xx (octets of UTF-8 in hexadecimal): {value[:64]!a}",
                key=key,
            )
        found[name] = unquote_to_bytes(value)
    return found


def _text(found: dict[str, bytes], name: str, key: str) -> str:
    try:
        text = found.get(name, b"").decode()
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable():
        raise ConfigurationError(f"{name} in the PKCS#11 URI is not printable text in UTF-8", key=key)
    return text


def _slot(found: dict[str, bytes], key: str) -> int | None:
    text = _text(found, "slot-id", key)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise ConfigurationError(
            f"slot-id in the PKCS#11 URI is {text[:64]!a}, and must be a number", key=key
        )
    return int(text)


def _pin_source(text: str, key: str) -> str:
    if not text:
        return ""
    path = text.removeprefix("file:")
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path.startswith("/"):
        raise ConfigurationError(
            f"pin-source in the PKCS#11 URI is {text[:64]!a}, and must name a file: pin-source=file:/PATH; programs are not run",
            key=key,
        )
    return path
