"""URIs of issuers and of their endpoints, compared exactly.

Only one spelling is accepted: lower-case scheme and host, no user information, no query or fragment, no percent sign,
no dot segment, no empty segment. A URI that has only one spelling cannot be confused with another.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["Uri", "fault", "is_acceptable", "is_loopback", "issuer_covers", "nearly", "parse"]

_SHAPE: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9](?:[a-z0-9.-]{0,252}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?(?P<path>/[A-Za-z0-9._~/@:+-]*)?"
)
_DEFAULT_PORT: Final = {"http": 80, "https": 443}


class Uri(NamedTuple):
    """A plain http or https URI in parts."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: what "the same host" means for redirects and for comparison."""
        return self[:3]


def parse(text: str) -> Uri | None:
    """Return the parts of `text`, or None if it is not a plain http or https URI."""
    match = _SHAPE.fullmatch(text)
    if match is None:
        return None
    port = int(match["port"]) if match["port"] else _DEFAULT_PORT[match["scheme"]]
    path = match["path"] or ""
    if port > 65535 or ".." in match["host"] or "//" in path or not {".", ".."}.isdisjoint(path.split("/")):
        return None
    return Uri(match["scheme"], match["host"].strip("[]"), port, path)


def fault(text: str) -> str:
    """Say why `parse` refuses `text`, for the user who has to correct it. Call it only for a refused text."""
    scheme, colon, rest = text.partition("://")
    authority, _, path = rest.partition("/")
    host = authority.rpartition("@")[2]
    if not colon or scheme.lower() not in _DEFAULT_PORT:
        return "must be a plain URI that begins with http:// or https://"
    if any(c.isspace() or not c.isprintable() for c in text):
        return "must be a plain http(s) URI: it has white space or control characters in it"
    if "?" in text or "#" in text:
        return "must be a plain http(s) URI without query or fragment: leave out what follows '?' or '#'"
    if "@" in authority:
        return "must be a plain http(s) URI without user information: leave out what stands before '@'"
    if "%" in text:
        return (
            "must be a plain http(s) URI: it has a percent sign, which allows two spellings of one URI; "
            "configure the issuer with a name without escapes"
        )
    if scheme != scheme.lower() or host != host.lower():
        return (
            f"must be a plain http(s) URI: scheme and host must be in lower case ({scheme.lower()}://{host.lower()}); a "
            "token's iss is compared letter by letter, so its issuer must write it like this too"
        )
    if "//" in path or not {".", ".."}.isdisjoint(path.split("/")):
        return "must be a plain http(s) URI: its path has an empty part, '.' or '..'"
    if not text.isascii():
        return "must be a plain http(s) URI: write a host name with non-ASCII letters in its xn-- form"
    name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if name and not (port.isdecimal() and port[:1] != "0" and len(port) < 6 and int(port) <= 65535):
        return "must be a plain http(s) URI: the port must be a number from 1 to 65535"
    return "must be a plain http(s) URI: a host, perhaps a port, and a path of letters, digits and ._~@:+-"


def nearly(text: str) -> str:
    """Return what is left of a URI without the differences that are easily overlooked; only to say so, never to trust.

    These are upper and lower case of scheme and host, the port that the scheme has anyway, escapes, and a slash at the end.
    """
    from urllib.parse import unquote

    scheme, colon, rest = text.strip().partition("://")
    authority, slash, path = rest.partition("/")
    scheme, authority = scheme.lower(), authority.lower()
    authority = authority.removesuffix(f":{_DEFAULT_PORT.get(scheme, 0)}")
    return f"{scheme}{colon}{authority}{slash}{unquote(path)}".rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine itself: ``localhost``, 127.0.0.0/8 or ``::1``."""
    if host == "localhost":
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_acceptable(uri: Uri, *, insecure_http: bool = False) -> bool:
    """Whether `uri` is https, or plain http to this machine itself; with `insecure_http` also plain http to others."""
    return insecure_http or uri.scheme == "https" or is_loopback(uri.host)


def issuer_covers(issuer: str, trusted_uri: str) -> bool:
    """Whether an `iss` claim matches an issuer that is known by its validation endpoint alone.

    It does if both are the same text, or if they have the same scheme, host and port and the endpoint's path lies below
    the issuer's, whole segments only: ``http://localhost:8080/default`` matches ``http://localhost:8080/default/verify``;
    ``http://localhost:8080/def`` and ``http://localhost:8080/default/verify/x`` do not.
    """
    if issuer == trusted_uri:
        return True
    claimed, endpoint = parse(issuer), parse(trusted_uri)
    if claimed is None or endpoint is None or claimed.origin != endpoint.origin:
        return False
    return endpoint.path.startswith(claimed.path.removesuffix("/") + "/")
