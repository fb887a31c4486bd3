"""Live certificate status, and TLS according to the configuration, for clients and servers.

``appliance.certmon.endpoints`` has ``open_client`` and ``open_server``. This module imports nothing, so that a tool
without a keychain pays nothing for it.
"""
