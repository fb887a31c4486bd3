"""NTNDArray, and the numpy array that it is unwrapped to."""
