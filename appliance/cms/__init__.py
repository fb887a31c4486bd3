"""The certificate management service: store, life cycle, issuing, publishing, PVs and the daemon.

The path of a request: `service` decodes it, `issuing` lets a verifier turn it into a Grant, `lifecycle` records it
through `store` (one thread, one commit for all that wait), and only then `issuing` signs. `publisher` signs status
answers and sends them. The clock is an argument everywhere.
"""
