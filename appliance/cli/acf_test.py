"""``acf-test``: what an access security file lets somebody do, and why."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from appliance.daemon.commandline import Parser, add_completion, add_version, is_given

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from appliance.acf import AccessSecurity, Decision, Principal

__all__ = ["main"]

_MAX_BYTES = 4 << 20

_EPILOG = """\
exit status:
  0  the question was answered, whatever the answer is
  1  the file cannot be read, or is wrong; the message says file, line and
     column. Or the command line is wrong
  3  with --require: the access asked for is not granted

examples:
  acf-test ioc.acf
      only check the file, and list its groups and inputs
  acf-test ioc.acf --asg SPECIAL --user george --method x509 \\
      --authority 'EPICS Root Certificate Authority'
      what george may do over TLS with a certificate that this authority issued
  acf-test ioc.acf --asg SPECIAL --user george --method x509 \\
      --organization guest.example --home example.org
      the same for a george of another organization, at a server of example.org
  acf-test ioc.acf --asg SPECIAL --chain george.pem --home example.org
      which rule matches for whoever has this certificate
  acf-test ioc.acf --asg BEAM --user op --method ca --host 10.0.0.7 \\
      --input A=1 --require WRITE
      for scripts: succeeds only if a put would be allowed
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    arguments = Parser(
        prog="acf-test",
        description="Tell what an access security file (classic or YAML form) permits to a principal, and why.",
        epilog=_EPILOG,
    )
    add_version(arguments)
    add_completion(arguments)
    arguments.add_argument("file", metavar="FILE", help="access security file; - reads standard input")
    arguments.add_argument(
        "--asg", help="access security group of the record; without it the file is only checked"
    )
    arguments.add_argument(
        "--asl",
        type=int,
        default=0,
        help="access security level of the field: 0 (default) or 1",
    )
    arguments.add_argument("--user", help="account: the certificate's common name, or the claimed name")
    arguments.add_argument("--host", default="", help="address of the client")
    arguments.add_argument(
        "--method",
        choices=("x509", "ca", "anonymous"),
        help="x509 (proved), ca (claimed) or anonymous; default ca with --user, else anonymous",
    )
    arguments.add_argument(
        "--authority",
        action="append",
        default=[],
        metavar="NAME",
        help="common name of a certificate authority; repeat for a chain, from the issuer up to the root",
    )
    arguments.add_argument(
        "--chain",
        metavar="FILE",
        help="the client's certificate and those above it, in PEM form, the root among them: they say who it is, instead of "
        "--user, --authority, --organization, --unit and --san",
    )
    arguments.add_argument(
        "--organization",
        metavar="O",
        help="organization in the certificate; default: the server's own, whose people a UAG calls by their names alone",
    )
    arguments.add_argument("--unit", metavar="OU", help="organizational unit in the certificate")
    arguments.add_argument(
        "--home",
        action="append",
        default=[],
        metavar="O",
        help="an organization that the server calls its own, by its certificate or its settings; *: all; may be repeated",
    )
    arguments.add_argument(
        "--protocol", choices=("tls", "tcp"), help="default tls with --method x509, else tcp"
    )
    arguments.add_argument(
        "--role", action="append", default=[], help="group that the account is in; may be repeated"
    )
    arguments.add_argument(
        "--san",
        action="append",
        default=[],
        metavar="KIND=TEXT",
        help="subject alternative name: dns=... or ip=...",
    )
    arguments.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="A=VALUE",
        help="value of an INP; one not given is not connected",
    )
    arguments.add_argument(
        "--macro", action="append", default=[], metavar="NAME=TEXT", help="value for $(NAME) in the file"
    )
    arguments.add_argument(
        "--resolve", action="store_true", help="look up the host names of HAGs, as a server does"
    )
    arguments.add_argument("--gateway", action="store_true", help="read accesses as a gateway does")
    arguments.add_argument(
        "--require", choices=("READ", "WRITE", "RPC"), help="exit with status 3 unless this access is granted"
    )
    arguments.add_argument("--json", action="store_true", help="answer in JSON")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    try:
        status = _main(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        from appliance.cli.common import PIPE, discard_output

        discard_output()
        return PIPE
    return status


def _main(argv: Sequence[str] | None) -> int:
    command_line = parser()
    options = command_line.parse_args(argv)
    try:
        principal = _principal(options)
        inputs = {name: _number(value) for name, value in _pairs(options.input, "--input")}
        macros = dict(_pairs(options.macro, "--macro"))
    except ValueError as error:
        command_line.error(str(error))
    unknown = inputs.keys() - set("ABCDEFGHIJKLMNOPQRSTU")
    if unknown:
        command_line.error(f"--input {min(unknown)}: inputs are called A to U")
    wrong = _without_effect(options, command_line)
    if wrong:
        command_line.error(wrong)

    from appliance.acf import load_acf
    from appliance.errors import AccessFileError, ConfigurationError, SecurityError

    try:
        if options.chain is not None:
            principal = _of_chain(options, principal)
        security = load_acf(
            _read(options.file),
            file=options.file,
            macros=macros,
            resolve=_resolve if options.resolve else None,
            gateway=options.gateway,
        )
    except (AccessFileError, ConfigurationError, SecurityError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    for warning in security.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    if options.asg is None:
        _show_file(security, as_json=options.json)
        return 0
    decision = security.decide(options.asg, options.asl, principal, inputs)
    _show_decision(security, options.asg, principal, decision, as_json=options.json)
    granted = {None: True, "READ": decision.read, "WRITE": decision.write, "RPC": decision.rpc}
    return 0 if granted[options.require] else 3


_OF_A_QUESTION = (
    "user",
    "host",
    "method",
    "authority",
    "chain",
    "protocol",
    "role",
    "san",
    "organization",
    "unit",
    "home",
    "input",
    "asl",
    "require",
)


def _without_effect(options: argparse.Namespace, command_line: argparse.ArgumentParser) -> str:
    """Return which option would have no effect, and what to do; empty if none."""
    for name in ("user", "organization", "unit"):
        if getattr(options, name) == "":
            return f"--{name} is empty: write a value, or leave the option out"
    if options.asg is None:
        for name in _OF_A_QUESTION:
            if is_given(options, command_line, name):
                return f"--{name} asks what is permitted: say in which group, with --asg"
        return ""
    if options.chain is not None:
        if options.method not in {None, "x509"}:
            return f"--chain proves who the client is: leave --method {options.method} out"
        for name in ("user", "authority", "organization", "unit", "san"):
            if is_given(options, command_line, name):
                return f"--{name} stands in the certificate of --chain: leave one of them out"
        return ""
    if options.method == "anonymous" and options.user:
        return "--method anonymous has no --user: leave one of them out"
    if options.method != "x509":
        for name in ("authority", "san", "organization", "unit", "home"):
            if is_given(options, command_line, name):
                return f"--{name} is proved by a certificate: it needs --method x509"
    return ""


def _principal(options: argparse.Namespace) -> Principal:
    from appliance.acf import Principal

    method = options.method or (
        "x509" if options.chain is not None else "ca" if options.user else "anonymous"
    )
    san = tuple((kind.lower(), text) for kind, text in _pairs(options.san, "--san"))
    if any(kind not in {"dns", "ip"} for kind, _ in san):
        raise ValueError("--san is written dns=NAME or ip=ADDRESS")
    organization = options.organization or ""
    subject = (("CN", options.user), ("O", organization), ("OU", options.unit)) if method == "x509" else ()
    return Principal(
        subject=tuple((key, text) for key, text in subject if text),
        at_home=not organization or organization in options.home or "*" in options.home,
        account=options.user or ("anonymous" if method == "anonymous" else ""),
        method=method,
        authority=tuple(options.authority),
        host=options.host,
        roles=frozenset(options.role),
        protocol=options.protocol or ("tls" if method == "x509" else "tcp"),
        san=san,
    )


def _of_chain(options: argparse.Namespace, asked: Principal) -> Principal:
    """Return who has the certificate in a file, as a server sees them in a handshake.

    Raises:
        ConfigurationError: The file cannot be used.
        SecurityError: It does not hold a certificate and its chain.
    """
    from appliance.certs.keychain import chain_above
    from appliance.certs.x509 import (
        authority_name,
        common_name,
        is_ca,
        load_pem_text,
        san,
        subject_parts,
    )
    from appliance.config.files import read_regular
    from appliance.errors import ConfigurationError

    found = load_pem_text(read_regular(options.chain, _MAX_BYTES))
    leaf = next((certificate for certificate in found if not is_ca(certificate)), None)
    if leaf is None:
        raise ConfigurationError(
            "all its certificates are of authorities; the client's own must be among them", file=options.chain
        )
    chain = chain_above(leaf, [certificate for certificate in found if certificate != leaf])
    subject = subject_parts(leaf.subject)
    organizations = [text for attribute, text in subject if attribute == "O"]
    return asked._replace(
        subject=subject,
        account=common_name(leaf.subject),
        authority=tuple(map(authority_name, chain)),
        san=san(leaf),
        at_home="*" in options.home
        or not organizations
        or (len(organizations) == 1 and organizations[0] in options.home),
    )


def _pairs(items: list[str], option: str) -> list[tuple[str, str]]:
    pairs = []
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ValueError(f"{option} {item}: expected NAME=VALUE")
        pairs.append((name, value))
    return pairs


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--input: '{text}' is not a number") from None


def _read(name: str) -> str:
    from appliance.errors import AccessFileError

    try:
        if name == "-":
            data = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with open(name, "rb") as file:  # noqa: PTH123 - pathlib would be half of the start-up time
                data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise AccessFileError(f"the file is larger than {_MAX_BYTES} bytes", file=name)
        return data.decode()
    except OSError as error:
        raise AccessFileError(f"cannot be read: {error.strerror or error}", file=name) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise AccessFileError("not UTF-8 text", file=name, line=line) from None


def _resolve(host: str) -> list[str]:
    import socket

    return sorted({str(item[4][0]) for item in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})


def _show_file(security: AccessSecurity, *, as_json: bool) -> None:
    uags: dict[str, list[str]] = {
        name: sorted(names) + [entry.text for entry in security.subjects.get(name, ())]
        for name, names in security.uags.items()
    }
    groups: list[dict[str, Any]] = [
        {"asg": group.name, "inputs": dict(group.inputs), "rules": [str(rule) for rule in group.rules]}
        for group in security.groups.values()
    ]
    if as_json:
        _print_json(
            {"file": security.file, "groups": groups, "users": uags, "warnings": list(security.warnings)}
        )
        return
    for group in groups:
        rules = len(group["rules"])
        print(f"ASG({group['asg']}): {rules} rule{'' if rules == 1 else 's'}")
        for letter, pv in group["inputs"].items():
            print(f"  INP{letter} {pv}")
    for name, members in uags.items():
        print(f"UAG({name}): {', '.join(members) or 'nobody'}")
    if any(name != "anonymous" and "/" not in name for names in security.uags.values() for name in names):
        print(
            "a proved name alone in a UAG means a member of the server's own organization; "
            "ask with --organization and --home"
        )
    if "DEFAULT" not in security.groups:
        print("ASG(DEFAULT) is not defined: records in no group, or in one not listed here, allow no access")


def _show_decision(
    security: AccessSecurity, asg: str, principal: Principal, decision: Decision, *, as_json: bool
) -> None:
    group = security.group(asg).name
    if as_json:
        answer: dict[str, Any] = {
            "asg": asg,
            "rules_of": group,
            "principal": {
                **principal._asdict(),
                "authority": list(principal.authority),
                "roles": sorted(principal.roles),
                "san": [list(entry) for entry in principal.san],
                "subject": [list(entry) for entry in principal.subject],
            },
            "access": decision.access,
            "read": decision.read,
            "write": decision.write,
            "rpc": decision.rpc,
            "uncached": decision.uncached,
            "trapwrite": decision.trapwrite,
            "why": list(decision.why),
            "warnings": list(security.warnings),
        }
        _print_json(answer)
        return
    who = f"{principal.method}/{principal.account}" if principal.account else principal.method
    if principal.organization:
        who += f" of O={principal.organization}"
    host = f" from {principal.host}" if principal.host else ""
    print(f"{who}{host} over {principal.protocol} in ASG({asg}): {decision.access}")
    words = [name for name in ("read", "write", "rpc", "uncached") if getattr(decision, name)]
    print(f"  may: {', '.join(words) or 'nothing'}{'; puts are logged' if decision.trapwrite else ''}")
    if group != asg:
        print(f"  ASG({asg}) is not defined: the rules of ASG({group}) apply")
    for line in decision.why:
        print(f"  {line}")


def _print_json(answer: dict[str, Any]) -> None:
    import json

    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    sys.exit(main())
