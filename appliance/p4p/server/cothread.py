"""Not there: p4p's SharedPV for the cothread library."""

raise ImportError(
    "appliance.p4p has no server.cothread, because cothread is not maintained any more; use server.thread or server.asyncio"
)
