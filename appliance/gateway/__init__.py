"""The PVAccess gateway."""
