"""The certificate management service: store, life cycle, issuing, publishing, PVs and the daemon.

The way of a request: `services` decodes it, `issuing` has a verifier turn it into a Grant, `lifecycle` records it
through `store` (one thread, one commit for all that wait), and only then `issuing` signs. `publisher` signs status
answers and pushes them. The clock comes in as an argument everywhere.
"""
