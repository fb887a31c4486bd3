"""The certificate management service."""
