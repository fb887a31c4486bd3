"""Normative types: from Python objects to values, and back."""
