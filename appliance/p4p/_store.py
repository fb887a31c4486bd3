"""What p4p makes of Python objects that are assigned to a field, and of fields that are read."""
