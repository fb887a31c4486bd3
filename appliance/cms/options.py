"""The only table of flags and variables; `pvacms`' command line, its settings and their tests use it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from appliance.authn.grant import USAGES
from appliance.certs.profiles import KEY_ALGORITHMS
from appliance.config.duration import parse_duration
from appliance.config.secret import FilePath
from appliance.config.words import YES_NO
from appliance.errors import ConfigurationError

__all__ = ["JWT_FLAGS", "NO_EFFECT", "OPTIONS", "VARIABLES", "Option", "add_flags", "without_effect"]

_SWITCH: Final = {**YES_NO, "on": True, "enabled": True, "off": False, "disabled": False}


def _boolean(text: str) -> bool:
    answer = _SWITCH.get(text.strip().lower())
    if answer is None:
        raise ConfigurationError(f"expected YES or NO, not {text[:32]!r}")
    return answer


def _subscription(text: str) -> str:
    word = text.strip().lower()
    return word if word in ("default", "requester") else "yes" if _boolean(text) else "no"


def _path(text: str) -> FilePath:
    if "\0" in text:
        raise ConfigurationError("a path must not hold a NUL character")
    return FilePath(os.path.expanduser(text))  # noqa: PTH111 - text in, text out


def _integer(text: str) -> int:
    if not (text.strip().isascii() and text.strip().isdecimal() and len(text.strip()) < 12):
        raise ConfigurationError(f"expected a whole number, not {text[:32]!r}")
    return int(text)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"expected a number, not {text[:32]!r}") from None


def _plain(text: str) -> str:
    return text


class Option(NamedTuple):
    """One setting with its flags and variables."""

    keys: tuple[str, ...]
    """The settings it sets; more than one only if its name says "all"."""
    flags: tuple[str, ...]
    variables: tuple[str, ...]
    help: str
    read: Callable[[str], Any] = _plain
    constant: object = None
    """What a flag without a value sets."""
    metavar: str = "TEXT"
    server: bool = False
    """Whether it is a setting of the PVAccess server."""
    repeated: bool = False
    """Whether its flag may be given several times; the setting is a list."""

    @property
    def destination(self) -> str:
        """The attribute of the parsed arguments."""
        return "o_" + self.flags[-1].lstrip("-").replace("-", "_") if self.flags else ""


def _per_usage() -> list[Option]:
    found = [
        Option(
            tuple(f"require_{usage}_approval" for usage in USAGES),
            ("--certs-dont-require-approval",),
            ("EPICS_PVACMS_REQUIRE_APPROVAL",),
            "issue all certificates without approval",
            _boolean,
            constant=False,
        ),
        Option(
            tuple(f"cert_validity_{usage}" for usage in USAGES),
            ("--cert_validity",),
            ("EPICS_PVACMS_CERT_VALIDITY",),
            "default duration of all certificates",
            parse_duration,
            metavar="DURATION",
        ),
        Option(
            tuple(f"disallow_{usage}_custom_duration" for usage in USAGES),
            ("--disallow-custom-durations",),
            ("EPICS_PVACMS_DISALLOW_CUSTOM_DURATION",),
            "ignore the durations that requests ask for",
            _boolean,
            constant=True,
        ),
        Option(
            tuple(f"cert_renewal_{usage}" for usage in USAGES),
            ("--cert-renewal",),
            ("EPICS_PVACMS_CERT_RENEWAL",),
            "how long all certificates without a token are in use before they must be renewed; 0: they need not be",
            parse_duration,
            metavar="DURATION",
        ),
    ]
    for usage in USAGES:
        name = usage.upper()
        found += [
            Option(
                (f"require_{usage}_approval",),
                (f"--{usage}-dont-require-approval",),
                (f"EPICS_PVACMS_REQUIRE_{name}_APPROVAL", f"EPICS_PVACMS_CERT_{name}_REQUIRE_APPROVAL"),
                f"issue {usage} certificates without approval",
                _boolean,
                constant=False,
            ),
            Option(
                (f"cert_validity_{usage}",),
                (f"--cert_validity-{usage}",),
                (f"EPICS_PVACMS_CERT_VALIDITY_{name}",),
                f"default duration of {usage} certificates",
                parse_duration,
                metavar="DURATION",
            ),
            Option(
                (f"disallow_{usage}_custom_duration",),
                (f"--disallow-custom-durations-{usage}",),
                (f"EPICS_PVACMS_DISALLOW_{name}_CUSTOM_DURATION",),
                f"ignore the durations that requests for {usage} certificates ask for",
                _boolean,
                constant=True,
            ),
            Option(
                (f"cert_renewal_{usage}",),
                (f"--cert-renewal-{usage}",),
                (f"EPICS_PVACMS_CERT_RENEWAL_{name}",),
                f"the same for {usage} certificates",
                parse_duration,
                metavar="DURATION",
            ),
        ]
    return found


def _file(key: str, flags: tuple[str, ...], variable: str, what: str) -> Option:
    return Option((key,), flags, (variable,), what, _path, metavar="FILE")


OPTIONS: Final[tuple[Option, ...]] = (
    _file(
        "cert_auth_tls_keychain",
        ("-c", "--cert-auth-keychain"),
        "EPICS_CERT_AUTH_TLS_KEYCHAIN",
        "keychain of the certificate authority",
    ),
    _file(
        "cert_auth_tls_keychain_pwd_file",
        ("--cert-auth-keychain-pwd",),
        "EPICS_CERT_AUTH_TLS_KEYCHAIN_PWD_FILE",
        "file with its password",
    ),
    Option(
        ("cert_auth_name",),
        ("--cert-auth-name",),
        ("EPICS_CERT_AUTH_NAME",),
        "name (CN) of a certificate authority that is made",
    ),
    Option(
        ("cert_auth_organization",),
        ("--cert-auth-org",),
        ("EPICS_CERT_AUTH_ORGANIZATION",),
        "its organisation (O)",
    ),
    Option(
        ("cert_auth_organizational_unit",),
        ("--cert-auth-org-unit",),
        ("EPICS_CERT_AUTH_ORGANIZATIONAL_UNIT",),
        "its organisational unit (OU)",
    ),
    Option(("cert_auth_country",), ("--cert-auth-country",), ("EPICS_CERT_AUTH_COUNTRY",), "its country (C)"),
    Option(
        ("db",),
        ("-d", "--cert-db"),
        ("EPICS_PVACMS_DB",),
        "certificate database: a file, or the URL of a PostgreSQL database",
        metavar="FILE",
    ),
    Option(
        ("node",),
        ("--node",),
        ("EPICS_PVACMS_NODE",),
        "name of this node among those that share a database server (the host's name)",
        metavar="NAME",
    ),
    Option(
        ("tls_keychain",),
        ("-p", "--pvacms-keychain"),
        (),
        "the service's own keychain (EPICS_PVACMS_TLS_KEYCHAIN)",
        metavar="FILE",
        server=True,
    ),
    Option(
        ("tls_keychain_pwd_file",),
        ("--pvacms-keychain-pwd",),
        (),
        "file with its password (EPICS_PVACMS_TLS_KEYCHAIN_PWD_FILE)",
        metavar="FILE",
        server=True,
    ),
    Option(
        ("pvacms_name",),
        ("--pvacms-name",),
        ("EPICS_PVACMS_NAME",),
        "name (CN) of the service's certificate",
    ),
    Option(
        ("pvacms_organization",),
        ("--pvacms-org",),
        ("EPICS_PVACMS_ORGANIZATION",),
        "its organisation (O)",
    ),
    Option(
        ("pvacms_organizational_unit",),
        ("--pvacms-org-unit",),
        ("EPICS_PVACMS_ORGANIZATIONAL_UNIT",),
        "its organisational unit (OU)",
    ),
    Option(("pvacms_country",), ("--pvacms-country",), ("EPICS_PVACMS_COUNTRY",), "its country (C)"),
    _file("acf", ("--acf",), "EPICS_PVACMS_ACF", "access security file"),
    _file(
        "admin_tls_keychain",
        ("-a", "--admin-keychain"),
        "EPICS_ADMIN_TLS_KEYCHAIN",
        "keychain of an administrator that is made",
    ),
    _file(
        "admin_tls_keychain_pwd_file",
        ("--admin-keychain-pwd",),
        "EPICS_ADMIN_TLS_KEYCHAIN_PWD_FILE",
        "file with its password",
    ),
    *_per_usage(),
    Option(
        ("cert_status_validity_mins",),
        ("--status-validity-mins",),
        ("EPICS_PVACMS_CERT_STATUS_VALIDITY_MINS",),
        "how long a status answer is valid; a plain number is minutes",
        parse_duration,
        metavar="DURATION",
    ),
    Option(
        ("certs_require_subscription",),
        ("--status-monitoring-enabled",),
        ("EPICS_PVACMS_CERTS_REQUIRE_SUBSCRIPTION",),
        "whether certificates name their status PV: YES, NO, REQUESTER (unless it asks for none) or DEFAULT (who asks for none is refused)",
        _subscription,
        metavar="YES|NO|REQUESTER|DEFAULT",
    ),
    Option(
        ("cert_pv_prefix",),
        ("--cert-pv-prefix",),
        (),
        "first part of the names of the service's PVs (EPICS_PVACMS_CERT_PV_PREFIX)",
        metavar="PREFIX",
        server=True,
    ),
    Option(
        ("health_pv_prefix",),
        ("--health-pv-prefix",),
        ("EPICS_PVACMS_HEALTH_PV_PREFIX",),
        "name of the health PV",
        metavar="NAME",
    ),
    Option(
        ("metrics_pv_prefix",),
        ("--metrics-pv-prefix",),
        ("EPICS_PVACMS_METRICS_PV_PREFIX",),
        "name of the metrics PV",
        metavar="NAME",
    ),
    Option(
        ("key_algorithm",),
        ("--key-algorithm",),
        ("EPICS_PVACMS_KEY_ALGORITHM",),
        f"algorithm of keys that are made: {', '.join(KEY_ALGORITHMS)}",
        metavar="NAME",
    ),
    Option(
        ("ccr_per_minute",),
        ("--ccr-per-minute",),
        ("EPICS_PVACMS_CCR_PER_MINUTE",),
        "requests per minute from one address; 0: no limit",
        _float,
        metavar="NUMBER",
    ),
    Option(
        ("ccr_rate",),
        ("--rate-limit",),
        ("EPICS_PVACMS_RATE_LIMIT",),
        "requests per second from all addresses together; 0: no limit",
        _float,
        metavar="NUMBER",
    ),
    Option(
        ("ccr_rate_burst",),
        ("--rate-limit-burst",),
        ("EPICS_PVACMS_RATE_LIMIT_BURST",),
        "requests from all addresses together that may come at once",
        _integer,
        metavar="NUMBER",
    ),
    Option(
        ("ccr_in_flight",),
        ("--max-concurrent-ccr",),
        ("EPICS_PVACMS_MAX_CONCURRENT_CCR",),
        "requests that are worked on at the same time",
        _integer,
        metavar="NUMBER",
    ),
    Option(
        ("health_interval_s",),
        ("--monitor-interval-max",),
        ("EPICS_PVACMS_MONITOR_INTERVAL_MAX",),
        "seconds between looks at the service's own health",
        _float,
        metavar="SECONDS",
    ),
    Option(
        ("integrity_check_interval_s",),
        ("--integrity-check-interval",),
        ("EPICS_PVACMS_INTEGRITY_CHECK_INTERVAL",),
        "seconds between checks of the whole database; 0: none",
        _integer,
        metavar="SECONDS",
    ),
    Option(
        ("audit_retention_days",),
        ("--audit-retention-days",),
        ("EPICS_PVACMS_AUDIT_RETENTION_DAYS",),
        "days for which records of the audit are kept; 0: for ever",
        _integer,
        metavar="DAYS",
    ),
    Option(
        ("preload",),
        ("--preload-cert",),
        (),
        "file of a certificate of this authority that the service is to know; may be repeated",
        _path,
        metavar="FILE",
        repeated=True,
    ),
    Option(
        ("backup_interval_s",),
        ("--backup-interval",),
        ("EPICS_PVACMS_BACKUP_INTERVAL",),
        "seconds between backups of the database; 0: none",
        _integer,
        metavar="SECONDS",
    ),
    _file("backup_dir", ("--backup-dir",), "EPICS_PVACMS_BACKUP_DIR", "directory of these backups"),
    Option(
        ("backup_retention",),
        ("--backup-retention",),
        ("EPICS_PVACMS_BACKUP_RETENTION",),
        "how many of them are kept",
        _integer,
        metavar="NUMBER",
    ),
)
JWT_FLAGS: Final = {
    "--jwt-request-format": "EPICS_AUTH_JWT_REQUEST_FORMAT",
    "--jwt-request-method": "EPICS_AUTH_JWT_REQUEST_METHOD",
    "--jwt-response-format": "EPICS_AUTH_JWT_RESPONSE_FORMAT",
    "--jwt-trusted-uri": "EPICS_AUTH_JWT_TRUSTED_URI",
    "--jwt-use-response-code": "EPICS_AUTH_JWT_USE_RESPONSE_CODE",
}
_ALONE: Final = "nodes meet in the database that they share"
NO_EFFECT: Final = {
    "--monitor-interval-min": (
        "EPICS_PVACMS_MONITOR_INTERVAL_MIN",
        "each change of a certificate's state is published in the second in which it happens",
    ),
    "--cluster-pv-prefix": ("EPICS_PVACMS_CLUSTER_PV_PREFIX", _ALONE),
    "--cluster-discovery-timeout": ("EPICS_PVACMS_CLUSTER_DISCOVERY_TIMEOUT", _ALONE),
    "--cluster-bidi-timeout": ("EPICS_PVACMS_CLUSTER_BIDI_TIMEOUT", _ALONE),
}
"""Flags of the reference that have no meaning here, with their variables, and why that does no harm."""
VARIABLES: Final = frozenset(
    {
        *JWT_FLAGS.values(),
        *(variable for option in OPTIONS for variable in option.variables),
        *(variable for variable, _ in NO_EFFECT.values()),
    }
)
"""Every variable of the certificate service, apart from those of PVAccess."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every option of the table, and those of the token verifier."""
    for option in OPTIONS:
        text = option.help.replace("%", "%%")
        if option.constant is not None:
            parser.add_argument(
                *option.flags, dest=option.destination, action="store_const", const=True, help=text
            )
        else:
            parser.add_argument(
                *option.flags,
                dest=option.destination,
                metavar=option.metavar,
                help=text,
                action="append" if option.repeated else "store",
            )
    for flag, variable in JWT_FLAGS.items():
        dest = "o_" + flag.lstrip("-").replace("-", "_")
        parser.add_argument(flag, dest=dest, metavar="TEXT", nargs="?", const="YES", help=f"as {variable}")
    for flag, (_, why) in NO_EFFECT.items():
        parser.add_argument(
            flag,
            dest=without_effect(flag),
            metavar="VALUE",
            help=f"accepted for the reference's sake; no effect: {why}",
        )
    parser.add_argument(
        "--cluster-mode",
        dest="o_cluster_mode",
        action="store_true",
        help="say that several nodes share the database; refused if db is a file",
    )


def without_effect(flag: str) -> str:
    """Return the attribute of the parsed arguments for a flag of `NO_EFFECT`."""
    return "o_" + flag.lstrip("-").replace("-", "_")
