"""Authenticators: one folder each, with requester, verifier and configuration."""
