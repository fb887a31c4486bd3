"""The demonstration JWT issuer and validator.

It lets a site try the token authenticator end to end before its identity provider is connected. It is not an
identity provider: whoever knows a password gets a token, and nobody can take one back.
"""
