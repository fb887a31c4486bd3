"""A small certificate status service on 127.0.0.1: real CERT:STATUS PVs, signed by the tests' authority.

It serves what a test sets and nothing else, so that tests can also say what no sane service would.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Self

from appliance.certs.keychain import Keychain
from appliance.certs.ocsp import OCSPSigner
from appliance.certs.status import CertState, OCSPState, ocsp_state
from appliance.config.address import Endpoint
from appliance.config.pva import ClientConfig, ServerConfig
from appliance.pvdata.value import Value
from appliance.server.server import Server
from appliance.server.sharedpv import SharedPV
from tests.helpers.cert_status import encode_status
from tests.helpers.pki import Authority


class StatusService:
    """``async with StatusService(ca) as cms: cms.set(keychain, CertState.VALID)``."""

    def __init__(self, ca: Authority, *, valid: timedelta = timedelta(minutes=30), udp_port: int = 0) -> None:
        self.ca = ca
        self.valid = valid
        self.signer = OCSPSigner(ca.signer, ca.certificate, ca.chain)
        self.pvs: dict[str, SharedPV] = {}
        self.last: dict[str, Value] = {}
        self.udp_port = udp_port
        self.server: Server | None = None

    async def start(self) -> None:
        server = Server(
            ServerConfig(
                intf_addr_list=(Endpoint("127.0.0.1"),),
                auto_beacon_addr_list=False,
                broadcast_port=self.udp_port,
                server_port=0,
            )
        )
        for name, pv in self.pvs.items():
            server.add_pv(name, pv)
        await server.start()
        self.server = server
        self.udp_port = server.udp_port

    async def stop(self) -> None:
        if self.server is not None:
            server, self.server = self.server, None
            await server.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def client_config(self, **more: Any) -> ClientConfig:
        """How to find this service."""
        return ClientConfig(addr_list=(Endpoint("127.0.0.1", self.udp_port),), auto_addr_list=False, **more)

    def value(
        self,
        serial: int,
        state: CertState,
        *,
        signed: OCSPState | None = None,
        this_update: datetime | None = None,
        valid: timedelta | None = None,
        signer: OCSPSigner | None = None,
        about: int | None = None,
        **more: Any,
    ) -> Value:
        """A status as a service posts it; every part can be bent."""
        start = datetime.now(UTC) if this_update is None else this_update
        end = start + (self.valid if valid is None else valid)
        response = (signer or self.signer).sign(
            serial if about is None else about,
            ocsp_state(state) if signed is None else signed,
            this_update=start,
            next_update=end,
        )
        return encode_status(state, serial, response, this_update=start, next_update=end, **more)

    def set(self, keychain: Keychain, state: CertState, **bent: Any) -> None:
        """Tell a certificate's status from now on."""
        self.post(keychain.status_pv, self.value(keychain.serial, state, **bent))

    def post(self, name: str, value: Value) -> None:
        self.last[name] = value
        pv = self.pvs.get(name)
        if pv is None:
            pv = self.pvs[name] = SharedPV(value)
            if self.server is not None:
                self.server.add_pv(name, pv)
        else:
            pv.post(value)
