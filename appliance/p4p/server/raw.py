"""SharedPV whose handlers are called at once, on the PVAccess thread."""
