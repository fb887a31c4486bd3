"""The PVAccess client: Context, channels, get, put, monitor, rpc, info, discover."""

from appliance.client.context import Context
from appliance.client.monitor import Connected, Disconnected, Monitor
from appliance.client.requests import Info
from appliance.client.servers import Discovered

__all__ = ["Connected", "Context", "Disconnected", "Discovered", "Info", "Monitor"]
