"""Live certificate status, and TLS as the configuration asks for it, for clients and servers.

``appliance.certmon.endpoints`` has ``open_client`` and ``open_server``; this package's own module imports nothing, so
that a tool without a keychain pays nothing for it.
"""
