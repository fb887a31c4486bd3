"""Methods of Python objects as PVs that take arguments."""
