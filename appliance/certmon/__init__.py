"""Follows certificate status PVs, keeps the disk cache, feeds staples and connection gates."""
