"""One process that keeps keychains."""
