"""What support needs to know about a host: ``pvxinfo -D``."""

from __future__ import annotations

import os
import sys

__all__ = ["print_host_information"]


def print_host_information() -> None:
    """Print versions, interfaces and the configuration of clients and servers, each value with its source."""
    import platform

    from appliance.config.pva import resolve_client, resolve_server
    from appliance.transport.interfaces import interface_addresses
    from appliance.version import __version__

    print(f"Secure PVAccess appliance {__version__}")
    print(f"Python {sys.version.split()[0]} {sys.executable}")
    print(f"Host {platform.platform()} {platform.machine()}, {os.cpu_count()} CPUs")
    try:
        from OpenSSL import SSL, version

        print(f"{SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode()}, pyOpenSSL {version.__version__}")
    except ImportError as error:
        print(f"TLS is not available: {error}")
    print("Interfaces")
    for item in interface_addresses():
        broadcast = f" broadcast {item.broadcast}" if item.broadcast is not None else ""
        print(f"    {item.interface}: {item.address}{broadcast}")
    for title, effective in (("Client", resolve_client()), ("Server", resolve_server())):
        print(f"{title} configuration")
        for line in effective.explain().splitlines():
            print(f"    {line}")
        for warning in effective.warnings:
            print(f"    Warning: {warning}")
