"""The client for Qt is not part of this package."""

raise ImportError(
    "p4p.client.Qt is not part of appliance.p4p: use p4p.client.thread, and let its callbacks emit a Qt signal, "
    "which Qt delivers in the thread of the window (docs/reference/p4p-compatibility.md)",
    name=__name__,
)
