"""What the authenticators' commands share: options, output, and exit statuses."""

from __future__ import annotations

import argparse
import os
import sys
import traceback

from appliance.cli.common import FAILED, OK, Parser, add_common, complain, run_tool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from typing import Any

    from appliance.authn.requester import Outcome, Requester
    from appliance.authn.settings import RequesterSettings

__all__ = ["CANNOT_TELL", "EPILOG", "KEPT", "PENDING", "authenticate", "authn_parser", "run_authenticator"]

PENDING, KEPT, CANNOT_TELL = 3, 4, 255
"""Exit statuses in addition to those of all tools: see EPILOG."""

EPILOG = """\
exit status:
  0  the keychain was made (or, with --if-due, it was not time for a new one)
  1  it was not: the message says why, and the keychain that was there is
     untouched
  2  interrupted
  3  the keychain was made, and its certificate waits for an administrator's
     approval
  4  nothing was requested: a valid keychain is there (--force replaces it);
     with --check-due: it is not time yet
  255 with --check-due: it cannot be told, for whatever reason (systemd takes
     anything below for "nothing to do")
"""


def authn_parser(prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Return a command line with the options of all authenticators."""
    from appliance.authn.grant import USAGES

    made = Parser(
        prog=prog,
        description=description,
        epilog=EPILOG + examples,
    )
    add = made.add_argument
    add(
        "-u",
        "--cert-usage",
        dest="usage",
        metavar="USAGE",
        choices=USAGES,
        default="client",
        help="What the certificate is for: client, server or ioc (both). Default client.",
    )
    add("--force", action="store_true", help="Replace a keychain that is still valid.")
    add(
        "--if-due",
        action="store_true",
        help="Replace the keychain if two thirds of its lifetime are over, else do nothing: for timers.",
    )
    add(
        "--check-due",
        action="store_true",
        help="Only say by the exit status whether a new certificate is due: 0 yes, 4 no.",
    )
    add(
        "-a",
        "--trust-anchor-only",
        dest="anchor_only",
        action="store_true",
        help="Only fetch the trust anchor into the keychain file: enough to authenticate servers.",
    )
    add(
        "--trust-anchor",
        dest="anchor_file",
        metavar="FILE",
        nargs="?",
        const="",
        help="File with the trust anchor of the certificate service, PEM or PKCS#12. Without FILE: the same as -a.",
    )
    add(
        "--trust-anchor-fingerprint",
        dest="anchor_fingerprint",
        metavar="sha256:HEX",
        help="SHA-256 fingerprint of the trust anchor, as its administrator publishes it.",
    )
    add(
        "--no-trust-on-first-use",
        dest="first_use",
        action="store_false",
        help="Refuse a certificate service whose trust anchor is not known here yet.",
    )
    add(
        "-s",
        "--no-status",
        dest="no_status",
        action="store_true",
        default=None,
        help="Ask for a certificate whose status need not be checked; the service may not grant it.",
    )
    add(
        "-i",
        "--issuer",
        metavar="ID",
        help="Issuer ID of the certificate service to ask. Default: any that answers.",
    )
    add("--cert-pv-prefix", metavar="PREFIX", help="First part of the service's PV names. Default CERT.")
    add(
        "--key-algorithm",
        metavar="ALG",
        choices=("rsa-2048", "rsa-4096", "ec-p256", "ec-p384", "ed25519"),
        help="Kind of key to make where there is none yet: rsa-2048, rsa-4096, ec-p256, ec-p384, ed25519. Default rsa-2048.",
    )
    add_common(made, timeout="Seconds to wait for each answer.", default_s=10.0)
    return made


def run_authenticator(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    work: Callable[[argparse.Namespace], Coroutine[Any, Any, int]],
) -> int:
    """Do as `run_tool`, but with ``--check-due`` end with 255 whenever there is no answer.

    systemd reads 1 to 254 of ExecCondition= as "nothing to do", so a renewal that cannot run would be skipped for ever, without
    a word. Only 255 makes it a failed unit.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    if not any(len(word) > 4 and "--check-due".startswith(word.partition("=")[0]) for word in given):
        return run_tool(parser, argv, work)
    try:
        status = run_tool(parser, given, work)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else CANNOT_TELL
        if status == OK:
            raise
    except Exception:  # noqa: BLE001 - the condition of a unit must not fail as one that does not hold
        traceback.print_exc()
        status = CANNOT_TELL
    if status not in (OK, KEPT):
        status = CANNOT_TELL
    if argv is None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


async def authenticate(
    options: argparse.Namespace,
    ask: Callable[[argparse.Namespace, RequesterSettings, Requester], Awaitable[Outcome]],
    **identity: Any,
) -> int:
    """Do what the options say: tell whether a request is due, fetch the anchor, or have ``ask`` make the request.

    ``identity`` are the settings that only this authenticator has.
    """
    if options.anchor_file and ";" in options.anchor_file:
        from appliance.config.keychain_path import refuse_password

        refuse_password(
            options.anchor_file, "--trust-anchor", "name a file that has none (PEM, or authnstd -a)"
        )
    wrong = _incompatible(options)
    if wrong:
        return wrong
    _refuse_without_effect(options)
    settings = _settings(options, **identity)
    if options.check_due:
        return await _show_due(options, settings)
    if _anchor_wanted(options):
        return await _fetch_anchor(options, settings)
    return _finish(options, await ask(options, settings, _requester(options, settings)))


def _settings(options: argparse.Namespace, **arguments: Any) -> RequesterSettings:
    """Read the settings. Warnings go to standard error, and with ``-v`` the settings in effect."""
    from appliance.authn.settings import resolve_requester

    settings = resolve_requester(
        options.usage,
        {
            "issuer": options.issuer,
            "cert_pv_prefix": options.cert_pv_prefix,
            "no_status": options.no_status,
            **arguments,
        },
    )
    for warning in settings.warnings:
        complain(f"Warning: {warning}")
    if options.verbose:
        from appliance.config.pva import Effective

        complain(Effective(settings.client, {}, []).render())
        complain(f"Keychain                : {settings.keychain}")
    return settings


def _requester(options: argparse.Namespace, settings: RequesterSettings) -> Requester:
    """Make the requester according to the options."""
    from appliance.authn.requester import Requester, Trusting
    from appliance.authn.trust import parse_fingerprint

    fingerprint = parse_fingerprint(options.anchor_fingerprint) if options.anchor_fingerprint else ""
    return Requester(
        settings,
        Trusting(options.anchor_file or "", fingerprint, options.first_use),
        say=complain,
        timeout_s=options.timeout,
        key_algorithm=options.key_algorithm,
    )


def _anchor_wanted(options: argparse.Namespace) -> bool:
    """Whether only the trust anchor is asked for: ``-a``, or ``--trust-anchor`` without a file as with the peers' tools."""
    return bool(options.anchor_only or options.anchor_file == "")


async def _fetch_anchor(options: argparse.Namespace, settings: RequesterSettings) -> int:
    """Do what ``-a`` says."""
    from appliance.authn.trust import fingerprint

    outcome = await _requester(options, settings).trust_anchor(force=options.force)
    assert outcome.keychain is not None
    print("Trust Anchor retrieved")
    print(f"Keychain file created   : {outcome.path}")
    complain(f"Trust anchor: {fingerprint(outcome.keychain.anchors[0])}")
    return OK


async def _show_due(options: argparse.Namespace, settings: RequesterSettings) -> int:
    """Do what ``--check-due`` says."""
    from appliance.certs.status import format_date

    asking = _requester(options, settings)
    due, when, why = await asking.due(asking.look())
    if options.verbose or why:
        since = (why or "there is no usable certificate") if when is None else f"since {format_date(when)}"
        text = f"due: {since}" if due else f"not due before {format_date(when)}"
        complain(f"{settings.keychain}: {text}")
    return OK if due else KEPT


def _finish(options: argparse.Namespace, outcome: Outcome) -> int:
    """Report the result of the request."""
    from appliance.certs.status import CertState, format_date

    keychain = outcome.keychain
    certificate = None if keychain is None else keychain.certificate
    assert certificate is not None
    assert keychain is not None
    if outcome.action == "not due":
        return OK
    pending = outcome.state is CertState.PENDING_APPROVAL
    if outcome.action == "created":
        print(f"Keychain file created   : {outcome.path}")
        print(f"Certificate identifier  : {outcome.cert_id}", flush=True)
    elif outcome.action == "renewed":
        print(f"Certificate identifier  : {outcome.cert_id}", flush=True)
    elif not pending:
        complain(
            f"{outcome.path}: it holds a valid keychain ({keychain.subject}, {outcome.cert_id}, until "
            f"{format_date(certificate.not_valid_after_utc)}) and was not replaced; use --force to replace it"
        )
    if options.verbose:
        complain(f"Subject                 : {keychain.subject}")
        complain(f"Valid from              : {format_date(certificate.not_valid_before_utc)}")
        complain(f"Expires on              : {format_date(certificate.not_valid_after_utc)}")
        complain(f"Status                  : {outcome.state.value}")
    if pending:
        complain(
            f"The certificate waits for an administrator's approval (PENDING_APPROVAL) and cannot be used until then. An "
            f"administrator approves it with: pvxcert --approve {outcome.cert_id}"
        )
        return PENDING
    if outcome.state is CertState.PENDING:
        complain(
            f"The certificate becomes valid at {format_date(certificate.not_valid_before_utc)} (PENDING until then)"
        )
    return OK if outcome.action in ("created", "renewed") else KEPT


_OF_A_REQUEST = {
    "name": "-n",
    "organization": "-o",
    "organizational_unit": "--ou",
    "country": "-c",
    "validity": "-t",
    "no_status": "--no-status",
    "token_file": "--token-file",
    "allow_plaintext_token": "--allow-plaintext-token",
}
"""Options for a request only; each authenticator has some of them."""


def _refuse_without_effect(options: argparse.Namespace) -> None:
    """Raise ConfigurationError if an option is for a request, and none is made."""
    other = "-a" if _anchor_wanted(options) else "--check-due" if options.check_due else ""
    given = [flag for name, flag in _OF_A_REQUEST.items() if getattr(options, name, None)]
    if other and given:
        from appliance.errors import ConfigurationError

        raise ConfigurationError(
            f"{given[0]} has no effect with {other}, which makes no request; leave it out"
        )


def _incompatible(options: argparse.Namespace) -> int:
    """Refuse options that contradict each other; return OK if there are none."""
    chosen = [
        name
        for name, given in (
            ("--force", options.force),
            ("--if-due", options.if_due),
            ("--check-due", options.check_due),
        )
        if given
    ]
    if len(chosen) > 1:
        complain(f"Error: {' and '.join(chosen)} cannot be used together")
        return FAILED
    if _anchor_wanted(options) and (options.if_due or options.check_due):
        complain("Error: a trust anchor is not renewed: -a cannot be used with --if-due or --check-due")
        return FAILED
    return OK
