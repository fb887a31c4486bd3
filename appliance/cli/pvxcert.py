"""``pvxcert``: show certificates and their status; approve, deny and revoke them."""

from __future__ import annotations

import argparse
import sys

from appliance.cli.certlist import add_list_options, check_issuer, contradiction
from appliance.cli.common import (
    FAILED,
    OK,
    Output,
    Parser,
    add_common,
    add_json,
    complain,
    effective_config,
    run_tool,
)
from appliance.daemon.names import identified

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cryptography import x509

    from appliance.authn.status import CheckedStatus
    from appliance.certs.keychain import Keychain
    from appliance.client.context import Context
    from appliance.config.pva import ClientConfig
    from appliance.config.secret import Secret

__all__ = ["EXITS", "main", "parser"]

EXITS = {
    "VALID": OK,
    "PENDING_APPROVAL": 3,
    "REVOKED": 4,
    "EXPIRED": 5,
    "PENDING": 6,
    "PENDING_RENEWAL": 6,
    "SCHEDULED_OFFLINE": 6,
    "UNKNOWN": 7,
}
"""Exit status by the certificate's state; see the epilog."""

_EPILOG = """\
A certificate is named by <issuer>:<serial>, as the tools print it, or by the
keychain that holds it. Without either, this account's own keychain is looked
at ($EPICS_PVA_TLS_KEYCHAIN).

exit status:
  0  the certificate is VALID; or what was asked for is done
  1  it is not known: no answer, no permission, no such file; the message says
     why. With -H also: the service is not OK
  2  interrupted
  3  PENDING_APPROVAL: an administrator has not approved it yet
  4  REVOKED
  5  EXPIRED
  6  not in use at present: PENDING, PENDING_RENEWAL, SCHEDULED_OFFLINE
  7  UNKNOWN, or the status is not signed by a trusted authority
  8  list --expiring: there is at least one such certificate
With several identifiers: that of the first which is not VALID; for actions 1 if
any of them failed.

examples:
  pvxcert
      this account's certificate
  pvxcert -f server.p12
      a keychain file's certificate
  pvxcert 47530d89:3826361579604613180
      any certificate
  pvxcert list --pending
      what waits for approval (administrators)
  pvxcert list --expiring 30d
      what ends within 30 days; status 8 if there is any (administrators)
  pvxcert --approve 47530d89:3826361579604613180 47530d89:15177030356392297708
      several at once
  pvxcert -S MON-FRI,08:00,17:00 47530d89:3826361579604613180
      in use in these hours (UTC) only; with --time-zone in those of a zone
  pvxcert -H
      is the certificate service well?
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = Parser(
        prog="pvxcert",
        usage="pvxcert [options] [cert_id ... | list]",
        description="Show certificates and their status; approve, deny and revoke them; set their schedules.",
        epilog=_EPILOG,
    )
    add = made.add_argument
    add("targets", metavar="cert_id", nargs="*", help="<issuer>:<serial>; or the word list.")
    add("-f", "--file", metavar="FILE", default="", help="Keychain file to look at.")
    add(
        "-p",
        "--password",
        action="store_true",
        help="Prompt for the password of the keychain that is shown, or used for an action or a list.",
    )
    actions = made.add_mutually_exclusive_group()
    actions.add_argument(
        "-A",
        "--approve",
        dest="action",
        action="store_const",
        const="approve",
        help="Approve a certificate that is PENDING_APPROVAL (administrators).",
    )
    actions.add_argument(
        "-D",
        "--deny",
        dest="action",
        action="store_const",
        const="deny",
        help="Deny a certificate its approval (administrators).",
    )
    actions.add_argument(
        "-R",
        "--revoke",
        dest="action",
        action="store_const",
        const="revoke",
        help="Revoke a certificate (administrators; its owner without cert_id, or with -f).",
    )
    actions.add_argument(
        "-S",
        "--schedule",
        metavar="WINDOW",
        action="append",
        default=[],
        help="Set in which hours of the week a certificate is in use (administrators): DAY,HH:MM,HH:MM, where DAY is *, "
        "0 (Sunday) to 6, SUN to SAT, or a range such as MON-FRI; may be repeated. Or show (its owner too), or none: always.",
    )
    actions.add_argument(
        "-H",
        "--health",
        action="store_true",
        help="Show the health of the certificate service; status 1 if it is not OK.",
    )
    actions.add_argument(
        "-M", "--metrics", action="store_true", help="Show the counters of the certificate service."
    )
    add(
        "--time-zone",
        metavar="ZONE",
        default="",
        help="With -S: time zone of the hours, such as Europe/Berlin. Default UTC.",
    )
    add(
        "--issuer",
        metavar="ISSUER",
        default="",
        help="With -H or -M: the service of this issuer ID, if there are several. With list: the certificates of this authority.",
    )
    add(
        "--own",
        action="store_true",
        help="With -R: revoke an administrator's own certificate deliberately.",
    )
    add("-X", "--dump", action="store_true", help="Show everything that the certificates and the status say.")
    add(
        "--trust-anchor",
        metavar="FILE",
        default="",
        help="File with the trust anchor that verifies the status, PEM or PKCS#12. Default: those of this account's keychains.",
    )
    add("--cert-pv-prefix", metavar="PREFIX", help="First part of the service's PV names. Default CERT.")
    add_list_options(made)
    add_json(made)
    add_common(made)
    return made


async def _work(options: argparse.Namespace) -> int:
    _refuse_passwords(options)
    wrong = _contradiction(options)
    if wrong:
        complain(f"Error: {wrong}")
        return FAILED
    effective = effective_config(options)
    config = effective.config
    if options.cert_pv_prefix:
        config = config._replace(cert_pv_prefix=options.cert_pv_prefix)
    if options.health or options.metrics:
        return await _ask_service(options, config)
    if options.schedule:
        return await _schedule(options, config)
    if options.targets == ["list"]:
        return await _list(options, config)
    if options.action:
        return await _act(options, config)
    if not options.targets:
        return await _status_of_keychain(options, config)
    # The first that is not VALID decides the exit status, as a monitor needs it.
    answers = [await _status_of_id(options, config, target) for target in options.targets]
    return next((answer for answer in answers if answer != OK), OK)


def _refuse_passwords(options: argparse.Namespace) -> None:
    """Raise ConfigurationError for ``FILE;PASSWORD``, before another message could repeat it."""
    given = (
        ("-f", options.file),
        ("--trust-anchor", options.trust_anchor),
        *(("cert_id", t) for t in options.targets),
    )
    if any(";" in path for _, path in given):
        from appliance.config.keychain_path import refuse_password

        anchor = "write the trust anchor into a file without a password (authnstd -a)"
        for setting, path in given:
            refuse_password(path, setting, anchor if setting == "--trust-anchor" else "-p asks for it")


def _contradiction(options: argparse.Namespace) -> str:
    by_id = bool(options.targets)
    is_list = options.targets == ["list"]
    if "list" in options.targets and not is_list:
        return "list takes no identifiers: pvxcert list"
    if options.health or options.metrics:
        asked = "-H" if options.health else "-M"
        if by_id or options.file or options.password or options.dump:
            return f"{asked} asks the certificate service about itself; it takes no certificate, -f, -p or -X"
    elif options.issuer and not is_list:
        return "--issuer is for -H, -M and list; a certificate's identifier names its issuer"
    if options.time_zone and not options.schedule:
        return "--time-zone needs -S with windows"
    if options.schedule and (is_list or options.dump or (options.file and by_id)):
        return "-S takes the identifiers of certificates, or -f; it cannot be used with list or -X"
    if options.schedule and not by_id and [word.lower() for word in options.schedule] != ["show"]:
        return "-S sets schedules only of certificates that are named: <issuer>:<serial>; without a name: -S show"
    if options.file and is_list:
        return "-f has no meaning with list"
    if options.file and by_id:
        return "name the certificate by its identifier or by -f, not by both"
    if options.action in ("approve", "deny") and (not by_id or is_list):
        return f"--{options.action} needs the certificate's identifier, <issuer>:<serial>; see: pvxcert list --pending"
    if options.action and is_list:
        return "approve, deny and revoke need the certificate's identifier, not list"
    if options.password and by_id and not (options.action or options.schedule or is_list):
        return "-p asks for the password of a keychain, but none is needed to show a certificate by its identifier"
    if options.trust_anchor and (options.action or options.schedule or is_list):
        return "--trust-anchor verifies a status; actions and list trust what this account's keychain trusts"
    if len(set(options.targets)) < len(options.targets):
        return "an identifier is given twice"
    if options.own and options.action != "revoke":
        return "--own needs --revoke"
    if options.dump and (options.action or is_list):
        return "-X shows a certificate; it cannot be used with an action or with list"
    return contradiction(options, is_list=is_list)


# ---------------------------------------------------------------------- keychains and trust


def _keychain_of(options: argparse.Namespace, config: ClientConfig) -> tuple[Keychain, str]:
    """Return the keychain to use: ``-f``, else this account's, and its path.

    Raises:
        ConfigurationError: There is none, or it cannot be read.
        KeychainError: It cannot be used.
    """
    from appliance.config.secret import Secret
    from appliance.errors import KeychainError

    path = options.file or config.tls_keychain
    if not path:
        raise KeychainError(
            f"there is no keychain: EPICS_PVA_TLS_KEYCHAIN is not set and there is no {config.config_dir}/client.p12; "
            "request a certificate with authnjwt or authnstd, or name a keychain with -f"
        )
    if options.password:
        password = Secret(_ask_password())
    elif options.file:
        password = _password_for(path, config)
    else:
        password = config.tls_keychain_password
    return _load(path, password), path


def _load(path: str, password: Secret) -> Keychain:
    from appliance.certs.keychain import load_keychain
    from appliance.config.files import read_private
    from appliance.errors import KeychainError

    read = read_private(path, 1 << 18, strict=False)
    if read.finding:
        complain(f"Warning: {read.finding}")
    try:
        return load_keychain(read.data, password)
    except KeychainError as error:
        hint = "" if password else " (-p asks for a password)"
        raise KeychainError(f"{path}: {error}{hint if 'password' in str(error) else ''}") from error


def _password_for(path: str, config: ClientConfig) -> Secret:
    """Return the password file of a configured keychain, if ``path`` is one."""
    from appliance.config.pva import resolve_server
    from appliance.config.secret import Secret

    if path == config.tls_keychain:
        return config.tls_keychain_password
    server = resolve_server().config
    return server.tls_keychain_password if path == server.tls_keychain else Secret()


def _ask_password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline(4096).rstrip("\r\n")
    from getpass import getpass

    return getpass("Enter password: ")


class _TrustedCAs:
    """The CA certificates that may verify a status: anchors, and intermediates that lead to them."""

    def __init__(self, options: argparse.Namespace, config: ClientConfig, extra: Sequence[Any] = ()) -> None:
        from appliance.authn.trust import KnownAnchors, load_anchor_file
        from appliance.config.pva import resolve_server
        from appliance.errors import ApplianceError

        self.anchors: list[x509.Certificate] = []
        self.others: list[x509.Certificate] = []
        if options.trust_anchor:
            self.anchors += load_anchor_file(options.trust_anchor)
            return
        for keychain in extra:
            self.anchors += keychain.anchors
            self.others += (*keychain.chain, *keychain.crossed)
        server = resolve_server().config
        for path, password in (
            (config.tls_keychain, config.tls_keychain_password),
            (server.tls_keychain, server.tls_keychain_password),
        ):
            try:
                if path:
                    keychain = _load(path, password)
                    self.anchors += keychain.anchors
                    self.others += (*keychain.chain, *keychain.crossed)
            except ApplianceError:
                # One unreadable keychain must not prevent the use of the others.
                continue
        try:
            self.anchors += KnownAnchors(config.config_file, config.cert_pv_prefix, "").load()
        except ApplianceError as error:
            complain(f"Warning: {error}")

    async def issuer(self, identifier: str, context: Context, prefix: str, timeout: float) -> Any:
        """Return the issuer's certificate, asked from the service if it is an unknown intermediate; or None."""
        from appliance.authn.status import find_issuer, verified_chain
        from appliance.authn.trust import load_pem
        from appliance.errors import ApplianceError

        found = find_issuer(identifier, [*self.anchors, *verified_chain(self.others, self.anchors)])
        if found is not None or not self.anchors:
            return found
        try:
            value = await context.get(f"{prefix}:ISSUER:{identifier}", timeout=timeout)
            # The cross-certificates lead from a former authority to the present root.
            texts = (value.get(field, default="") for field in ("cert", "bundle"))
            offered = [
                c
                for text in texts
                if isinstance(text, str)
                for c in load_pem(text.encode("utf-8", "replace"))
            ]
        except ApplianceError:
            return None
        return find_issuer(identifier, verified_chain((*offered, *self.others), self.anchors))


# ---------------------------------------------------------------------- status


async def _status_of_id(options: argparse.Namespace, config: ClientConfig, target: str) -> int:
    from datetime import UTC, datetime

    from appliance.authn.report import life_lines, status_facts, status_lines
    from appliance.authn.status import fetch_status, public_context
    from appliance.certs.x509 import parse_cert_id

    issuer, serial = parse_cert_id(target)
    pv = _status_pv(config, target)
    trusted = _TrustedCAs(options, config)
    async with public_context(_plain(config), trusted.anchors) as context:
        verdict = await fetch_status(
            context,
            pv,
            issuer=await trusted.issuer(issuer, context, config.cert_pv_prefix, options.timeout),
            serial=serial,
            now=datetime.now(UTC),
            timeout=options.timeout,
        )
        server = _server_of(context, pv)
    identifier = _shown(target)
    if options.json:
        Output(json=True).object(cert_id=identifier, status_pv=pv, status=status_facts(verdict))
    else:
        print("\n".join([*status_lines(identifier, verdict), *life_lines(verdict.report)]))
        if options.dump:
            print("\n".join(_dump_status(verdict, pv, server)))
    return _judge(verdict)


async def _status_of_keychain(options: argparse.Namespace, config: ClientConfig) -> int:
    from datetime import UTC, datetime

    from appliance.authn.report import (
        anchor_lines,
        certificate_facts,
        details_lines,
        dump_lines,
        status_facts,
        status_lines,
    )
    from appliance.authn.status import fetch_status, public_context
    from appliance.certs.x509 import shown_id

    keychain, path = _keychain_of(options, config)
    certificate = keychain.certificate
    facts = certificate_facts(keychain, path)
    if not options.json:
        if certificate is None:
            print("\n\n".join("\n".join(anchor_lines(anchor)) for anchor in keychain.anchors))
        else:
            print("\n".join(details_lines(keychain)))
            if options.dump:
                for each in (certificate, *keychain.chain):
                    print("\n" + "\n".join(["Certificate:", "=" * 44, *dump_lines(each), "-" * 44]))
        sys.stdout.flush()
    if certificate is None or not keychain.status_pv:
        if options.json:
            Output(json=True).object(**facts, status=None)
        elif certificate is not None:
            print(
                f"\nOnline Certificate Status:\n{'=' * 44}\nNot configured: the certificate names no status PV"
            )
        now = datetime.now(UTC)
        ends = [certificate] if certificate is not None else list(keychain.anchors)
        return EXITS["EXPIRED"] if any(now > each.not_valid_after_utc for each in ends) else OK
    pv = keychain.status_pv
    trusted = _TrustedCAs(options, config, [keychain])
    async with public_context(_plain(config), trusted.anchors) as context:
        issuer = keychain.issuer
        if options.trust_anchor:
            issuer = await trusted.issuer(keychain.issuer_id, context, config.cert_pv_prefix, options.timeout)
        verdict = await fetch_status(
            context,
            pv,
            issuer=issuer,
            serial=keychain.serial,
            now=datetime.now(UTC),
            timeout=options.timeout,
            certificate=certificate,
        )
        server = _server_of(context, pv)
    if options.json:
        Output(json=True).object(**facts, status=status_facts(verdict))
    else:
        identifier = shown_id(keychain.issuer_id, keychain.serial)
        print("\n" + "\n".join(status_lines(identifier, verdict)))
        if options.dump:
            print("\n".join(_dump_status(verdict, pv, server)))
    return _judge(verdict)


def _judge(verdict: CheckedStatus) -> int:
    if not verdict.verified:
        complain(
            f"Warning: the certificate service says {verdict.claimed.value}, but this is not verified: {verdict.why}; "
            "give a file with the trust anchor with --trust-anchor"
        )
    return EXITS[verdict.state.value]


def _dump_status(verdict: CheckedStatus, pv: str, server: str) -> list[str]:
    report = verdict.report
    lines = [
        "",
        "Status Details:",
        "=" * 44,
        f"Status PV     : {pv}",
        f"Answered By   : {server}",
        f"Service Says  : {verdict.claimed.value}",
        f"Signature     : {'verified' if verdict.verified else f'not verified: {verdict.why}'}",
        f"OCSP Status   : {verdict.answer.state.value if verdict.answer is not None else report.ocsp_state[:80]}",
        f"OCSP Response : {len(report.ocsp_response)} bytes",
    ]
    return [*lines, "-" * 44]


def _server_of(context: Context, pv: str) -> str:
    server = context.channel(pv).peer
    return "" if server is None else server.peer


def _plain(config: ClientConfig) -> ClientConfig:
    """Return the settings without a keychain: asking for a certificate's status cannot depend on the certificate."""
    from appliance.config.secret import Secret

    return config._replace(tls_keychain="", tls_keychain_password=Secret())


def _shown(target: str) -> str:
    from appliance.certs.x509 import parse_cert_id, shown_id

    return shown_id(*parse_cert_id(target))


def _status_pv(config: ClientConfig, target: str) -> str:
    """Return the status PV for an identifier: the serial number has 20 digits, as in the name in certificates.

    The C++ service also answers to a name without the zeros, but a PUT there does not reach those who watch the other.
    """
    from appliance.certs.x509 import parse_cert_id

    issuer, serial = parse_cert_id(target)
    return f"{config.cert_pv_prefix}:STATUS:{issuer}:{serial:020d}"


# ---------------------------------------------------------------------- actions

_PUT = {"approve": "APPROVED", "deny": "DENIED", "revoke": "REVOKED"}


async def _act(options: argparse.Namespace, config: ClientConfig) -> int:
    from appliance.errors import ApplianceError, KeychainError

    if not options.targets:
        own, path = _keychain_of(options, config)
        if own.certificate is None:
            raise KeychainError(f"{path}: it holds only trust anchors, and no certificate to revoke")
        from appliance.certs.x509 import shown_id

        pv = own.status_pv or _status_pv(config, own.cert_id)
        await _act_on(options, config, own, pv, shown_id(own.issuer_id, own.serial))
        return OK
    # All are read before anything is done: an error in the last one must not leave the first ones done.
    named = [(_status_pv(config, target), _shown(target)) for target in options.targets]
    keychain = _identity(options, config)
    status = OK
    for pv, identifier in named:
        try:
            await _act_on(options, config, keychain, pv, identifier)
        except ApplianceError as error:
            # Each is independent: the others are done in any case.
            complain(f"Error: {identifier}: {error}" if len(named) > 1 else f"Error: {error}")
            status = FAILED
    return status


async def _act_on(
    options: argparse.Namespace, config: ClientConfig, keychain: Keychain, pv: str, identifier: str
) -> None:
    from appliance.errors import ChannelClosedError, OperationTimeoutError

    action = options.action
    wanted = "REVOKED_OWN" if options.own else _PUT[action]
    if not options.json:
        print(f"{action.capitalize()} ==> {identified(pv)}", end="", flush=True)
    try:
        try:
            await _put(config, keychain, pv, wanted, options.timeout)
        except (ChannelClosedError, OperationTimeoutError):
            # A service that revokes the certificate of this connection closes it, perhaps before its answer is sent.
            if action != "revoke" or not await _is_revoked(options, config, pv, keychain, identifier):
                raise
    except Exception as error:
        if options.json:
            Output(json=True).object(action=action, cert_id=identifier, done=False, error=str(error))
        else:
            print(flush=True)
            if "REVOKED_OWN" in str(error):
                complain("To revoke it nevertheless: pvxcert --revoke --own")
        raise
    if options.json:
        Output(json=True).object(action=action, cert_id=identifier, done=True)
    else:
        print(" ==> Completed Successfully", flush=True)


def _identity(options: argparse.Namespace, config: ClientConfig) -> Keychain:
    from appliance.errors import KeychainError

    keychain, path = _keychain_of(options, config)
    if keychain.certificate is None:
        raise KeychainError(
            f"{path}: it holds no certificate of your own; set EPICS_PVA_TLS_KEYCHAIN to an administrator's keychain"
        )
    return keychain


def _secured(config: ClientConfig, keychain: Keychain) -> Context:
    """Return a client that shows ``keychain`` only to the certificate service itself, and talks to nobody else.

    Anybody could answer a search for the status PV and report success for nothing.
    """
    from appliance.authn.sending import cms_only
    from appliance.client.context import Context
    from appliance.tls.context import client_context

    tls = client_context(keychain, want_staple=True, check_staple=cms_only)
    # A name server need not be the service: it is asked where the service is, and does not see the keychain.
    search_tls = client_context(keychain.anchors_alone(), want_staple=False)
    return Context(_plain(config), tls=tls, require_tls=True, beacons=False, search_tls=search_tls)


async def _put(config: ClientConfig, keychain: Keychain, pv: str, state: str, timeout: float) -> None:
    def change(value: Any) -> Any:
        value["state"] = state
        return value

    async with _secured(config, keychain) as context:
        await context.put(pv, change, timeout=timeout)


async def _is_revoked(
    options: argparse.Namespace, config: ClientConfig, pv: str, keychain: Keychain, identifier: str
) -> bool:
    from datetime import UTC, datetime

    from appliance.authn.status import fetch_status, find_issuer, public_context
    from appliance.certs.status import CertState
    from appliance.certs.x509 import parse_cert_id
    from appliance.errors import ApplianceError

    issuer, serial = parse_cert_id(identifier)
    try:
        async with public_context(_plain(config), keychain.anchors) as context:
            verdict = await fetch_status(
                context,
                pv,
                issuer=find_issuer(issuer, [*keychain.anchors, *keychain.chain, *keychain.crossed]),
                serial=serial,
                now=datetime.now(UTC),
                timeout=options.timeout,
            )
    except ApplianceError:
        return False
    return verdict.state is CertState.REVOKED


async def _schedule(options: argparse.Namespace, config: ClientConfig) -> int:
    from appliance.certs.x509 import parse_cert_id, shown_id
    from appliance.cli.certschedule import call_schedule, read_change, show_from_status
    from appliance.errors import ApplianceError

    change = read_change(options.schedule, options.time_zone)
    keychain = _identity(options, config)
    named = [parse_cert_id(target) for target in options.targets] or [(keychain.issuer_id, keychain.serial)]
    status = OK
    async with _secured(config, keychain) as context:
        for issuer, serial in named:
            identifier = shown_id(issuer, serial)
            try:
                await call_schedule(
                    context,
                    f"{config.cert_pv_prefix}:SCHEDULE:{issuer}",
                    identifier,
                    serial,
                    change,
                    as_json=options.json,
                    timeout=options.timeout,
                )
            except ApplianceError as error:
                # Each is independent: the others are done in any case.
                complain(f"Error: {identifier}: {error}" if len(named) > 1 else f"Error: {error}")
                own = (issuer, serial) == (keychain.issuer_id, keychain.serial)
                is_shown = own and await show_from_status(
                    _plain(config), keychain, change, error, as_json=options.json, timeout=options.timeout
                )
                status = status if is_shown else FAILED
    return status


async def _ask_service(options: argparse.Namespace, config: ClientConfig) -> int:
    from appliance.authn.status import public_context
    from appliance.cli.certhealth import show_health, show_metrics

    if options.issuer:
        check_issuer(options.issuer)
    what, show = ("HEALTH", show_health) if options.health else ("METRICS", show_metrics)
    issuer = f":{options.issuer.lower()}" if options.issuer else ""
    # Over plain TCP, like a status: whoever looks after the service must see it also while certificates are of no use.
    context = public_context(_plain(config), _TrustedCAs(options, config).anchors)
    name = f"{config.cert_pv_prefix}:{what}{issuer}"
    return await show(context, name, as_json=options.json, timeout=options.timeout)


async def _list(options: argparse.Namespace, config: ClientConfig) -> int:
    from appliance.cli.certlist import Filters, list_certificates

    filters = Filters.of(options)
    keychain = _identity(options, config)
    return await list_certificates(
        _secured(config, keychain),
        f"{config.cert_pv_prefix}:LIST:{keychain.issuer_id}",
        filters,
        as_json=options.json,
        timeout=options.timeout,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run_tool(parser(), argv, _work)


if __name__ == "__main__":
    sys.exit(main())
