"""The PVAccess client: Context, channels, get, put, monitor, rpc, info, discover."""

from appliance.client.context import Context
from appliance.client.monitor import Connected, Disconnected, Subscription
from appliance.client.requests import Info
from appliance.client.search import Discovered

__all__ = ["Connected", "Context", "Disconnected", "Discovered", "Info", "Subscription"]
