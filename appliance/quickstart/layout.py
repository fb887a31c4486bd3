"""The directories of the quick start, and the environment of each role."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sysconfig
from pathlib import Path
from typing import Final, NamedTuple

from appliance.config.files import make_directories

__all__ = ["GATEWAY_ROLES", "ROLES", "Layout", "Ports", "free_ports"]

ROLES: Final = ("client", "softioc", "operator", "admin", "pvacms")
"""Each role has its own keychain, below its own XDG directories, as if it were an account."""
GATEWAY_ROLES: Final = ("gateway", "guest")
"""The roles that a gateway adds: itself, and somebody in the office network."""


class Ports(NamedTuple):
    """Free ports on loopback, so that the quick start does not disturb other EPICS programs on this machine."""

    issuer: int
    udp: int
    cms_tcp: int
    cms_tls: int
    ioc_tcp: int
    ioc_tls: int
    office_udp: int
    gateway_tcp: int
    gateway_tls: int
    relay: int


def free_ports() -> Ports:
    """Find ports that are free now; those for UDP are free for both UDP and TCP."""
    held: list[socket.socket] = []
    numbers: list[int] = []
    try:
        for field in Ports._fields:
            while True:
                sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                held.append(sock)
                sock.bind(("127.0.0.1", 0))
                number = int(sock.getsockname()[1])
                if not field.endswith("udp"):
                    break
                datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                held.append(datagrams)
                try:
                    datagrams.bind(("127.0.0.1", number))
                    break
                except OSError:
                    continue
            numbers.append(number)
    finally:
        for sock in held:
            sock.close()
    return Ports(*numbers)


_KEYCHAINS: Final = {
    "softioc": "server.p12",
    "pvacms": "pvacms.p12",
    "admin": "admin.p12",
    "gateway": "gateway.p12",
}


class Layout:
    """The directories below ``root`` and the environment of each role.

    Args:
        root: The quick start's directory.
        ports: Free ports.
        gateway: Whether there is a gateway, with its roles.
    """

    def __init__(self, root: Path, ports: Ports, *, gateway: bool = False) -> None:
        self.root = root
        self.ports = ports
        self.roles = (*ROLES, *GATEWAY_ROLES) if gateway else ROLES

    @property
    def issuer_url(self) -> str:
        """The issuer's address, as the seed's quick start names it."""
        return f"http://localhost:{self.ports.issuer}/default"

    def home(self, role: str) -> Path:
        """Return the role's own directory."""
        return self.root / role

    def config(self, role: str) -> Path:
        """Return where the role's keychains are."""
        return self.home(role) / "config" / "pva" / "1.5"

    def data(self, role: str) -> Path:
        """Return where the role's data are."""
        return self.home(role) / "data" / "pva" / "1.5"

    def keychain(self, role: str) -> Path:
        """Return the role's PKCS#12 file."""
        name = _KEYCHAINS.get(role, "client.p12")
        return self.config(role) / name

    def log(self, name: str) -> Path:
        """Return where a daemon's output goes."""
        return self.root / "log" / f"{name}.log"

    def make(self) -> None:
        """Make the directories, for their owner only."""
        for role in self.roles:
            make_directories(self.config(role))
            make_directories(self.data(role))
        for name in ("env", "log", "issuer"):
            make_directories(self.root / name)

    def variables(self, role: str) -> dict[str, str]:
        """Return the EPICS_* and XDG_* settings of a role: with them *any* EPICS program joins the stack."""
        ports = self.ports
        variables = {
            "XDG_CONFIG_HOME": str(self.home(role) / "config"),
            "XDG_DATA_HOME": str(self.home(role) / "data"),
            "EPICS_PVA_ADDR_LIST": "127.0.0.1",
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            "EPICS_PVA_BROADCAST_PORT": str(ports.office_udp if role == "guest" else ports.udp),
            "EPICS_PVA_TLS_KEYCHAIN": str(self.keychain(role)),
        }
        tcp, tls = {"pvacms": (ports.cms_tcp, ports.cms_tls), "softioc": (ports.ioc_tcp, ports.ioc_tls)}.get(
            role, (0, 0)
        )
        if tcp:
            variables |= {
                "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
                "EPICS_PVAS_BEACON_ADDR_LIST": "127.0.0.1",
                "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
                "EPICS_PVAS_BROADCAST_PORT": str(ports.udp),
                "EPICS_PVAS_SERVER_PORT": str(tcp),
                "EPICS_PVAS_TLS_PORT": str(tls),
                "EPICS_PVAS_TLS_KEYCHAIN": str(self.keychain(role)),
            }
        if role == "gateway":
            # Its own sides are in its configuration; this is for the tool that requests its certificate.
            variables |= {"EPICS_PVAS_TLS_KEYCHAIN": str(self.keychain(role))}
        if role == "pvacms":
            variables |= {
                "EPICS_PVACMS_CCR_PER_MINUTE": "0",
                "EPICS_AUTH_JWT_REQUEST_FORMAT": "#token#",
                "EPICS_AUTH_JWT_REQUEST_METHOD": "GET",
                "EPICS_AUTH_JWT_RESPONSE_FORMAT": '{ *, "valid": "#response#" }',
                "EPICS_AUTH_JWT_TRUSTED_URI": f"{self.issuer_url}/verify",
            }
        return variables

    def environment(self, role: str) -> dict[str, str]:
        """Return the whole environment of a role's processes, without the caller's own EPICS settings."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("EPICS_", "XDG_", "PVXS_", "NOTIFY_", "WATCHDOG_", "JOURNAL_"))
        }
        return kept | self.variables(role)

    def write_environment_files(self) -> None:
        """Write ``env/<role>.sh``, for a shell (sh, bash, zsh) that wants to be that role."""
        for role in self.roles:
            (self.root / "env" / f"{role}.sh").write_text(self.environment_file(role))

    def write_service_file(self) -> Path:
        """Write what the certificate service must know of the gateway; return the file."""
        path = self.home("pvacms") / "cms.yml"
        path.write_text("# The gateway's relay says for which client it speaks.\nproxy_from: [127.0.0.1]\n")
        return path

    def write_gateway_files(self, data: Path) -> None:
        """Write the gateway's configuration, and copy its rules from ``data``, so that the user may change them."""
        home, ports = self.home("gateway"), self.ports
        for name in ("office.pvlist", "office.acf"):
            shutil.copyfile(data / name, home / name)
        keychain = self.keychain("gateway")
        (home / "gateway.yml").write_text(
            f"""\
clients:
  controls:
    pva:
      addr_list: 127.0.0.1
      auto_addr_list: false
      broadcast_port: {ports.udp}
      tls_keychain: {keychain}
servers:
  office:
    clients: [controls]
    pva:
      intf_addr_list: 127.0.0.1
      beacon_addr_list: 127.0.0.1
      auto_beacon_addr_list: false
      broadcast_port: {ports.office_udp}
      server_port: {ports.gateway_tcp}
      tls_port: {ports.gateway_tls}
      tls_keychain: {keychain}
    pvlist: office.pvlist
    access: {{file: office.acf}}
    put_log: puts.log
    status_prefix: "GW:"
    relay: {{tls_port: {ports.relay}}}
"""
        )

    def environment_file(self, role: str) -> str:
        """Return the text of ``env/<role>.sh``: it makes a shell the role, whatever role it was before."""
        programs = shlex.quote(sysconfig.get_path("scripts"))
        settings = [f"export {name}={shlex.quote(value)}" for name, value in self.variables(role).items()]
        return "\n".join(
            [
                f"# Source this to be {role!r} in the quick start; another role's file makes the shell that role.",
                *_FORGET,
                *settings,
                f'case "$PATH" in {programs}:*) ;; *) export PATH={programs}:"$PATH" ;; esac',
                *_PROMPT,
                f"SPVA_QUICKSTART_ROLE={role}",
                f'if [ -n "${{PS1-}}" ]; then PS1="({role}) $PS1"; fi',
                "",
            ]
        )


_FORGET: Final = (
    "# What another role's file, or this shell's owner, has set for PVAccess and its certificates.",
    "for spva_name in $(env | sed -n 's/^\\(EPICS_\\(PVA\\|AUTH_\\|CERT_\\|ADMIN_\\)[A-Z0-9_]*\\)=.*/\\1/p'); do",
    '    unset "$spva_name"',
    "done",
    "unset spva_name",
)
_PROMPT: Final = (
    "# The prompt shows the role, and no former one.",
    'if [ -n "${SPVA_QUICKSTART_ROLE-}" ]; then',
    '    case "${PS1-}" in',
    '        *"($SPVA_QUICKSTART_ROLE) "*)',
    '            PS1="${PS1%%"($SPVA_QUICKSTART_ROLE) "*}${PS1#*"($SPVA_QUICKSTART_ROLE) "}" ;;',
    "    esac",
    "fi",
)
