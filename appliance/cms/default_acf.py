"""The access security file of the first start, and administrators that are added to it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable

from appliance.acf import load_acf
from appliance.certs.x509 import authority_name
from appliance.cms.authorities import Authority
from appliance.config.files import make_directories, write_private
from appliance.errors import ConfigurationError

__all__ = ["add_administrator", "ensure_acf"]


def ensure_acf(path: str, authority: Authority, admin: str) -> bool:
    """Write the default access security file unless one exists; return whether it was written."""
    if os.path.lexists(path):
        return False
    chain = [authority.issuer.certificate, *authority.issuer.chain]
    names = [authority_name(certificate) for certificate in reversed(chain)]
    text = _yaml_acf(names, admin) if path.endswith((".yaml", ".yml")) else _classic_acf(names, admin)
    load_acf(text, file=path, gateway=True)
    make_directories(os.path.dirname(os.path.abspath(path)))  # noqa: PTH100, PTH120 - text in, text out
    write_private(path, text.encode(), 0o644)
    sys.stdout.write(f"Created Default ACF file: {path}\n")
    sys.stdout.flush()
    return True


def _classic_acf(names: list[str], admin: str) -> str:
    lines = ["# Who may administer certificates. Everybody may read their status."]
    inner = f'AUTHORITY(CMS_AUTH, "{names[-1]}")'
    for name in reversed(names[:-1]):
        inner = f'AUTHORITY("{name}") {{\n    {inner}\n}}'
    lines += [inner, "", f"UAG(CMS_ADMIN) {{{_quoted(admin)}}}", ""]
    lines += [
        "ASG(DEFAULT) {",
        "    RULE(0,READ)",
        "    RULE(1,WRITE) {",
        "        UAG(CMS_ADMIN)",
        '        METHOD("x509")',
        "        AUTHORITY(CMS_AUTH)",
        "    }",
        "}",
        "",
    ]
    return "\n".join(lines)


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_.-]+", name) else f'"{name}"'


def _yaml_acf(names: list[str], admin: str) -> str:
    import msgspec

    def text(value: str) -> str:
        return msgspec.json.encode(value).decode()

    lines = ["# EPICS YAML", "version: 1.0", "", "authorities:"]
    indent = "  "
    for name in names[:-1]:
        lines += [f"{indent}- name: {text(name)}", f"{indent}  authorities:"]
        indent += "    "
    lines += [f"{indent}- id: CMS_AUTH", f"{indent}  name: {text(names[-1])}", ""]
    lines += ["uags:", "  - name: CMS_ADMIN", "    users:", f"      - {text(admin)}", ""]
    lines += [
        "asgs:",
        "  - name: DEFAULT",
        "    rules:",
        "      - level: 0",
        "        access: READ",
        "      - level: 1",
        "        access: WRITE",
        "        uags:",
        "          - CMS_ADMIN",
        "        methods:",
        "          - x509",
        "        authorities:",
        "          - CMS_AUTH",
        "",
    ]
    return "\n".join(lines)


def add_administrator(path: str, name: str) -> bool:
    """Add a name to CMS_ADMIN in the access security file.

    The rest of the file stays as it is.

    Returns:
        False if the name is there already.

    Raises:
        ConfigurationError: The file cannot be changed.
    """
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read: {error}", file=path) from error
    known = load_acf(text, file=path, gateway=True).uags.get("CMS_ADMIN")
    if known is None:
        raise ConfigurationError(
            "there is no group CMS_ADMIN in the file; add the administrator by hand", file=path
        )
    if name in known:
        return False
    classic = re.compile(r"(UAG\s*\(\s*\"?CMS_ADMIN\"?\s*\)\s*\{)([^}]*)(\})")
    listed = re.compile(r"(- name:\s*\"?CMS_ADMIN\"?\s*\n\s*users:\s*\n)([ \t]*)(-)")

    def in_braces(match: re.Match[str]) -> str:
        members = match[2].rstrip()
        return f"{match[1]}{members}{', ' if members.strip() else ''}{_quoted(name)}{match[3]}"

    import msgspec

    def in_list(match: re.Match[str]) -> str:
        return f"{match[1]}{match[2]}- {msgspec.json.encode(name).decode()}\n{match[2]}{match[3]}"

    replace: Callable[[re.Match[str]], str]
    for pattern, replace in ((classic, in_braces), (listed, in_list)):
        changed = pattern.sub(replace, text, count=1)
        if changed != text and name in load_acf(changed, file=path, gateway=True).uags["CMS_ADMIN"]:
            before = os.stat(path)  # noqa: PTH116
            # Written by root for a service of another account, which must still be able to read it.
            owner = (before.st_uid, before.st_gid) if os.geteuid() == 0 else None
            write_private(path, changed.encode(), before.st_mode & 0o777, owner=owner)
            return True
    raise ConfigurationError("cannot add the administrator to CMS_ADMIN; add the name by hand", file=path)
