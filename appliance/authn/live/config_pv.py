"""CERT:CONFIG: which keychains a daemon keeps, and until when each must be renewed.

Source: pvxs-docs, programmer's reference, authentication daemon; pvxs-cms of 2026, authn/auth.h. Everybody may read it, over plain
TCP; nobody may write it. The reference's text has the whole subject key identifier in the name, its code the first eight digits, so
both names are served.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from appliance.certs.keychain import Keychain
from appliance.certs.status import format_date
from appliance.certs.x509 import subject_key_identifier
from appliance.config.pva import Effective, ServerConfig
from appliance.config.secret import Secret
from appliance.config.tls_options import TLSOptions
from appliance.pvdata.types import STRING, UINT64, StructType
from appliance.pvdata.value import Value
from appliance.server.server import Server
from appliance.server.sharedpv import SharedPV

__all__ = ["CONFIG_TYPE", "ConfigPVs", "config_names", "config_value"]

CONFIG_TYPE: Final = StructType(
    [("serial", UINT64), ("issuer_id", STRING), ("keychain", STRING), ("renew_by", STRING)]
)


def config_names(prefix: str, keychain: Keychain) -> tuple[str, str]:
    """Return the names of the PV of one keychain: with the short key identifier, and with the whole one."""
    assert keychain.certificate is not None
    skid = subject_key_identifier(keychain.certificate).hex()
    start = f"{prefix}:CONFIG:{keychain.issuer_id}:"
    return f"{start}{skid[:8]}", f"{start}{skid}"


def config_value(keychain: Keychain, path: str, by: datetime | None) -> Value:
    """Return the value of the PV of one keychain; ``by`` is None if there is no cadence."""
    told = {
        "serial": keychain.serial,
        "issuer_id": keychain.issuer_id,
        "keychain": path,
        "renew_by": format_date(by),
    }
    return Value(CONFIG_TYPE, told)


class ConfigPVs:
    """The server of these PVs.

    Args:
        effective: The settings of servers. The port counts only if it is set, because the usual one belongs to the host's IOC.
        prefix: First part of the names.
    """

    def __init__(self, effective: Effective[ServerConfig], prefix: str) -> None:
        config = effective.config
        port = config.server_port if effective.sources.get("server_port", "default") != "default" else 0
        self._server = Server(
            config._replace(
                server_port=port,
                tls_keychain="",
                tls_keychain_password=Secret(),
                tls_options=TLSOptions(),
                beacon_addr_list=(),
                auto_beacon_addr_list=False,
            )
        )
        self._prefix = prefix
        self._pvs: dict[str, SharedPV] = {}

    @property
    def server(self) -> Server:
        """The server."""
        return self._server

    async def start(self) -> None:
        """Listen.

        Raises:
            TransportError: An address of the configuration cannot be used.
        """
        await self._server.start()

    async def stop(self) -> None:
        """Close everything."""
        await self._server.stop()

    def show(self, kept: list[tuple[Keychain, str, datetime | None]]) -> None:
        """Serve these keychains, with their paths and ``renew_by``, and no others."""
        wanted = {
            name: config_value(keychain, path, by)
            for keychain, path, by in kept
            for name in config_names(self._prefix, keychain)
        }
        for name in self._pvs.keys() - wanted.keys():
            self._server.remove_pv(name)
            del self._pvs[name]
        for name, value in wanted.items():
            pv = self._pvs.get(name)
            if pv is None:
                pv = self._pvs[name] = SharedPV(value)
                self._server.add_pv(name, pv)
            elif pv.current.store != value.store:
                pv.post(value)
