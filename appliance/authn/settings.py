"""The settings of the authenticators' commands: arguments, then EPICS_PVA[S]_AUTH_* variables, then account and host.

Source: SPVA documentation, generic authenticator variables. For servers and IOCs EPICS_PVAS_* comes first and EPICS_PVA_*
second; clients read EPICS_PVA_* only.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from appliance.authn.ccr import USAGE_NUMBERS
from appliance.certs.san import San, canonical, parse_san
from appliance.certs.schedule import Window, parse_windows, read_windows
from appliance.config.duration import Duration, parse_duration
from appliance.config.pva import ClientConfig, resolve_client, resolve_server
from appliance.config.secret import Secret
from appliance.errors import ConfigurationError

__all__ = ["VARIABLES", "RequesterSettings", "keychain_usages", "resolve_requester"]

_HEX: Final = frozenset("0123456789abcdef")
VARIABLES: Final = frozenset(
    {
        "EPICS_AUTH_JWT_FILE",
        "EPICS_PVA_AUTH_CERT_VALIDITY_MINS",
        "EPICS_PVA_AUTH_SAN",
        "EPICS_PVA_AUTH_SERVER_SAN",
        *(
            f"EPICS_{end}_AUTH_{what}"
            for end in ("PVA", "PVAS")
            for what in ("NAME", "ORGANIZATION", "ORGANIZATIONAL_UNIT", "COUNTRY", "NO_STATUS", "ISSUER")
        ),
    }
)
"""Every variable that an authenticator's command reads, apart from those of PVAccess."""


class RequesterSettings(NamedTuple):
    """Everything that one request needs, except what proves the identity."""

    usage: str
    keychain: str
    """Path of the keychain that is made or replaced."""
    password: Secret
    """The password of the keychain; may be empty."""
    name: str
    organization: str
    organizational_unit: str
    country: str
    validity: Duration | None
    """Requested validity of the certificate; None lets the certificate service decide."""
    no_status: bool
    issuer: str
    """Issuer ID of the certificate service to ask; empty for any."""
    prefix: str
    """First part of the names of the certificate service's PVs."""
    client: ClientConfig
    """How to find the certificate service; never with a keychain of its own."""
    warnings: tuple[str, ...]
    sibling: tuple[str, Secret]
    """The same account's keychain for the other end of connections, and its password; the path may be empty."""
    named: frozenset[str] = frozenset()
    """The parts of the subject (``name``, ``organization`` ...) that the user set. The others come from the account, the
    host and the locale.
    """
    san: tuple[San, ...] = ()
    """Alternative names to ask for."""
    schedule: tuple[Window, ...] = ()
    """Hours in which the certificate is to be in use, in ``time_zone``; empty for always."""
    time_zone: str = ""
    """IANA name of the time zone of ``schedule``; empty for UTC."""
    config_uri_base: str = ""
    """First part of the name of the configuration PV that the certificate is to name; empty for none."""

    def pv(self, what: str, issuer: str = "") -> str:
        """Return the name of one of the certificate service's PVs, for one issuer if it is known."""
        issuer = issuer or self.issuer
        return f"{self.prefix}:{what}:{issuer}" if issuer else f"{self.prefix}:{what}"


def keychain_usages(usage: str) -> tuple[str, ...]:
    """Return the ends of a connection that a certificate of this usage serves: ``client``, ``server``, or both."""
    return ("client", "server") if usage == "ioc" else (usage,)


def resolve_requester(
    usage: str, arguments: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> RequesterSettings:
    """Read the settings for a certificate of ``usage``.

    ``arguments`` may have keychain, name, organization, organizational_unit, country, validity, no_status,
    issuer, cert_pv_prefix, add_config_uri, time_zone, and lists: san, server_san, schedule; None stands for "not given".

    Raises:
        ConfigurationError: A setting or a file cannot be used.
    """
    if usage not in USAGE_NUMBERS:
        raise ConfigurationError(f"{usage!r} is not a usage; use one of {', '.join(USAGE_NUMBERS)}")
    environment = os.environ if environ is None else environ
    given = {key: value for key, value in arguments.items() if value is not None}
    for_client = usage == "client"
    client_arguments = {"cert_pv_prefix": given.get("cert_pv_prefix")}
    client = resolve_client(client_arguments, environ=environment)
    warnings = list(client.warnings)
    server = resolve_server(environ=environment)
    own, other = (client.config, server.config) if for_client else (server.config, client.config)
    path = own.tls_keychain
    if not for_client:
        warnings += [text for text in server.warnings if text not in warnings]
    default = client.config.config_file("client.p12" if for_client else "server.p12")

    def variable(what: str) -> str:
        names = [f"EPICS_PVA_AUTH_{what}"]
        if not for_client:
            names.insert(0, f"EPICS_PVAS_AUTH_{what}")
        return next((environment[name] for name in names if environment.get(name)), "")

    def text(key: str, what: str, fallback: str) -> str:
        return str(given.get(key) or variable(what) or fallback)

    validity = given.get("validity") or environment.get("EPICS_PVA_AUTH_CERT_VALIDITY_MINS")
    issuer = str(
        given.get("issuer")
        or environment.get("EPICS_PVA_AUTH_ISSUER")
        or environment.get("EPICS_PVAS_AUTH_ISSUER")
        or ""
    ).lower()
    if issuer and (len(issuer) != 8 or not _HEX.issuperset(issuer)):
        raise ConfigurationError(
            f"{issuer[:64]!r} is not an issuer ID; it is the part of a certificate identifier before the colon, "
            "eight hex digits such as 47530d89"
        )
    no_status = bool(given.get("no_status")) or variable("NO_STATUS").strip().upper() in ("YES", "TRUE", "1")
    schedule = _schedule(given.get("schedule") or (), str(given.get("time_zone") or ""))
    if no_status and (schedule or given.get("add_config_uri")):
        what = "a schedule" if schedule else "--add-config-uri"
        raise ConfigurationError(
            f"{what} has no effect on a certificate without status (--no-status or EPICS_PVA_AUTH_NO_STATUS), because nobody "
            "follows its state; leave one of the two out"
        )
    return RequesterSettings(
        usage=usage,
        keychain=str(given.get("keychain") or path or default),
        password=own.tls_keychain_password,
        name=text("name", "NAME", _account()),
        organization=text("organization", "ORGANIZATION", socket.gethostname()[:64]),
        organizational_unit=text("organizational_unit", "ORGANIZATIONAL_UNIT", ""),
        country=text("country", "COUNTRY", _country(environment)).upper(),
        validity=parse_duration(validity) if validity else None,
        no_status=no_status,
        issuer=issuer,
        prefix=client.config.cert_pv_prefix,
        client=client.config._replace(tls_keychain="", tls_keychain_password=Secret()),
        warnings=tuple(warnings),
        sibling=(other.tls_keychain, other.tls_keychain_password),
        named=frozenset(
            what.lower()
            for what in ("NAME", "ORGANIZATION", "ORGANIZATIONAL_UNIT", "COUNTRY")
            if given.get(what.lower()) or variable(what)
        ),
        san=_san(for_client, given, environment),
        schedule=schedule,
        time_zone=str(given.get("time_zone") or ""),
        config_uri_base=client.config.cert_pv_prefix if given.get("add_config_uri") else "",
    )


def _san(for_client: bool, given: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[San, ...]:
    """Return the alternative names to ask for: those of the first place that has any; variables have commas between them."""
    flags = ("san",) if for_client else ("server_san", "san")
    variables = ("EPICS_PVA_AUTH_SAN",) if for_client else ("EPICS_PVA_AUTH_SERVER_SAN", "EPICS_PVA_AUTH_SAN")
    places = [(f"--{flag.replace('_', '-')}", given.get(flag) or ()) for flag in flags]
    places += [
        (name, [part for part in environ.get(name, "").split(",") if part.strip()]) for name in variables
    ]
    place, texts = next(((place, texts) for place, texts in places if texts), ("", ()))
    try:
        return canonical(map(parse_san, texts)) if texts else ()
    except ValueError as error:
        raise ConfigurationError(f"{place}: {error}") from error


def _schedule(texts: Iterable[str], zone: str) -> tuple[Window, ...]:
    """Read the windows of ``--schedule``.

    Raises:
        ConfigurationError: One of them, or the time zone, cannot be read.
    """
    try:
        rows = [window.wire for text in texts for window in parse_windows(text)]
        windows = read_windows(rows) if rows else ()
    except ValueError as error:
        raise ConfigurationError(f"--schedule: {error}") from error
    if zone:
        if not windows:
            raise ConfigurationError("--time-zone has no effect without --schedule; add it")
        from appliance.config.zones import time_zone

        time_zone(zone)
    return windows


def _account() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _country(environ: Mapping[str, str]) -> str:
    """Return the country of the locale, or US if it has none, as the peers do."""
    locale = environ.get("LC_ALL") or environ.get("LANG") or ""
    code = locale.partition("_")[2][:2]
    return code.upper() if len(code) == 2 and code.isascii() and code.isalpha() else "US"
