"""Checks of the keychain, its certificates, their status and the clock."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from appliance.cli.doctor.report import Report
from appliance.config.pva import DIRECTORY_VERSIONS, ClientConfig, Effective, ServerConfig, versioned
from appliance.errors import ApplianceError, ConfigurationError, KeychainError, OperationTimeoutError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography import x509

    from appliance.certs.keychain import Keychain
    from appliance.client.context import Context

__all__ = [
    "check_certificates",
    "check_clock",
    "check_configuration",
    "check_directories",
    "check_keychain",
    "check_status",
]

_MAX_BYTES: Final = 1 << 18
_SOON: Final = timedelta(days=7)
_CLOCK_WARNING_S: Final = 5.0
_CLOCK_PROBLEM_S: Final = 60.0
_REQUEST: Final = "request a certificate with authnjwt or authnstd"
VARIABLES: Final = {"client": "EPICS_PVA_TLS_KEYCHAIN", "server": "EPICS_PVAS_TLS_KEYCHAIN"}
"""The variable that names each role's keychain."""
_OLDEST: Final = datetime(2025, 1, 1, tzinfo=UTC)
"""Older than this program: a machine with such a date has lost its clock."""


def check_configuration(
    effective: Effective[Any], report: Report, environ: Mapping[str, str], role: str
) -> None:
    """Report values that could not be used, and variables that do not do what they seem to do."""
    for warning in effective.warnings:
        report.warning(
            "configuration",
            warning,
            "a value that is not understood is ignored, and the default is used",
            "correct or unset it",
        )
    given = sorted({source for source in effective.sources.values() if source != "default"})
    report.ok("configuration", f"taken from {', '.join(given) if given else 'defaults only'}")
    home = environ.get("HOME", "").rstrip("/")
    stray = versioned(f"{home}/.config", f"{role}.p12")
    if home and f"{home}/.config" != effective.config.xdg_config_home and os.path.exists(stray):  # noqa: PTH110 - as everywhere here
        report.warning(
            "configuration",
            f"{stray} is not used",
            f"HOME says {home}, but the user database has another home directory, and that one is used: "
            f"keychains are looked for in {effective.config.config_dir}",
            f"set XDG_CONFIG_HOME={home}/.config, or EPICS_PVA_TLS_KEYCHAIN={stray}",
        )


def check_directories(effective: Effective[Any], report: Report) -> None:
    """Report directories of an older version, which other tools of today do not read."""
    for path in effective.config.older_directories():
        new = f"{os.path.dirname(path)}/{DIRECTORY_VERSIONS[0]}"  # noqa: PTH120
        report.note(
            "configuration",
            f"{path} is of an older version, and files that are only there are used there",
            f"the C++ tools of 2026 read only {new}",
            f"if this account also uses those: stop the running programs, then mv {path} {new}"
            if not os.path.exists(new)  # noqa: PTH110
            else f"if this account also uses those: stop the running programs, then move what is missing in {new} there",
        )


def check_keychain(effective: Effective[Any], report: Report, role: str) -> Keychain | None:
    """Check the file of a ``client`` or a ``server``, its permissions, its password and its chain."""
    config = effective.config
    path = config.tls_keychain
    source = effective.sources.get("tls_keychain", "default")
    if not path:
        why = (
            f"there is no {config.config_dir}/{role}.p12, and {VARIABLES[role]} is not set"
            if source == "default"
            else f"{source} is empty, which switches TLS off"
        )
        if config.tls_options.tls_required:
            report.problem(
                "keychain",
                f"none, and tls_required refuses plain TCP: this {role} connects nowhere",
                why,
                _REQUEST,
            )
        else:
            report.note(
                "keychain", f"none: this {role} speaks plain TCP", why, f"{_REQUEST}, if this site uses TLS"
            )
        return None
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        report.problem(
            "keychain",
            f"{path}: {error.strerror}",
            f"this path comes from {source}; {_without_keychain(config, role)}",
            f"correct the path, or {_REQUEST}",
        )
        return None
    _check_permissions(path, status, report)
    from appliance.certs.keychain import load_keychain
    from appliance.config.files import read_private

    try:
        data = read_private(path, _MAX_BYTES, strict=False).data
    except ConfigurationError as error:
        report.problem(
            "keychain",
            str(error),
            f"this process runs as user {os.geteuid()} and the file belongs to user {status.st_uid}",
            f"make the file readable for its user: chown {os.geteuid()} {path}; chmod 600 {path}",
        )
        return None
    password = config.tls_keychain_password
    try:
        keychain = load_keychain(data, password)
    except KeychainError as error:
        what, _, remedy = str(error).partition("; ")
        secret = "password" in str(error)
        named = f"the password was read from {password.source}" if password else "no password file is set"
        if not password and password.source:
            named = f"the password in {password.source} is empty, or the file begins with an empty line"
            remedy = "write the password there, into the first line if that is a file"
        report.problem(
            "password" if secret else "keychain",
            f"{path}: {what}",
            named if secret else _without_keychain(config, role),
            remedy or f"restore the file from its backup, or {_REQUEST}",
        )
        return None
    report.ok("keychain", f"{path} ({source})")
    report.ok("password", "opens the keychain" if password else "none needed")
    return keychain


def _without_keychain(config: ClientConfig | ServerConfig, role: str) -> str:
    if config.tls_options.tls_required:
        return f"without its keychain the {role} connects nowhere"
    if config.tls_options.on_no_keychain == "fallback-to-tcp":
        return f"without its keychain the {role} speaks plain TCP"
    return f"without its keychain the {role} does not start"


def _check_permissions(path: str, status: os.stat_result, report: Report) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        tell = report.problem if mode & 0o007 else report.warning
        who = "every user of this machine" if mode & 0o007 else "its group"
        tell(
            "keychain",
            f"{path} has mode {mode:04o}",
            f"it holds a private key, and {who} can read or change it",
            f"chmod 600 {path}, and request a new certificate if others may have read it",
        )
    if status.st_uid not in (os.geteuid(), 0):
        report.warning(
            "keychain",
            f"{path} belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}",
            "its owner can replace it, and with it this client's identity",
            f"chown {os.geteuid()} {path}",
        )
    directory = os.path.dirname(path) or "."  # noqa: PTH120
    try:
        above = os.stat(directory)  # noqa: PTH116
    except OSError:
        return
    if above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX:
        report.problem(
            "keychain",
            f"the directory {directory} has mode {stat.S_IMODE(above.st_mode):04o}",
            "others can replace the keychain in this directory",
            f"chmod go-w {directory}",
        )


def check_certificates(keychain: Keychain, report: Report, now: datetime, role: str) -> None:
    """Check the chain, the dates and the usage for a ``client`` or a ``server``."""
    from appliance.certs.keychain import ended_anchors
    from appliance.certs.x509 import check_extended_key_usage, find_extension, is_ca, renew_by, subject_text

    leaf = keychain.certificate
    if leaf is None:
        names = ", ".join(subject_text(anchor.subject) for anchor in keychain.anchors)
        report.note(
            "chain",
            f"trust anchors only: {names}",
            "such a client verifies servers, but is anonymous itself"
            if role == "client"
            else "a server needs a certificate and its key; without them it speaks plain TCP",
            f"{_REQUEST}, if this {role} needs a name of its own",
        )
    else:
        links = " <- ".join(subject_text(item.subject) for item in (leaf, *keychain.chain))
        report.ok("chain", f"{keychain.cert_id} {links}")
    roles = [("trust anchor", anchor) for anchor in keychain.anchors]
    roles += [("issuer", item) for item in keychain.chain if item not in keychain.anchors]
    if leaf is not None:
        roles.insert(0, ("certificate", leaf))
    idle = set() if leaf is None else set(keychain.anchors) - {leaf, *keychain.chain}
    if leaf is None and len(ended_anchors(keychain, now)) < len(keychain.anchors):
        idle = set(keychain.anchors)
    for title, certificate in roles:
        if certificate in idle and certificate in ended_anchors(keychain, now):
            report.warning(
                "expiry",
                f"the trust anchor {subject_text(certificate.subject)} ended at {_date(certificate.not_valid_after_utc)}",
                "it is ignored: it authenticates nobody, and the own certificate does not depend on it",
                f"write the keychain without it: {_REQUEST}",
            )
            continue
        _check_dates(title, certificate, report, now)
    if leaf is None:
        return
    due = renew_by(leaf)
    if due is not None and now >= due:
        report.warning(
            "expiry",
            f"the certificate is due for renewal since {_date(due)}",
            "the certificate service suspends the certificate until it is renewed",
            "run the authenticator that requested it again",
        )
    if is_ca(leaf):
        report.problem(
            "usage",
            "the certificate belongs to a certificate authority",
            f"peers do not accept it as a {role}'s",
            f"use another keychain: {_REQUEST}",
        )
        return
    from cryptography.x509 import KeyUsage

    bits = find_extension(leaf, KeyUsage)
    if bits is not None and not bits.digital_signature:
        report.problem(
            "usage",
            "the certificate's key may not sign (key usage lacks digitalSignature)",
            "TLS 1.3 proves an identity by a signature",
            _REQUEST,
        )
        return
    try:
        check_extended_key_usage(leaf, role)
    except ApplianceError as error:
        report.problem(
            "usage", str(error), f"peers do not accept it as a {role}'s", f"{_REQUEST} for a {role}"
        )
    else:
        report.ok("usage", f"good for a {role}")


def _check_dates(role: str, certificate: x509.Certificate, report: Report, now: datetime) -> None:
    from appliance.certs.x509 import subject_text

    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    name = f"{role} {subject_text(certificate.subject)}"
    if now < begins:
        report.problem(
            "clock",
            f"the {name} is not valid before {_date(begins)}, and this host's time is {_date(now)}",
            "this machine's clock is behind, or the certificate is for later",
            "check the clock (timedatectl)",
        )
    elif now > ends:
        report.problem(
            "expiry",
            f"the {name} expired at {_date(ends)}",
            "peers refuse it",
            _REQUEST if role == "certificate" else "get the site's new trust anchor with a new certificate",
        )
    elif ends - now < min(_SOON, (ends - begins) / 10):
        report.warning(
            "expiry", f"the {name} expires at {_date(ends)}", "that is soon", f"renew it: {_REQUEST}"
        )
    else:
        report.ok("expiry", f"the {name} is valid until {_date(ends)}")


async def check_status(
    keychain: Keychain,
    config: ClientConfig | ServerConfig,
    context: Context,
    report: Report,
    now: datetime,
    timeout: float,
) -> None:
    """Ask the certificate service for the certificate's status, as TLS itself does: over plain TCP.

    Args:
        keychain: The keychain whose certificate it is.
        config: This end's configuration.
        context: A running client that uses plain TCP.
        report: Gets the findings.
        now: The present time, aware.
        timeout: Seconds to wait for the service.
    """
    name = keychain.status_pv
    if keychain.certificate is None:
        return
    if not name:
        report.note("status", "the certificate names no status PV", "nobody can revoke it before it expires")
        return
    if config.tls_options.no_revocation_check:
        report.warning(
            "status",
            "no_revocation_check is set: revoked certificates are accepted",
            "EPICS_PVA_TLS_OPTIONS says so",
            "remove it, unless this is a test",
        )
    try:
        value = await context.get(name, timeout=timeout)
    except OperationTimeoutError as error:
        effect = "operations fail" if config.tls_options.on_no_cms == "throw" else "plain TCP may be used"
        report.problem(
            "status",
            str(error),
            f"{_kept_answer(keychain, config, now)}; without the certificate's status {effect}",
            "check that the certificate service (pvacms) runs, and that the searches of this client reach it",
        )
        return
    except ApplianceError as error:
        report.problem(
            "status",
            str(error),
            "the certificate service refuses to answer",
            "ask its administrator to read its log",
        )
        return
    _judge(keychain, value, config, report, now)


def _kept_answer(keychain: Keychain, config: ClientConfig | ServerConfig, now: datetime) -> str:
    """Return what the status cache holds, and until when peers and this end use it."""
    from appliance.certmon.cache import StatusCache
    from appliance.certs.ocsp import verify_response
    from appliance.certs.x509 import issuer_id

    issuer = keychain.issuer
    if not config.status_cache or issuer is None:
        return "no earlier answer is stored, because the status cache is switched off"
    der = StatusCache(config.status_cache).read(issuer_id(issuer), keychain.serial)
    if not der:
        return f"no earlier answer is stored in {config.status_cache}"
    try:
        answer = verify_response(der, issuer=issuer, serial=keychain.serial, now=now)
    except ApplianceError as error:
        return f"the answer stored in {config.status_cache} is not valid any more: {error}"
    return (
        f"the last answer, {answer.state.name}, is stored in {config.status_cache} and is valid until "
        f"{_date(answer.next_update)}"
    )


def _judge(
    keychain: Keychain, value: Any, config: ClientConfig | ServerConfig, report: Report, now: datetime
) -> None:
    from appliance.certmon.status_pv import ocsp_response
    from appliance.certs.ocsp import verify_response
    from appliance.certs.status import CertState, judge, parse_state

    issuer = keychain.issuer
    assert issuer is not None
    text = str(value.get("state", ""))
    try:
        answer = verify_response(ocsp_response(value), issuer=issuer, serial=keychain.serial, now=now)
    except ApplianceError as error:
        if _blame_the_clock(keychain, ocsp_response(value), report, now):
            return
        report.problem(
            "status",
            f"{keychain.status_pv}: {error}",
            "an answer that does not verify is ignored, whatever state it names",
            "check the clocks, and that this is the certificate service that issued the certificate",
        )
        return
    _compare_clocks((answer.this_update - now).total_seconds(), report)
    state = judge(answer.state, parse_state(text), next_update=answer.next_update, now=now).state
    if state is CertState.VALID:
        report.ok("status", f"{keychain.status_pv} is VALID, certified until {_date(answer.next_update)}")
        if config.status_cache:
            report.ok(
                "status", f"if the certificate service stops now: {_kept_answer(keychain, config, now)}"
            )
        return
    remedies = {
        CertState.PENDING_APPROVAL: f"ask an administrator to approve it: pvxcert -A {keychain.cert_id}",
        CertState.PENDING: "wait until it becomes valid, or check the clock of the certificate service",
        CertState.PENDING_RENEWAL: "run the authenticator that requested it again",
        CertState.SCHEDULED_OFFLINE: "wait for its next scheduled time, or ask an administrator",
    }
    report.problem(
        "status",
        f"{keychain.status_pv} is {state.value}",
        "servers do not accept the certificate in this state",
        remedies.get(state, _REQUEST),
    )


def _blame_the_clock(keychain: Keychain, der: bytes, report: Report, now: datetime) -> bool:
    """Report an answer that is genuine but not for the present time; return whether it is one."""
    from appliance.certs.ocsp import read_response

    issuer = keychain.issuer
    assert issuer is not None
    try:
        answer = read_response(der, issuer=issuer, serial=keychain.serial)
    except ApplianceError:
        return False
    if answer.this_update > now:
        _compare_clocks((answer.this_update - now).total_seconds(), report)
    else:
        report.problem(
            "clock",
            f"the certificate service's present answer expired at {_date(answer.next_update)}, and this host's time is {_date(now)}",
            f"this machine's clock is ahead by {_span((now - answer.next_update).total_seconds())} or more, or the "
            "certificate service's clock is behind: a running service signs a new answer before the old one expires",
            "compare 'date -u' on both machines, and synchronise their clocks (timedatectl, chronyc tracking)",
        )
    return True


def _span(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min" if minutes else f"{seconds:.0f} s"
    return f"{minutes // 60} h" if minutes < 2880 else f"{minutes // 1440} days"


def _compare_clocks(ahead_s: float, report: Report) -> None:
    """Report how many seconds in our future (``ahead_s``) the certificate service signed. The past is normal: answers are stored."""
    if ahead_s > _CLOCK_WARNING_S:
        tell = report.problem if ahead_s > _CLOCK_PROBLEM_S else report.warning
        tell(
            "clock",
            f"the certificate service's clock is {_span(ahead_s)} ahead of this machine's",
            "a status from more than one minute in the future is not accepted",
            "synchronise both clocks (timedatectl, chronyc tracking)",
        )


def check_clock(report: Report, now: datetime) -> None:
    """Check that the clock is plausible, and whether something keeps it right."""
    if now < _OLDEST:
        report.problem(
            "clock",
            f"this host's time is {_date(now)}",
            "this program is newer than that: no certificate can be valid",
            "set the clock (timedatectl)",
        )
        return
    synchronised = _synchronised()
    if synchronised is None:
        report.note(
            "clock", f"this host's time is {_date(now)}; it is not known whether something keeps it right"
        )
    elif synchronised:
        report.ok("clock", f"this host's time is {_date(now)}, synchronised")
    else:
        report.warning(
            "clock",
            f"this host's time is {_date(now)}, not synchronised",
            "certificates and their status are judged by this clock",
            "start a time service (chronyd, systemd-timesyncd) and wait for it",
        )


def _synchronised() -> bool | None:
    import shutil
    import subprocess

    if os.path.exists("/run/systemd/timesync/synchronized"):  # noqa: PTH110
        return True
    command = shutil.which("timedatectl")
    if command is None or not os.path.isdir("/run/systemd/system"):  # noqa: PTH112
        return None
    try:
        done = subprocess.run(  # noqa: S603 - no argument of it comes from outside
            [command, "show", "--property=NTPSynchronized", "--value"],
            capture_output=True,
            timeout=3,
            check=False,
            text=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"yes": True, "no": False}.get(done.stdout.strip())


def _date(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"
