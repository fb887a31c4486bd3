"""The client for cothread is not part of this package."""

raise ImportError(
    "p4p.client.cothread is not part of appliance.p4p: cothread's own event loop cannot be shared; "
    "use p4p.client.thread, or p4p.client.asyncio",
    name=__name__,
)
