"""Strict configuration: YAML files and EPICS_* variables become frozen structs, read once."""
