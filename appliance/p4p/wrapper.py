"""Values and types of PVData with the methods that p4p gives them."""
