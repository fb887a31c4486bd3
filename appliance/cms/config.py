"""The service's settings: flags, YAML, variables, defaults, in this order.

`appliance.cms.options` is the only table of flags and variables. `appliance.config.pva` reads the settings of the PVAccess server.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from appliance.authn.grant import USAGES
from appliance.authn.jwt.config import ENVIRONMENT, JWTConfig, from_environment
from appliance.certs.profiles import KEY_ALGORITHMS
from appliance.cms.issuing import Rules, UsageRules
from appliance.cms.options import JWT_FLAGS, NO_EFFECT, OPTIONS, Option, without_effect
from appliance.cms.signing import check_key_settings
from appliance.config.duration import Duration
from appliance.config.keychain_path import refuse_password
from appliance.config.loader import Document, Settings, default, load_document
from appliance.config.networks import Networks
from appliance.config.pva import ServerConfig, resolve_server
from appliance.config.secret import FilePath, Secret
from appliance.config.settings import ServerSettings
from appliance.daemon.logging import faults_of_level
from appliance.errors import ConfigurationError

__all__ = ["CMSConfig", "CMSSettings", "FormerAuthority", "check_file", "parse_password_file", "resolve"]

_Text = Annotated[str, Meta(max_length=64)]
_Country = Annotated[str, Meta(pattern="^([A-Z]{2})?$")]
KeyAlgorithm = Literal["rsa-2048", "rsa-4096", "ec-p256", "ec-p384", "ed25519"]
assert set(KeyAlgorithm.__args__) == set(KEY_ALGORITHMS)  # type: ignore[attr-defined]


class FormerAuthority(Settings, frozen=True, kw_only=True):
    """An authority that issues no more, and whose certificates still live: its key signs their statuses."""

    keychain: FilePath = default(FilePath())
    """Its keychain."""
    keychain_pwd_file: FilePath = default(FilePath())
    """File with its password."""
    ca_key: Annotated[str, Meta(max_length=1024)] = ""
    """Its key in a token, as `ca_key` of the present one."""
    ca_key_pin: Secret = default(Secret())
    """The token's PIN."""
    ca_certificate: FilePath = default(FilePath())
    """Its certificate in PEM form and those above it, for `ca_key`."""
    ends: Annotated[str, Meta(max_length=40)] = ""
    """When its certificates end, whatever their own dates say, such as `2027-03-01T00:00:00Z`. Empty: with the cross-certificate of
    its root, or with itself."""

    def __post_init__(self) -> None:
        if bool(self.keychain) == bool(self.ca_key):
            raise ValueError("name its keychain, or its ca_key with ca_certificate")
        if self.ca_key and not self.ca_certificate:
            raise ValueError(
                "ca_key: a token has the key alone; name the file of its certificate in ca_certificate"
            )
        if self.ends:
            self.ending()

    def ending(self) -> datetime | None:
        """Return ``ends``, aware; None if it is not set."""
        if not self.ends:
            return None
        try:
            found = datetime.fromisoformat(self.ends)
        except ValueError:
            raise ValueError(f"ends: {self.ends!r} is not a time; write it as 2027-03-01T00:00:00Z") from None
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


class CMSSettings(Settings, frozen=True, kw_only=True):
    """The configuration file of ``pvacms``."""

    server: ServerSettings = ServerSettings()
    """The PVAccess server: addresses, ports, its own keychain (``tls_keychain``)."""
    db: Annotated[str, Meta(max_length=1024)] = ""
    """The database: a file, or the URL of a PostgreSQL database that one or several nodes use:
    ``postgresql+psycopg://ROLE@HOST/DATABASE``. Empty: ``certs.db`` in the data directory. Without a password in it: see
    `db_password`. A host other than this one must prove by TLS that it is the right one."""
    db_password: Secret = default(Secret())
    """Password of the role in the database server."""
    db_tls_ca: FilePath = default(FilePath())
    """File of the authorities that may have signed the database server's certificate (PEM). Empty: those of the system."""
    db_wait_s: Annotated[float, Meta(ge=0.1, le=60)] = 5.0
    """Seconds that a request waits for a database server that is lost, before it is refused."""
    node: Annotated[str, Meta(pattern="^[A-Za-z0-9._-]{0,64}$")] = ""
    """Name of this node among those that share a database server. Empty: the host's name."""
    acf: FilePath = default(FilePath())
    """Access security file. Empty: ``pvacms.acf`` in the configuration directory."""
    cert_auth_tls_keychain: FilePath = default(FilePath())
    """Keychain of the certificate authority. Empty: ``cert_auth.p12`` in the configuration directory."""
    cert_auth_tls_keychain_pwd_file: FilePath = default(FilePath())
    """File with its password."""
    ca_key: Annotated[str, Meta(max_length=1024)] = ""
    """The authority's key in a token (HSM, smart card), as a PKCS#11 URI (RFC 7512), such as
    `pkcs11:token=site;object=ca?module-path=/usr/lib/softhsm/libsofthsm2.so`, or in a file in PEM form: its absolute path. Empty: it
    is in `cert_auth_tls_keychain`."""
    ca_key_pin: Secret = default(Secret())
    """The token's PIN; `pin-source=file:/PATH` in `ca_key` is the same. Of a key in a file: its passphrase."""
    ca_certificate: FilePath = default(FilePath())
    """The authority's certificate in PEM form and those above it, for `ca_key`. If there is no such file, a self-signed
    certificate is made."""
    former_authorities: Annotated[tuple[FormerAuthority, ...], Meta(max_length=8)] = ()
    """Authorities that this one takes over from. Their statuses are still served, and the holders of their certificates are told to
    ask for new ones, until each ends."""
    cert_auth_name: Annotated[str, Meta(min_length=1, max_length=64)] = "EPICS Root Certificate Authority"
    """Name (CN) of a certificate authority that is made here."""
    cert_auth_organization: _Text = "certs.epics.org"
    """The authority's organisation (O)."""
    cert_auth_organizational_unit: _Text = "EPICS Certificate Authority"
    """The authority's organisational unit (OU)."""
    cert_auth_country: _Country = "US"
    """The authority's country (C), two capitals."""
    cert_auth_validity: Duration = default(Duration(months=120))
    """Life of a certificate authority that is made here."""
    key_algorithm: KeyAlgorithm = "ec-p256"
    """Of keys that are made here: the certificate authority's and the service's. Administrators' are RSA, ``rsa-2048`` unless this is ``rsa-4096``."""
    pvacms_name: Annotated[str, Meta(min_length=1, max_length=64)] = "PVACMS Service"
    """Name (CN) of the service's own certificate."""
    pvacms_organization: _Text = "certs.epics.org"
    """The service's organisation (O)."""
    pvacms_organizational_unit: _Text = "EPICS PVA Certificate Management Service"
    """The service's organisational unit (OU)."""
    pvacms_country: _Country = "US"
    """The service's country (C), two capitals."""
    organizations: tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...] = ()
    """Organizations (O) whose people a name alone in the access security file means, beside the service's own and that
    of the only issuer of tokens; `*`: all."""
    admin_tls_keychain: FilePath = default(FilePath())
    """Keychain of the first administrator. Empty: ``admin.p12`` in the configuration directory."""
    admin_tls_keychain_pwd_file: FilePath = default(FilePath())
    """File with the password of `admin_tls_keychain`."""
    admin_name: Annotated[str, Meta(min_length=1, max_length=64)] = "admin"
    """Name (CN) of the first administrator."""
    require_client_approval: bool = True
    """Whether an administrator must approve client certificates that no token vouches for."""
    require_server_approval: bool = True
    """The same for server certificates."""
    require_ioc_approval: bool = True
    """The same for certificates of IOCs, which are client and server."""
    cert_validity_client: Duration = default(Duration(months=6))
    """Life of client certificates whose request asks for none."""
    cert_validity_server: Duration = default(Duration(months=6))
    """Life of server certificates whose request asks for none."""
    cert_validity_ioc: Duration = default(Duration(months=6))
    """Life of certificates of IOCs whose request asks for none."""
    disallow_client_custom_duration: bool = False
    """Ignore the durations that requests for client certificates ask for."""
    disallow_server_custom_duration: bool = False
    """Ignore the durations that requests for server certificates ask for."""
    disallow_ioc_custom_duration: bool = False
    """Ignore the durations that requests for certificates of IOCs ask for."""
    cert_validity_longest_client: Duration = default(Duration(months=12))
    """Longest life of client certificates, whatever requests or tokens ask for; never shorter than `cert_validity_client`."""
    cert_validity_longest_server: Duration = default(Duration(months=24))
    """The same for server certificates."""
    cert_validity_longest_ioc: Duration = default(Duration(months=24))
    """The same for certificates of IOCs."""
    cert_renewal_client: Duration = default(Duration())
    """How long a client certificate of the standard authenticator is in use before its holder must renew it, without a new
    file; 0: it need not be renewed."""
    cert_renewal_server: Duration = default(Duration())
    """The same for server certificates."""
    cert_renewal_ioc: Duration = default(Duration())
    """The same for certificates of IOCs."""
    san: Literal["approve", "refuse"] = "approve"
    """What becomes of alternative names (SAN) that nothing proves: ``approve``: an administrator sees and approves them;
    ``refuse``: the request is refused."""
    inherit_approval: bool = True
    """A subject that an administrator has approved once gets its next certificate without being asked again, if its requester
    proves that it holds the key of the approved one, or that its token names the same identity."""
    inherit_approval_unproven: bool = False
    """As the reference does it: the next certificate goes to whoever claims the name, with any key. This gives away every name
    that was ever approved: only for networks on which nobody may lie."""
    pending_approval_ends: Duration = default(Duration(seconds=14 * 86400))
    """How long a request waits for its approval before it is denied, so that nobody blocks a name for ever."""
    cert_status_validity_mins: Duration = default(Duration(seconds=1800))
    """How long a status answer may be relied upon."""
    certs_require_subscription: Literal["yes", "no", "requester", "default"] = "default"
    """Whether certificates name their status PV. ``default``: always, and who asks for one without is refused; ``yes``: always,
    and that wish is passed over; ``requester``: unless the requester asks for none, which gives away that his certificate can be
    revoked; ``no``: never, so no certificate can be revoked."""
    status_extension_form: Literal["ia5string", "raw"] = "ia5string"
    """How the status PV's name is written into certificates; ``raw`` only for peers of 2025 alone."""
    health_pv_prefix: _Text = ""
    """Name of the health PV. Empty: ``<prefix>:HEALTH``."""
    metrics_pv_prefix: _Text = ""
    """Name of the metrics PV. Empty: ``<prefix>:METRICS``."""
    health_interval_s: Annotated[float, Meta(ge=0.1, le=3600)] = 10.0
    """Seconds between looks at the service's own health."""
    ccr_per_minute: Annotated[float, Meta(ge=0, le=1e6)] = 60.0
    """Requests per minute from one address; 0: no limit. On a database server it is counted for all nodes together."""
    ccr_burst: Annotated[int, Meta(ge=1, le=100_000)] = 60
    """Requests from one address that may come at once."""
    ccr_in_flight: Annotated[int, Meta(ge=1, le=100_000)] = 256
    """Requests that are worked on at the same time."""
    ccr_rate: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    """Requests per second from all addresses together; 0: no limit. On a database server it is counted for all nodes together."""
    ccr_rate_burst: Annotated[int, Meta(ge=1, le=100_000)] = 50
    """Requests from all addresses together that may come at once, if ``ccr_rate`` limits them."""
    audit_retention_days: Annotated[int, Meta(ge=0, le=36_600)] = 0
    """Days for which records of the audit are kept; 0: for ever."""
    audit_export_dir: FilePath = default(FilePath())
    """Directory into which records of the audit are exported before they are removed; what cannot be exported stays. Empty:
    they are only removed."""
    integrity_check_interval_s: Annotated[int, Meta(ge=0, le=366 * 86400)] = 86_400
    """Seconds between checks of the whole database and of what is new in the audit; 0: none."""
    audit_verify_interval_s: Annotated[int, Meta(ge=0, le=366 * 86400)] = 604_800
    """Seconds between checks of the audit from its beginning; 0: only once. Between them `integrity_check_interval_s` checks
    what is new."""
    preload: tuple[FilePath, ...] = ()
    """Files of certificates of this authority that the service is to know, if its database does not."""
    proxy_from: tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...] = ()
    """Addresses and networks of gateways whose relay says for which client it speaks (PROXY protocol, version 2, on the TLS
    port). Limits, the access security file and the audit then see the client's address. Whoever can connect from these
    addresses can name any client: list gateways only. Empty: nobody may."""

    backup_interval_s: Annotated[int, Meta(ge=0, le=366 * 86400)] = 0
    """Seconds between backups; 0: none."""
    backup_dir: FilePath = default(FilePath())
    """Directory of the backups. Empty: that of the database."""
    backup_retention: Annotated[int, Meta(ge=1, le=10_000)] = 7
    """How many backups are kept."""
    jwt: JWTConfig = JWTConfig()
    log_level: str = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`; `PVXS_LOG` sets single parts."""

    def __post_init__(self) -> None:
        try:
            Networks(self.proxy_from)
        except ValueError as error:
            raise ValueError(f"proxy_from: {error}") from None
        self._check_key()
        for fault in faults_of_level(self.log_level):
            raise ValueError(f"log_level: {fault}")

    def _check_key(self) -> None:
        if not self.ca_key:
            for key in ("ca_key_pin", "ca_certificate"):
                value = getattr(self, key)
                if value.source if isinstance(value, Secret) else value:
                    raise ValueError(
                        f"{key}: no effect without ca_key, which names the authority's key in a token or a file"
                    )
            return
        try:
            check_key_settings(self.ca_key, self.ca_key_pin)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        if not self.ca_certificate:
            raise ValueError(
                "ca_key: that is the key alone; name the file of the authority's certificate in ca_certificate"
            )
        for key in ("cert_auth_tls_keychain", "cert_auth_tls_keychain_pwd_file"):
            if getattr(self, key):
                raise ValueError(
                    f"{key}: the authority's key is elsewhere (ca_key); leave one of the two away"
                )

    def of_former(self, former: FormerAuthority) -> CMSSettings:
        """Return these settings with a former authority in the place of the present one."""
        return msgspec.structs.replace(
            self,
            cert_auth_tls_keychain=former.keychain,
            cert_auth_tls_keychain_pwd_file=former.keychain_pwd_file,
            ca_key=former.ca_key,
            ca_key_pin=former.ca_key_pin,
            ca_certificate=former.ca_certificate,
            former_authorities=(),
        )

    @property
    def authority_file(self) -> str:
        """The file without which there is no authority: its keychain, or the certificate of a key in a token."""
        return self.ca_certificate or self.cert_auth_tls_keychain

    def at_home(self) -> frozenset[str]:
        """Return organizations whose users the access security file names without organization, besides the service's own."""
        issuers = set(self.jwt.organizations().values())
        # With several issuers, none is obvious: their users are named with the organization, or `organizations` lists it.
        return frozenset(self.organizations) | (issuers if len(issuers) == 1 else frozenset())

    def warnings(self) -> list[str]:
        """Return a sentence for each setting that reduces security."""
        found = []
        if self.inherit_approval_unproven:
            found.append(
                "inherit_approval_unproven: anyone who claims a name that was approved once gets a certificate for it, with their "
                "own key and without approval"
            )
            if not self.inherit_approval:
                found.append("inherit_approval_unproven has no effect, because inherit_approval is false")
        if self.certs_require_subscription == "no":
            renewing = [f"cert_renewal_{usage}" for usage in USAGES if getattr(self, f"cert_renewal_{usage}")]
            renewing += [f"jwt lifetime of {issuer.name}" for issuer in self.jwt.issuers if issuer.lifetime]
            if renewing:
                found.append(
                    f"{', '.join(renewing)}: no effect, because certs_require_subscription is no: a certificate without status cannot be "
                    "renewed"
                )
        if self.audit_export_dir and not self.audit_retention_days:
            found.append(
                "audit_export_dir has no effect, because audit_retention_days is 0: nothing is removed"
            )
        found += shared_organizations(self.jwt)
        if self.certs_require_subscription in ("no", "requester"):
            who = "no certificate" if self.certs_require_subscription == "no" else "what a requester asks for"
            found.append(
                f"certs_require_subscription is {self.certs_require_subscription}: {who} names a status PV, so nobody learns of "
                "its revocation; servers and clients that follow statuses do not admit it"
            )
        return found

    def rules(self) -> Rules:
        """Return the rules for certificates."""
        return Rules(
            usages={
                usage: UsageRules(
                    approval=getattr(self, f"require_{usage}_approval"),
                    custom_durations=not getattr(self, f"disallow_{usage}_custom_duration"),
                    validity=getattr(self, f"cert_validity_{usage}"),
                    longest=getattr(self, f"cert_validity_longest_{usage}"),
                    renewal=getattr(self, f"cert_renewal_{usage}"),
                )
                for usage in USAGES
            },
            status_extension=self.certs_require_subscription,
            inherit_approval=self.inherit_approval,
            inherit_unproven=self.inherit_approval_unproven,
            raw_pv_names=self.status_extension_form == "raw",
            san=self.san,
        )


def shared_organizations(config: JWTConfig) -> list[str]:
    """Return a sentence for each organization that several issuers of tokens share."""
    sharing: dict[str, list[str]] = {}
    for name, organization in config.organizations().items():
        sharing.setdefault(organization, []).append(name)
    return [
        f"the token issuers {' and '.join(names)} share the organization {organization}, and a certificate names its issuer "
        "only by organization (O): access rules cannot tell their accounts apart. While one account has a certificate for a "
        "name that is not revoked or expired, or a request for it that waits for approval, the name is refused to the other"
        for organization, names in sharing.items()
        if len(names) > 1
    ]


class CMSConfig(NamedTuple):
    """The settings in effect, with every path filled in."""

    settings: CMSSettings
    server: ServerConfig
    warnings: list[str]
    document: Document[CMSSettings] | None
    server_lines: list[str]
    """The server's settings, each with its source."""


def resolve(
    arguments: argparse.Namespace | None = None,
    *,
    config: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> CMSConfig:
    """Combine flags, the YAML file ``config``, variables and defaults.

    Raises:
        ConfigurationError: A value is bad, wherever it comes from. To ignore it could give access to the wrong people.
    """
    environ = os.environ if environ is None else environ
    document = load_document(config, CMSSettings, environ=environ) if config else None
    settings = CMSSettings() if document is None else document.value
    written = set(document.tree) if document is not None and isinstance(document.tree, dict) else set()
    values: dict[str, Any] = {}
    # The options for all usages come first in the table, so that a variable or flag for one usage overrides them.
    for option in OPTIONS:
        for variable in option.variables:
            if variable in environ:
                value = _read(option, environ[variable], variable)
                values.update((key, value) for key in option.keys if key not in written)
                break
    server_arguments: dict[str, Any] = {}
    for option in OPTIONS:
        raw = getattr(arguments, option.destination, None)
        if raw is None:
            continue
        if option.server:
            server_arguments[option.keys[0]] = raw
            continue
        if option.repeated:
            value = tuple(_read(option, each, option.flags[-1]) for each in raw)
        else:
            value = option.constant if option.constant is not None else _read(option, raw, option.flags[-1])
        values.update(dict.fromkeys(option.keys, value))
    section = document.section("server") if document is not None else None
    server = resolve_server(server_arguments, section, environ, cms=True)
    values.update(_paths({**msgspec.structs.asdict(settings), **values}, server.config))
    if "db" in written and "db" not in values:
        values["db"] = _database(settings.db, config)
    elif "db" in values:
        values["db"] = _database(values["db"], None)
    warnings = [*server.warnings, *_without_effect(arguments, environ)]
    if "jwt" not in written or _jwt_flags(arguments):
        issuer = from_environment({**environ, **_jwt_flags(arguments)})
        if issuer is not None:
            values["jwt"] = msgspec.structs.replace(settings.jwt, issuers=(issuer,))
    elif unused := sorted(name for name in ENVIRONMENT if environ.get(name, "").strip()):
        warnings.append(f"{', '.join(unused)}: no effect, because {config} has the section jwt")
    settings = _checked(settings, values)
    warnings += _checked_database(settings, is_cluster=bool(getattr(arguments, "o_cluster_mode", False)))
    for key in ("cert_auth_tls_keychain", "admin_tls_keychain"):
        refuse_password(getattr(settings, key), key)
    warnings += [warning for issuer in settings.jwt.issuers for warning in issuer.warnings()]
    return CMSConfig(settings, server.config, warnings, document, server.explain().splitlines())


def _checked_database(settings: CMSSettings, *, is_cluster: bool) -> list[str]:
    """Check what belongs to a database server; return a sentence for each thing that makes it less secure."""
    if "://" not in settings.db:
        if is_cluster:
            raise ConfigurationError(
                "nodes share a database server, and db is a file; set db: postgresql+psycopg://ROLE@HOST/DATABASE",
                key="--cluster-mode",
            )
        given = [key for key in ("db_password", "db_tls_ca", "node") if getattr(settings, key)]
        if settings.db_wait_s != 5.0:
            given.append("db_wait_s")
        for key in given:
            raise ConfigurationError(
                "it is for a database server, and db is a file; take it out, or set db: postgresql+psycopg://ROLE@HOST/DATABASE",
                key=key,
            )
        return []
    from appliance.cms.dialect import Login, check_url, remember_login

    found = check_url(settings.db)
    remember_login(settings.db, Login(settings.db_password, settings.db_tls_ca))
    return found


def _without_effect(arguments: argparse.Namespace | None, environ: Mapping[str, str]) -> list[str]:
    return [
        f"{name} has no effect: {why}"
        for flag, (variable, why) in NO_EFFECT.items()
        for name, is_given in (
            (flag, getattr(arguments, without_effect(flag), None) is not None),
            (variable, bool(environ.get(variable))),
        )
        if is_given
    ]


def _jwt_flags(arguments: argparse.Namespace | None) -> dict[str, str]:
    found = {}
    for flag, variable in JWT_FLAGS.items():
        value = getattr(arguments, "o_" + flag.lstrip("-").replace("-", "_"), None)
        if value is not None:
            found[variable] = value
    return found


def _read(option: Option, raw: str, source: str) -> Any:
    try:
        return option.read(raw)
    except ConfigurationError as error:
        raise ConfigurationError(error.why, key=source) from None


def _paths(values: dict[str, Any], server: ServerConfig) -> dict[str, Any]:
    defaults = {
        "acf": server.config_file("pvacms.acf"),
        "cert_auth_tls_keychain": server.config_file("cert_auth.p12"),
        "admin_tls_keychain": server.config_file("admin.p12"),
        "db": server.data_file("certs.db"),
    }
    if values["ca_key"]:
        del defaults["cert_auth_tls_keychain"]
    return {key: FilePath(path) for key, path in defaults.items() if not values[key]}


def check_file(text: str) -> None:
    """Check that the name of a database's file is not a misspelt URL: it would be a new file, and may have a password in it.

    Raises:
        ConfigurationError: It begins like the URL of a database server.
    """
    if "://" not in text and text.lower().startswith("postgres") and ":" in text.partition("/")[0]:
        raise ConfigurationError(
            "the URL of the database server cannot be read; write postgresql+psycopg://ROLE@HOST/DATABASE",
            key="db",
        )


def _database(text: str, config: str | None) -> str:
    if "://" in text:
        return text
    check_file(text)
    directory = os.path.dirname(os.path.abspath(config)) if config else os.getcwd()  # noqa: PTH100, PTH109, PTH120
    return os.path.normpath(os.path.join(directory, os.path.expanduser(text)))  # noqa: PTH111, PTH118


def _checked(settings: CMSSettings, values: dict[str, Any]) -> CMSSettings:
    try:
        replaced = msgspec.structs.replace(settings, **values)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    plain = {key: getattr(replaced, key) for key in values if key != "jwt"}
    for key, value in plain.items():
        # Tuples come from flags that may be repeated; each part was read like a file's.
        if isinstance(value, (Duration, FilePath, Secret, tuple)):
            continue
        try:
            msgspec.convert({key: value}, CMSSettings)
        except msgspec.ValidationError as error:
            raise ConfigurationError(str(error).partition(" - at ")[0], key=key) from None
    for key in (
        "cert_status_validity_mins",
        "cert_validity_client",
        "cert_validity_server",
        "cert_validity_ioc",
        "cert_validity_longest_client",
        "cert_validity_longest_server",
        "cert_validity_longest_ioc",
        "pending_approval_ends",
    ):
        if not getattr(replaced, key):
            raise ConfigurationError("must be longer than zero", key=key)
    for key in (
        "cert_status_validity_mins",
        "pending_approval_ends",
        *(f"cert_renewal_{usage}" for usage in USAGES),
    ):
        if getattr(replaced, key).months:
            raise ConfigurationError("must be given in weeks, days, hours, minutes or seconds", key=key)
    return replaced


def parse_password_file(path: str, setting: str) -> Secret:
    """Return a keychain's password, the first line of the file that ``setting`` names; none for an empty path.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    return Secret.first_line(path, setting=setting) if path else Secret()
