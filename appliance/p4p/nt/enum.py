"""NTEnum, and the integer with its text that it is unwrapped to."""
