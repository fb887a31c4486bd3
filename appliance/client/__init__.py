"""The PVAccess client: Context, channels, get, put, monitor, rpc, info, discover."""

from appliance.client.context import Context
from appliance.client.monitor import Connected, Disconnected, Monitor
from appliance.client.requests import Info
from appliance.client.search import Located
from appliance.client.servers import Discovered
from appliance.pva.credentials import Credentials

__all__ = ["Connected", "Context", "Credentials", "Disconnected", "Discovered", "Info", "Located", "Monitor"]
