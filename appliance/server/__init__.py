"""The PVAccess server: Server, Source, SharedPV, monitor queues and the AccessPolicy seam."""

from appliance.server.access import ALL_RIGHTS, NO_RIGHTS, AccessPolicy, Rights
from appliance.server.channel import Channel
from appliance.server.operation import Operation, Subscription, Update
from appliance.server.server import Server
from appliance.server.sharedpv import SharedPV
from appliance.server.source import Handler, Source, StaticSource
from appliance.server.wildcard import WildcardSource

__all__ = [
    "ALL_RIGHTS",
    "NO_RIGHTS",
    "AccessPolicy",
    "Channel",
    "Handler",
    "Operation",
    "Rights",
    "Server",
    "SharedPV",
    "Source",
    "StaticSource",
    "Subscription",
    "Update",
    "WildcardSource",
]
