"""The PVAccess client: Context, channels, get, put, monitor, rpc, info, discover."""
