"""NTScalar, and the Python objects that it is unwrapped to."""
