"""The PVAccess protocol without input and output: bytes in, events out, and back."""
