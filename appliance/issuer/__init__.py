"""The demonstration JWT issuer and validator."""
