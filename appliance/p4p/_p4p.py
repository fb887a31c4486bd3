"""The names that programs take from the extension module of p4p."""
