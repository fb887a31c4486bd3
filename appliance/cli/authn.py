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

    from appliance.authn.live.keeper import Maker
    from appliance.authn.requester import Outcome, Requester
    from appliance.authn.sending import Line
    from appliance.authn.settings import RequesterSettings

__all__ = [
    "CANNOT_TELL",
    "EPILOG",
    "KEPT",
    "PENDING",
    "authenticate",
    "authn_parser",
    "keep",
    "run_authenticator",
]

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
  5  with -D: the certificate was revoked (the last one, if there are several)
  255 with --check-due: it cannot be told, for whatever reason (systemd takes
     anything below for "nothing to do")
"""


def authn_parser(
    prog: str, description: str, examples: str, *, one_per_name: bool = False
) -> argparse.ArgumentParser:
    """Return a command line with the options of all authenticators.

    With ``one_per_name`` the service issues no second certificate for a name while the first is valid, because nothing proves the name.
    """
    from appliance.authn.grant import USAGES

    made = Parser(
        prog=prog,
        description=description,
        epilog=EPILOG + examples,
    )
    made.set_defaults(one_per_name=one_per_name)
    add = made.add_argument
    add(
        "-u",
        "--cert-usage",
        dest="usages",
        metavar="USAGE",
        choices=USAGES,
        action="append",
        help="What the certificate is for: client, server or ioc (both). May be given again, for one more keychain. "
        "Default client.",
    )
    add(
        "-D",
        "--daemon",
        action="store_true",
        help="Stay, follow the certificate's status, and renew it when that is due.",
    )
    add(
        "--no-config-pv",
        dest="config_pv",
        action="store_false",
        help="With -D: do not serve the PV CERT:CONFIG.",
    )
    add("--force", action="store_true", help="Replace a keychain that is still valid.")
    add(
        "--if-due",
        action="store_true",
        help="Renew the certificate if that is due, else do nothing: for timers. Due is what the service says of a certificate "
        "that must be renewed; any other at two thirds of its lifetime.",
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
        "--new-key",
        action="store_true",
        help="Make a new key, and so a new certificate, even if the keychain is valid.",
    )
    add(
        "--san",
        metavar="TYPE=VALUE",
        action="append",
        help="Alternative name to ask for: ip=ADDRESS, dns=NAME or hostname=LABEL. May be given again.",
    )
    add(
        "--server-san",
        metavar="TYPE=VALUE",
        action="append",
        help="The same, for -u server and -u ioc only.",
    )
    add(
        "--schedule",
        metavar="DAY,HH:MM,HH:MM",
        action="append",
        help="Hours in which the certificate is to be in use, such as MON-FRI,08:00,17:00; DAY is *, 0 (Sunday) to 6, SUN to SAT, "
        "or a range. May be given again. Default: always.",
    )
    add("--time-zone", metavar="ZONE", help="Time zone of --schedule, such as Europe/Berlin. Default UTC.")
    add(
        "--add-config-uri",
        action="store_true",
        help="Ask for a certificate that names the PV CERT:CONFIG of its keychain.",
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
    stay: Callable[[argparse.Namespace], int],
) -> int:
    """Do as `run_tool`, but with ``-D`` call ``stay``, and with ``--check-due`` end with 255 whenever there is no answer.

    systemd reads 1 to 254 of ExecCondition= as "nothing to do", so a renewal that cannot run would be skipped for ever, without
    a word. Only 255 makes it a failed unit.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    if any(map(_may_be_daemon, given)):
        options = parser.parse_intermixed_args(given)
        if options.daemon and not options.check_due:
            return stay(options)
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


def _may_be_daemon(word: str) -> bool:
    """Whether a word of the command line may be ``-D``, alone or among other letters, or ``--daemon``."""
    if word.startswith("--"):
        return len(word) > 4 and "--daemon".startswith(word)
    return word.startswith("-") and "D" in word


async def authenticate(
    options: argparse.Namespace,
    ask: Callable[[argparse.Namespace, RequesterSettings, Requester, Line], Awaitable[Outcome]],
    line: Callable[[], Line],
    check: Callable[[list[tuple[RequesterSettings, Requester]]], None] | None = None,
    **identity: Any,
) -> int:
    """Do what the options say: tell whether a request is due, fetch the anchor, or have ``ask`` make the requests.

    ``line`` makes the connection for them. ``check`` looks at all of them before the first. ``identity`` are the settings that
    only this authenticator has.
    """
    wrong = _incompatible(options)
    if wrong:
        return wrong
    _refuse_without_effect(options)
    wanted = _all_settings(options, **identity)
    if options.check_due:
        found = [await _show_due(options, settings) for settings in wanted]
        return OK if OK in found else KEPT
    if _anchor_wanted(options):
        for settings in wanted:
            await _fetch_anchor(options, settings)
        return OK
    found = []
    requests = [(settings, _requester(options, settings)) for settings in wanted]
    if check is not None:
        check(requests)
    async with line() as connection:
        for settings, asking in requests:
            outcome = await ask(options, settings, asking, connection)
            found.append(_finish(options, outcome))
    return next(status for status in (PENDING, OK, KEPT) if status in found)


def keep(
    options: argparse.Namespace,
    prog: str,
    prepare: Callable[[list[Requester]], Callable[[], Maker]],
    **identity: Any,
) -> int:
    """Do what ``-D`` says; return the exit status.

    Args:
        options: The command line.
        prog: The name of the program.
        prepare: Checks what can be checked before the start, and returns what makes the authenticator's part.
        identity: The settings that only this authenticator has.
    """
    from appliance.daemon import logging as daemon_logging
    from appliance.errors import ApplianceError, ConfigurationError

    # Each request has connections of its own, whose ends would fill the log.
    level = "DEBUG" if options.debug else "INFO,appliance.client=WARNING"
    try:
        wrong = _incompatible(options)
        if wrong:
            return wrong
        _refuse_without_effect(options)
        wanted = _all_settings(options, **identity)
        if any(settings.no_status for settings in wanted):
            raise ConfigurationError(
                "-D cannot renew a certificate without status (--no-status or EPICS_PVA_AUTH_NO_STATUS), because nobody says when "
                "that is due; leave one of the two out"
            )
        faults = daemon_logging.configure(level=level)
        requesters = [_requester(options, settings, say=_log) for settings in wanted]
        open_maker = prepare(requesters)
        config = None
        if options.config_pv:
            from appliance.config.pva import resolve_server

            config = resolve_server()
    except ApplianceError as error:
        complain(f"Error: {error}")
        return FAILED
    for fault in faults:
        _log(f"Warning: {fault}")
    from appliance.authn.live.daemon import keep as serve

    return serve(prog, requesters, open_maker, config_pvs=config)


def _log(text: str) -> None:
    """Log what a command would print."""
    import logging

    warning = text.startswith("Warning: ")
    logging.getLogger("appliance.authn").log(
        logging.WARNING if warning else logging.INFO, "%s", text.removeprefix("Warning: ")
    )


def _all_settings(options: argparse.Namespace, **identity: Any) -> list[RequesterSettings]:
    """Read the settings of each keychain that is asked for.

    Raises:
        ConfigurationError: A setting cannot be used, or two keychains are one file.
    """
    from appliance.errors import ConfigurationError

    if options.anchor_file and ";" in options.anchor_file:
        from appliance.config.keychain_path import refuse_password

        refuse_password(
            options.anchor_file, "--trust-anchor", "name a file that has none (PEM, or authnstd -a)"
        )
    usages = options.usages or ["client"]
    if options.server_san and usages == ["client"]:
        raise ConfigurationError("--server-san has no effect on a client's certificate; use --san")
    paths: dict[str, str] = {}
    found = []
    told: set[str] = set()
    for usage in usages:
        settings = _settings(options, usage, told, **identity)
        path = os.path.realpath(settings.keychain)
        if path in paths:
            raise ConfigurationError(
                f"-u {paths[path]} and -u {usage} both write {settings.keychain}; ask for one of them, or set "
                "EPICS_PVA_TLS_KEYCHAIN and EPICS_PVAS_TLS_KEYCHAIN to two files"
            )
        paths[path] = usage
        found.append(settings)
    return found


def _settings(options: argparse.Namespace, usage: str, told: set[str], **arguments: Any) -> RequesterSettings:
    """Read the settings. Warnings go to standard error once, and with ``-v`` the settings in effect."""
    from appliance.authn.settings import resolve_requester

    settings = resolve_requester(
        usage,
        {
            "issuer": options.issuer,
            "cert_pv_prefix": options.cert_pv_prefix,
            "no_status": options.no_status,
            "san": options.san,
            "server_san": options.server_san,
            "schedule": options.schedule,
            "time_zone": options.time_zone,
            "add_config_uri": options.add_config_uri,
            **arguments,
        },
    )
    for warning in settings.warnings:
        if warning not in told:
            told.add(warning)
            complain(f"Warning: {warning}")
    if options.verbose:
        from appliance.config.pva import Effective

        complain(Effective(settings.client, {}, []).render())
        complain(f"Keychain                : {settings.keychain}")
    return settings


def _requester(
    options: argparse.Namespace, settings: RequesterSettings, *, say: Callable[[str], None] = complain
) -> Requester:
    """Make the requester according to the options."""
    from appliance.authn.requester import Requester, Trusting
    from appliance.authn.trust import parse_fingerprint

    fingerprint = parse_fingerprint(options.anchor_fingerprint) if options.anchor_fingerprint else ""
    return Requester(
        settings,
        Trusting(options.anchor_file or "", fingerprint, options.first_use),
        say=say,
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
    asking = _requester(options, settings)
    due = await asking.due(asking.look())
    if options.verbose or due.why:
        complain(f"{settings.keychain}: {due.sentence}")
    return OK if due.due else KEPT


def _finish(options: argparse.Namespace, outcome: Outcome) -> int:
    """Report the result of the request."""
    from appliance.authn.waiting import path_beside
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
    elif outcome.action == "waiting":
        print(f"Certificate identifier  : {outcome.cert_id}", flush=True)
        complain(
            f"{outcome.path}: it keeps its certificate, which is still good, until the new one is valid. That one is in "
            f"{path_beside(outcome.path)}; the next run puts it into its place when an administrator has approved it: pvxcert --approve "
            f"{outcome.cert_id}"
        )
    elif not pending:
        complain(
            f"{outcome.path}: it holds a valid keychain ({keychain.subject}, {outcome.cert_id}, until "
            f"{format_date(certificate.not_valid_after_utc)}) and was not replaced; use --force to replace it"
            + (f", after it was revoked (pvxcert -R {outcome.cert_id})" if options.one_per_name else "")
        )
    if options.verbose:
        complain(f"Subject                 : {keychain.subject}")
        complain(f"Valid from              : {format_date(certificate.not_valid_before_utc)}")
        complain(f"Expires on              : {format_date(certificate.not_valid_after_utc)}")
        complain(f"Status                  : {outcome.state.value}")
    if outcome.action == "waiting":
        return PENDING
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
    "token_command": "--token-command",
    "oauth": "--oauth",
    "allow_plaintext_token": "--allow-plaintext-token",
    "new_key": "--new-key",
    "san": "--san",
    "server_san": "--server-san",
    "schedule": "--schedule",
    "time_zone": "--time-zone",
    "add_config_uri": "--add-config-uri",
}
"""Options for a request only; each authenticator has some of them."""


def _refuse_without_effect(options: argparse.Namespace) -> None:
    """Raise ConfigurationError if an option is for a request, and none is made, or for a daemon, and none stays."""
    from appliance.errors import ConfigurationError

    other = "-a" if _anchor_wanted(options) else "--check-due" if options.check_due else ""
    given = [flag for name, flag in _OF_A_REQUEST.items() if getattr(options, name, None)]
    if other and given:
        raise ConfigurationError(
            f"{given[0]} has no effect with {other}, which makes no request; leave it out"
        )
    if not options.config_pv and not options.daemon:
        raise ConfigurationError("--no-config-pv has no effect without -D; leave it out")


def _incompatible(options: argparse.Namespace) -> int:
    """Refuse options that contradict each other; return OK if there are none."""
    chosen = [
        name
        for name, given in (
            ("-D", options.daemon),
            ("--force", options.force),
            ("--if-due", options.if_due),
            ("--check-due", options.check_due),
        )
        if given
    ]
    if options.new_key and (options.daemon or options.if_due):
        chosen.append("--new-key")
    if options.daemon and options.no_status:
        chosen.append("--no-status")
    usages = options.usages or []
    twice = next((usage for usage in usages if usages.count(usage) > 1), "")
    if twice:
        complain(f"Error: -u {twice} is given twice; leave one out")
        return FAILED
    if len(chosen) > 1:
        complain(f"Error: {' and '.join(chosen)} cannot be used together")
        return FAILED
    if _anchor_wanted(options) and (options.if_due or options.check_due or options.daemon):
        complain("Error: a trust anchor is not renewed: -a cannot be used with -D, --if-due or --check-due")
        return FAILED
    return OK
