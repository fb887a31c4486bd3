"""Tokens from an OAuth 2.0 identity provider: client credentials (RFC 6749 4.4) and device authorization (RFC 8628)."""
