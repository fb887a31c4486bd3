"""Keychains as peers write them: ``FILE;PASSWORD`` in a variable."""
