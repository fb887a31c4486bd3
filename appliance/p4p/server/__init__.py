"""Servers and what provides PVs to them."""
