"""How many objects of the server, its clients and its records exist: to find what is not freed."""

from __future__ import annotations

from typing import Final

from appliance.daemon.objects import count_types

__all__ = ["COUNTED", "instance_counts"]

COUNTED: Final = {
    "appliance.certmon.status_source.Following": "CertificateStatus",
    "appliance.client.channel.Channel": "ClientChannel",
    "appliance.client.context.Context": "ClientContext",
    "appliance.client.link.ServerLink": "ClientConnection",
    "appliance.client.monitor.Monitor": "ClientMonitor",
    "appliance.ioc.dbcore.channel.DBChannel": "RecordChannel",
    "appliance.ioc.dbcore.events.EventSubscription": "RecordSubscription",
    "appliance.ioc.groups.group_pv.GroupPV": "GroupPV",
    "appliance.ioc.record_pv.RecordPV": "RecordPV",
    "appliance.server.operation.Operation": "ServerOperation",
    "appliance.server.operation.Subscription": "ServerMonitor",
    "appliance.server.peer.Peer": "ServerConnection",
    "appliance.server.served_channel.ServedChannel": "ServerChannel",
    "appliance.server.server.Server": "Server",
    "appliance.server.sharedpv.SharedPV": "SharedPV",
    "appliance.tls.engine.TLSEngine": "TLSEngine",
    "appliance.transport.stream.StreamLink": "Stream",
}
"""Classes, and the names of their counters."""


def instance_counts() -> dict[str, int]:
    """Count the objects of each class, subclasses included unless they are counted themselves; by counter name.

    Nothing is counted while the program runs; this looks at all objects. What was set aside from Python's collection is looked at too.
    """
    counts = dict.fromkeys(sorted(COUNTED.values()), 0)
    for kind, count in count_types().items():
        name = _counter(kind)
        if name is not None:
            counts[name] += count
    return counts


def _counter(kind: type) -> str | None:
    for base in kind.__mro__:
        name = COUNTED.get(f"{base.__module__}.{base.__qualname__}")
        if name is not None:
            return name
    return None
