"""The demonstration JWT issuer and validator.

With it a site can try the token authenticator before its identity provider is connected. It is not an identity
provider: everybody who knows a password gets a token, and nobody can revoke one.
"""
