"""Secure PVAccess as an appliance: one package, its daemons and its tools."""

__version__ = "0.1.0"
