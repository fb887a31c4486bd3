"""A server that follows certificate status, as a process: ``python -m bench.guarded KEYCHAIN CMS_PORT TCP TLS``."""

from __future__ import annotations

import sys

import uvloop

from appliance.certmon.endpoints import open_server
from appliance.config.address import Endpoint
from appliance.config.pva import ClientConfig, resolve_server
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.types import FLOAT64
from appliance.pvdata.value import Value
from appliance.server import Server, SharedPV

NAME = "bench:guarded"


async def main(keychain: str, cms: int, tcp: int, tls: int) -> None:
    settings = {
        "server_port": tcp,
        "tls_port": tls,
        "broadcast_port": 0,
        "intf_addr_list": "127.0.0.1",
        "auto_beacon_addr_list": False,
        "tls_keychain": keychain,
    }
    status = ClientConfig(auto_addr_list=False, name_servers=(Endpoint("127.0.0.1", cms),))

    def prepare(server: Server) -> None:
        server.add_pv(NAME, SharedPV(Value(NTScalar(FLOAT64), {"value": 1.5})))

    config = resolve_server(settings, environ={}).config._replace(no_status_cache=True)
    async with open_server(config, prepare=prepare, status_client=status) as server:
        print("ready", flush=True)
        await server.wait_closed()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], *map(int, sys.argv[2:5])))
