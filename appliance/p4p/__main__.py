"""Runs a program, unchanged, with ``p4p`` meaning `appliance.p4p`."""
